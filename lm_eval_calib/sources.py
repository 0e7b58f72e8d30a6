"""The source of a benchmark, `benchmark.yml`: what its folder's task files are written and its tasks are built from."""

from __future__ import annotations

import functools
import importlib
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.languages import Language, language

NAME = "benchmark.yml"
KEYS = {"title", "about", "source", "task", "languages", "words", "overrides", "single", "groups"}


class Function(str):
    """The value of YAML's `!function`, kept as it is spelled."""


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Benchmark:
    """What a `benchmark.yml` says.

    Attributes:
        name: Folder name; tasks are `calib_<name>_<suffix>`.
        title: Name for people.
        about: One line: what is asked, and who made it.
        source: Paper or data card.
        task: Keys of each task's YAML, with `$language` (the suffix), `$code` and the words to fill in.
        languages: Task suffix -> code of the language.
        words: Task suffix -> what else to fill in.
        overrides: Task suffix -> keys that replace those of `task`.
        single: One task without a suffix.
        groups: Further groups, name -> benchmarks.
    """

    name: str
    title: str
    about: str
    source: str
    task: dict[str, Any]
    languages: dict[str, str]
    words: dict[str, dict[str, Any]]
    overrides: dict[str, dict[str, Any]]
    single: bool
    groups: dict[str, list[str]]

    def task_name(self, suffix: str) -> str:
        """Name of the task of a language."""
        return f"calib_{self.name}" if self.single else f"calib_{self.name}_{suffix}"

    def config(self, suffix: str) -> dict[str, Any]:
        """Keys of the task of a language, filled in; `!function` values are `Function`."""
        words = {"language": suffix, "code": self.languages[suffix], **self.words.get(suffix, {})}
        filled: dict[str, Any] = _filled({**self.task, **self.overrides.get(suffix, {})}, words)
        return filled

    def language(self, suffix: str) -> Language:
        """Language of a task."""
        return language(self.languages[suffix])


def read_benchmark(folder: Path) -> Benchmark:
    """Read `benchmark.yml` of a folder.

    Raises:
        CalibrationValueError: A key is unknown or missing, or a language code is unknown.
    """
    path = folder / NAME
    config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    if unknown := set(config) - KEYS:
        raise CalibrationValueError(f"{path}: unknown key {sorted(unknown)}; known are {sorted(KEYS)}")
    if missing := {"title", "about", "source", "task", "languages"} - set(config):
        raise CalibrationValueError(f"{path}: missing key {sorted(missing)}")
    languages = config["languages"]
    if isinstance(languages, list):
        languages = {str(code): str(code) for code in languages}
    words = config.get("words", {})
    if words and set(words) != set(languages):
        raise CalibrationValueError(f"{path}: words and languages differ: {sorted(set(words) ^ set(languages))}")
    if unknown := set(config.get("overrides", {})) - set(languages):
        raise CalibrationValueError(f"{path}: overrides of {sorted(unknown)}, which 'languages' lacks")
    for code in languages.values():
        try:
            language(code)
        except CalibrationValueError as error:
            raise CalibrationValueError(f"{path}: {error}") from None
    return Benchmark(
        name=folder.name,
        title=config["title"],
        about=config["about"],
        source=config["source"],
        task=config["task"],
        languages=languages,
        words=words,
        overrides=config.get("overrides", {}),
        single=config.get("single", False),
        groups=config.get("groups", {}),
    )


def _filled(value: Any, words: dict[str, Any]) -> Any:
    """Fill `$name` into every string; a string that is nothing but `$name` becomes the word itself."""
    if isinstance(value, dict):
        return {key: _filled(item, words) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, words) for item in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    if value[0] == "$" and value[1:] in words:
        return words[value[1:]]
    return type(value)(string.Template(value).substitute(words))


def task_config(folder: Path, suffix: str) -> dict[str, Any]:
    """Configuration of a task, ready for lm-eval: what a generated YAML says in a word, its language.

    Raises:
        CalibrationValueError: The benchmark lacks the language, or a `!function` cannot be imported.
    """
    path = folder / NAME
    if not path.is_file():
        raise CalibrationValueError(f"language: {suffix!r} needs a {NAME} beside the task's YAML, {folder} has none")
    benchmark = _read(folder, path.stat().st_mtime_ns)
    if suffix not in benchmark.languages:
        raise CalibrationValueError(f"language: {path} has {', '.join(benchmark.languages)}, got {suffix!r}")
    config: dict[str, Any] = _resolved(benchmark.config(suffix))
    # Logs are read by these, as a task's name alone does not tell (la: Latin, or Latin America?).
    told = {"benchmark": f"calib_{benchmark.name}", "language": benchmark.languages[suffix]}
    return {**config, "metadata": {**config.get("metadata", {}), **told}}


@functools.cache
def _read(folder: Path, _: int) -> Benchmark:
    return read_benchmark(folder)


def _resolved(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item) for item in value]
    if not isinstance(value, Function):
        return value
    module, _, name = value.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CalibrationValueError(
            f"!function {value}: expected an importable package.module.name ({error})"
        ) from None
