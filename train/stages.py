"""From a study to its stages: ordinary commands, what each needs, and how one sees that it is done.

The folder of a stage's results carries a key of all that goes into them (command, data, and so the stages
before), so a changed setting gets a new folder and a finished stage is one whose results are there, whoever
ran the command.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import babel

from lm_eval_calib import __version__
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.train.study_config import DEMO, Evaluation, InstructionSet, ModelSpec, Study

# Launchers that start a Python module themselves; all others get a whole command.
MODULE_LAUNCHERS = ("accelerate", "torchrun")
_SAMPLES = 16
_BLOCK = 65536


@dataclass(frozen=True)
class Stage:
    """One command of a study.

    Attributes:
        name: Unique, for people: `train base-alpaca-lr1e-05-ls0.1-seed0`.
        kind: data, train, evaluate or report.
        module: What `python -m` runs.
        arguments: The module's arguments.
        output: File or folder of the results.
        needs: Names of the stages that must be done before.
        run: The run that the results belong to.
    """

    name: str
    kind: str
    module: str
    arguments: tuple[str, ...]
    output: Path
    needs: tuple[str, ...] = ()
    run: str = ""

    def command(self, launcher: Sequence[str] = ()) -> list[str]:
        """The command, behind the launcher if the stage uses a model."""
        if not launcher or self.kind not in ("train", "evaluate"):
            return [sys.executable, "-m", self.module, *self.arguments]
        if Path(launcher[0]).name in MODULE_LAUNCHERS:
            return [*launcher, "-m", self.module, *self.arguments]
        return [*launcher, sys.executable, "-m", self.module, *self.arguments]

    def finished(self) -> bool:
        """Whether the results are there, whole."""
        if self.kind == "train":
            return (self.output / "calibration_training.json").is_file()
        if self.kind == "evaluate":
            return evaluation_is_whole(self.output)
        return self.output.exists()


@dataclass(frozen=True)
class Run:
    """One model of the comparison: a base model, or a base model tuned in one way."""

    name: str
    model: str
    instruction_set: str | None = None
    learning_rate: float | None = None
    label_smoothing: float | None = None
    seed: int | None = None


def runs(study: Study) -> list[Run]:
    """All models of the comparison, base models first."""
    result = [Run(name, name) for name in study.models]
    for model in study.models:
        for data in study.instruction_sets:
            for rate in study.learning_rates:
                for smoothing in study.label_smoothing:
                    for seed in study.seeds:
                        name = f"{model}-{data}-lr{rate:g}-ls{smoothing:g}-seed{seed}"
                        result.append(Run(name, model, data, rate, smoothing, seed))
    return result


def stages(study: Study) -> list[Stage]:
    """The stages of a study in the order in which they are best run."""
    result: list[Stage] = []
    data_stages = {}
    for name, part in study.instruction_sets.items():
        if part.english_instructions is not None:
            data_stages[name] = _data(study, name, part)
            result.append(data_stages[name])
    for run in runs(study):
        spec = study.models[run.model]
        pretrained = model_path(spec)
        needs: tuple[str, ...] = ()
        if run.instruction_set is not None:
            tune = _train(study, run, data_stages.get(run.instruction_set))
            result.append(tune)
            pretrained, needs = str(tune.output), (tune.name,)
        for name, evaluation in study.evaluations.items():
            result.append(_evaluate(study, run, name, evaluation, pretrained, needs))
    return result


def settled(plan: Sequence[Stage]) -> set[str]:
    """Names of the stages that need not run: finished ones, and those whose only use is for finished ones."""
    names = {stage.name for stage in plan if stage.finished()}
    for stage in reversed(plan):
        users = [other.name for other in plan if stage.name in other.needs]
        if users and names.issuperset(users):
            names.add(stage.name)
    return names


def report(study: Study, done: Sequence[Stage]) -> tuple[str, list[Stage]]:
    """What the report reads, as JSON, and its stages: the study's own answers, and the page of `lm-eval-calib report`.

    `done` are the finished evaluations; another set of them makes another report.
    """
    design = json.dumps(design_of(study, done), indent=1, default=str)
    digest = hashlib.sha256(design.encode()).hexdigest()[:10]
    folder = study.output_dir / "report"
    own = (str(folder / f"design-{digest}.json"), "--out", str(folder))
    page = folder / f"page-{digest}"
    arguments = [word for stage in done for word in ("--run", f"{stage.run}={stage.output}")]
    if done and done[0].run in study.models:
        arguments += ["--baseline", done[0].run]
    return design, [
        Stage("report", "report", "lm_eval_calib.report.study", own, folder / f"finished-{digest}"),
        Stage("page", "report", "lm_eval_calib", ("report", *arguments, "--out", str(page)), page / "report.html"),
    ]


def design_of(study: Study, done: Sequence[Stage]) -> dict[str, Any]:
    """What the report needs to know: the runs, the evaluations, and where the results of each lie."""
    where = {stage.name: str(stage.output) for stage in done}
    table = []
    for run in runs(study):
        logs = {name: where.get(f"evaluate {run.name} {name}") for name in study.evaluations}
        table.append(
            {
                **run.__dict__,
                "pretrained": model_path(study.models[run.model]),
                "logs": {name: path for name, path in logs.items() if path},
            }
        )
    return {
        "name": study.name,
        "runs": table,
        "evaluations": {
            name: {"tasks": list(part.tasks), "normalizations": list(part.normalizations)}
            for name, part in study.evaluations.items()
        },
        "options": dict(study.report),
        "missing": sum(len(study.evaluations) - len(entry["logs"]) for entry in table),
    }


def _data(study: Study, name: str, part: InstructionSet) -> Stage:
    options = dict(part.english_instructions or {})
    if unknown := set(options) - {"forms", "limit"}:
        raise CalibrationValueError(
            f"instruction_sets.{name}.english_instructions: unknown key {', '.join(sorted(unknown))}; "
            "known are forms, limit"
        )
    arguments = tuple(_flags(options))
    key = digest_of("lm_eval_calib.cldr_instructions", arguments, extra=f"{__version__} {babel.__version__}")
    output = study.output_dir / "data" / f"{name}-{key}.jsonl"
    return Stage(f"data {name}", "data", "lm_eval_calib.cldr_instructions", (str(output), *arguments), output)


def _train(study: Study, run: Run, data: Stage | None) -> Stage:
    spec = study.models[run.model]
    assert run.instruction_set is not None
    part = study.instruction_sets[run.instruction_set]
    pretrained = model_path(spec)
    files = [path.format(data=study.data) for path in part.train_data]
    options: dict[str, Any] = {
        **study.training,
        **spec.training,
        **part.training,
        "model_name_or_path": pretrained,
        "train_data": [*files, *([str(data.output)] if data else [])],
        "learning_rate": run.learning_rate,
        "label_smoothing_factor": run.label_smoothing,
        "seed": run.seed,
    }
    arguments = tuple(_flags(options))
    key = digest_of("train", arguments, paths=[pretrained, *files], root=study.output_dir)
    output = study.output_dir / "models" / f"{run.name}-{key}"
    needs = (data.name,) if data else ()
    arguments = (*arguments, "--output_dir", str(output))
    return Stage(f"train {run.name}", "train", "lm_eval_calib.train", arguments, output, needs, run.name)


def _evaluate(study: Study, run: Run, name: str, part: Evaluation, pretrained: str, needs: tuple[str, ...]) -> Stage:
    model_args = {**part.model_args, **study.models[run.model].model_args, "pretrained": pretrained}
    pairs = [f"{key}={value}" for key, value in model_args.items()]
    options = {key: _with_data(value, study.data) for key, value in part.arguments.items()}
    tasks = [task.format(data=study.data) for task in part.tasks]
    arguments = ("run", "--model", part.model, "--model_args", *pairs, "--tasks", *tasks, *_flags(options))
    arguments = (*arguments, "--log_samples")
    paths = [] if needs else [pretrained]
    paths += [str(options["include_path"])] if "include_path" in options else []
    key = digest_of("evaluate", arguments, paths=paths, root=study.output_dir)
    output = study.output_dir / "evaluations" / f"{run.name}-{name}-{key}"
    arguments = (*arguments, "--output_path", str(output))
    if part.cache:  # its keys do not name the model, so each evaluation has its own
        arguments = (*arguments, "--use_cache", str(output) + "-cache")
    return Stage(f"evaluate {run.name} {name}", "evaluate", "lm_eval", arguments, output, needs, run.name)


def _with_data(value: Any, folder: str) -> Any:
    return value.format(data=folder) if isinstance(value, str) and "{data}" in value else value


def _flags(options: Mapping[str, Any]) -> Iterator[str]:
    """`{"a": 1, "b": [x, y], "c": True}` as `--a 1 --b x y --c true`; None leaves an option out."""
    for key, value in options.items():
        if value is None:
            continue
        yield f"--{key}"
        if isinstance(value, dict):
            yield json.dumps(value)
        elif isinstance(value, list | tuple):
            yield from map(str, value)
        else:
            yield str(value).lower() if isinstance(value, bool) else str(value)


def model_path(spec: ModelSpec) -> str:
    """Folder or hub id of a model; the demo's is made on first use."""
    if spec.pretrained != DEMO:
        return spec.pretrained
    from lm_eval_calib.demo import demo_model

    return str(demo_model())


def digest_of(
    kind: str,
    arguments: Sequence[str],
    *,
    paths: Sequence[str] = (),
    root: Path | None = None,
    extra: str = "",
) -> str:
    """A key of a command and the content of the local files that it reads, wherever they lie."""
    texts = list(arguments)
    for path in paths:
        if Path(path).exists():
            texts = [text.replace(path, fingerprint(Path(path))) for text in texts]
    if root is not None:
        texts = [text.replace(str(root), "") for text in texts]
    return hashlib.sha256(json.dumps([kind, texts, extra]).encode()).hexdigest()[:10]


@functools.cache
def fingerprint(path: Path) -> str:
    """A hash of a file, or of all files of a folder; of a file beyond 1 MiB, of its size and 16 parts."""
    digest = hashlib.sha256()
    members = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for member in members:
        size = member.stat().st_size
        digest.update(f"{member.relative_to(path) if path.is_dir() else ''}\0{size}\0".encode())
        with member.open("rb") as stream:
            if size <= _SAMPLES * _BLOCK:
                digest.update(stream.read())
                continue
            # Weights: another model differs everywhere, and reading 16 GB to see no change is a nuisance.
            for part in range(_SAMPLES):
                stream.seek((size - _BLOCK) * part // (_SAMPLES - 1))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()[:16]


def evaluation_is_whole(folder: Path) -> bool:
    """Whether lm-eval wrote its results and, of every task, all samples."""
    results = sorted(folder.rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    if not results:
        return False
    try:
        content = json.loads(results[-1].read_text(encoding="utf-8"))
    except ValueError:
        return False
    stamp = results[-1].stem.removeprefix("results_")
    for task, count in content.get("n-samples", {}).items():
        log = results[-1].with_name(f"samples_{task}_{stamp}.jsonl")
        # A row a question and filter.
        if not log.is_file() or (rows := _lines(log)) < count["effective"] or rows % count["effective"]:
            return False
    return True


def _lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
