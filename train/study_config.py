"""A study's file: models, instruction data, learning rates, smoothing factors, and what to evaluate on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lm_eval_calib.errors import CalibrationValueError

DEMO = "demo"  # `pretrained: demo` is the model of the demo extra
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ModelSpec:
    """A model to start from.

    Attributes:
        pretrained: Folder or hub id that transformers loads, or `demo`.
        training: Arguments of `lm-eval-calib train` for this model only.
        model_args: Arguments of lm-eval's `--model_args` for this model only.
    """

    pretrained: str
    training: Mapping[str, Any] = field(default_factory=dict)
    model_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InstructionSet:
    """What a model is tuned on.

    Attributes:
        train_data: Files or hub ids, as `lm-eval-calib train --train_data` takes them; `{data}` is the
            data folder.
        english_instructions: Forms (and `limit`) of the embedded English set, written for the study
            and added.
        training: Arguments of `lm-eval-calib train` for this set only.
    """

    train_data: tuple[str, ...] = ()
    english_instructions: Mapping[str, Any] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One call of `lm_eval run`.

    Attributes:
        tasks: Task or group names, or YAML files.
        model: lm-eval's model type: hf, hf-calib, vllm, ...
        model_args: Arguments of `--model_args` besides `pretrained`.
        arguments: Further arguments of `lm_eval run`, such as num_fewshot, limit, batch_size, include_path,
            metadata.
        normalizations: What the report divides log-likelihoods by: none, char, byte or token; a report each.
        cache: Keep lm-eval's request cache, one an evaluation, so that a killed one continues where it was.
    """

    tasks: tuple[str, ...]
    model: str = "hf"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    normalizations: tuple[str, ...] = ("none",)
    cache: bool = False


@dataclass(frozen=True)
class Study:
    """A whole study.

    Attributes:
        name: Its name; results are below `output_dir`.
        models, instruction_sets, evaluations: Tables by name.
        learning_rates, label_smoothing, seeds: The grid, crossed with models and instruction sets.
        training: Arguments of `lm-eval-calib train` for every run.
        output_dir: Folder for everything; `runs/<name>` unless said otherwise.
        data: Folder that `{data}` stands for in paths.
        parallel: Stages side by side on each GPU (or on the processor, without one).
        delete_models: Remove a tuned model's weights once all its evaluations are done.
        report: Options of the study's tables: resamples, confidence_level, num_bins.
    """

    name: str
    models: Mapping[str, ModelSpec]
    instruction_sets: Mapping[str, InstructionSet]
    evaluations: Mapping[str, Evaluation]
    learning_rates: tuple[float, ...]
    label_smoothing: tuple[float, ...]
    seeds: tuple[int, ...] = (0,)
    training: Mapping[str, Any] = field(default_factory=dict)
    output_dir: Path = Path()
    data: str = "."
    parallel: int = 1
    delete_models: bool = False
    report: Mapping[str, Any] = field(default_factory=dict)


def ready_made() -> dict[str, Path]:
    """The studies that come with the package, by name."""
    folder = Path(str(files("lm_eval_calib.train"))) / "studies"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_study(source: str, *, overrides: Iterable[str] = ()) -> Study:
    """Read a study's file.

    Args:
        source: A path, or the name of a ready-made study.
        overrides: `key=value` or `key.key=value`, the value as YAML; laid over the file.

    Raises:
        CalibrationValueError: an unknown or missing key, a value of the wrong kind, or a file that is not
        there.
    """
    path = Path(source)
    known = ready_made()
    if source in known and not path.is_file():
        path = known[source]
    if not path.is_file():
        raise CalibrationValueError(
            f"STUDY: expected a YAML file or one of {', '.join(known)}, got {source!r}, which is neither"
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise CalibrationValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise CalibrationValueError(f"{path}: expected a table of keys, got {type(config).__name__}")
    for override in overrides:
        _lay_over(config, override)
    config.setdefault("name", path.stem)
    config.setdefault("output_dir", str(Path("runs") / str(config["name"])))
    return _study(config, str(path))


def _lay_over(config: dict[str, Any], override: str) -> None:
    keys, equals, text = override.partition("=")
    if not equals or not keys:
        raise CalibrationValueError(f"--set: expected key=value, such as seeds=[0], got {override!r}")
    *parents, last = keys.split(".")
    table = config
    for key in parents:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise CalibrationValueError(f"--set {override}: {key} is no table")
    try:
        table[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CalibrationValueError(f"--set {override}: {text!r} is not YAML") from error


_Part = TypeVar("_Part", ModelSpec, InstructionSet, Evaluation)


def _study(config: dict[str, Any], where: str) -> Study:
    _check_keys(config, Study, where)
    parts: dict[str, Any] = {
        "models": _parts(config["models"], ModelSpec, f"{where}: models"),
        "instruction_sets": _parts(config["instruction_sets"], InstructionSet, f"{where}: instruction_sets"),
        "evaluations": _parts(config["evaluations"], Evaluation, f"{where}: evaluations"),
        "learning_rates": _numbers(config, "learning_rates", where, above=0.0),
        "label_smoothing": _numbers(config, "label_smoothing", where, least=0.0, below=1.0),
        "seeds": tuple(int(seed) for seed in _numbers({"seeds": [0], **config}, "seeds", where, whole=True)),
        "output_dir": Path(str(config["output_dir"])),
    }
    if not NAME.fullmatch(str(config["name"])):
        raise CalibrationValueError(f"{where}: name: expected letters, digits and ._-, got {config['name']!r}")
    study = Study(**{**config, **parts, "name": str(config["name"])})
    if not isinstance(study.parallel, int) or study.parallel < 1:
        raise CalibrationValueError(f"{where}: parallel: expected a whole number above 0, got {study.parallel!r}")
    for name, part in study.instruction_sets.items():
        if not part.train_data and part.english_instructions is None:
            raise CalibrationValueError(
                f"{where}: instruction_sets.{name}: expected train_data or english_instructions, got neither"
            )
    return study


def _parts(table: Any, kind: type[_Part], where: str) -> dict[str, _Part]:
    if not isinstance(table, dict) or not table:
        raise CalibrationValueError(f"{where}: expected a table by name, got {table!r}")
    parts = {}
    for name, entry in table.items():
        if not NAME.fullmatch(str(name)):
            raise CalibrationValueError(f"{where}.{name}: names are letters, digits and ._-")
        if not isinstance(entry, dict):
            raise CalibrationValueError(f"{where}.{name}: expected a table of keys, got {entry!r}")
        _check_keys(entry, kind, f"{where}.{name}")
        lists = {
            key: _strings(entry[key], f"{where}.{name}.{key}")
            for key in ("tasks", "train_data", "normalizations")
            if key in entry
        }
        parts[str(name)] = kind(**{**entry, **lists})
    return parts


def _check_keys(config: Mapping[str, Any], kind: type[Any], where: str) -> None:
    known = fields(kind)
    if unknown := sorted(set(config) - {part.name for part in known}):
        raise CalibrationValueError(
            f"{where}: unknown key {', '.join(map(str, unknown))}; known are {', '.join(part.name for part in known)}"
        )
    needed = [part.name for part in known if part.default is MISSING and part.default_factory is MISSING]
    if missing := [name for name in needed if name not in config]:
        raise CalibrationValueError(f"{where}: missing key {', '.join(missing)}")
    for part in known:
        if "Mapping" in str(part.type) and not isinstance(config.get(part.name, {}), dict | None):
            raise CalibrationValueError(f"{where}: {part.name}: expected a table, got {config[part.name]!r}")


def _strings(value: Any, where: str) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(item, str) for item in values):
        raise CalibrationValueError(f"{where}: expected a list of names, got {value!r}")
    return tuple(values)


def _numbers(
    config: Mapping[str, Any],
    key: str,
    where: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> tuple[float, ...]:
    values = config[key] if isinstance(config[key], list) else [config[key]]
    numbers = []
    for value in values:
        try:
            # YAML 1.1 reads 1e-5 as a string, since it has no dot.
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        inside = (above is None or number > above) and (least is None or number >= least)
        inside = inside and number == number and (below is None or number < below) and (not whole or number % 1 == 0)
        if not inside or isinstance(value, bool):
            bounds = [f"above {above}"] * (above is not None) + [f"at least {least}"] * (least is not None)
            bounds += [f"below {below}"] * (below is not None)
            kind = "whole numbers" if whole else "numbers"
            raise CalibrationValueError(f"{where}: {key}: expected {kind} {' and '.join(bounds)}, got {value!r}")
        numbers.append(number)
    if not numbers or len(set(numbers)) < len(numbers):
        raise CalibrationValueError(f"{where}: {key}: expected different values, got {config[key]!r}")
    return tuple(numbers)
