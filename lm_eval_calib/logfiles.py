"""Which files are sample logs, and which results file belongs to each."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from lm_eval_calib.errors import CalibrationValueError

_DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
_SAMPLES = re.compile(rf"samples_(?P<task>.+)_(?P<date>{_DATE})\.jsonl(?:\.gz)?")
_RESULTS = re.compile(rf".*results?(?:_(?P<date>{_DATE}))?\.json|.+_(?P<date2>{_DATE})\.json")


@dataclass(frozen=True)
class LogFile:
    """A sample log and the results file of the same evaluation."""

    path: Path
    task: str
    date: str
    results: Path | None


def find_logs(path: Path) -> list[LogFile]:
    """The sample logs at a path: one file, those of a results file, or all in a folder and below."""
    if path.is_dir():
        found = [_log_file(file) for file in sorted(path.rglob("*.jsonl*")) if _is_sample_log(file)]
        if not found:
            raise CalibrationValueError(
                f"{path}: found no sample logs (samples_*.jsonl) in this folder; run lm_eval with --log_samples"
            )
        return found
    if not path.is_file():
        raise CalibrationValueError(f"{path}: no such file or folder; give a sample log or lm-eval's output folder")
    if path.suffix == ".json":
        match = _RESULTS.fullmatch(path.name)
        date = match and (match["date"] or match["date2"])
        if match is None:
            raise CalibrationValueError(
                f"{path}: expected a sample log (.jsonl), a results file (results_<date>.json) or a folder"
            )
        siblings = [file for file in sorted(path.parent.glob("*.jsonl*")) if _is_sample_log(file)]
        found = [replace(_log_file(file), results=path) for file in siblings if not date or date in file.name]
        if not found:
            raise CalibrationValueError(
                f"{path}: found no sample logs of this evaluation beside it; run lm_eval with --log_samples"
            )
        return found
    return [_log_file(path)]


def _is_sample_log(path: Path) -> bool:
    # 0.4.2 names its logs <model_args>_<task>.jsonl, beside a results.json.
    return bool(_SAMPLES.fullmatch(path.name)) or (path.suffix == ".jsonl" and (path.parent / "results.json").is_file())


def _log_file(path: Path) -> LogFile:
    match = _SAMPLES.fullmatch(path.name)
    if match:
        date = match["date"]
        beside = [path.parent / f"results_{date}.json", *sorted(path.parent.glob(f"*_{date}.json"))]
        return LogFile(path, match["task"], date, next((file for file in beside if file.is_file()), None))
    results = path.parent / "results.json"
    if not results.is_file():
        return LogFile(path, path.name.removesuffix(".gz").removesuffix(".jsonl"), "", None)
    tasks = read_results(results).get("configs") or {}
    task = max((t for t in tasks if path.stem == t or path.stem.endswith(f"_{t}")), key=len, default=path.stem)
    return LogFile(path, task, "", results)


def as_runs(name: str, files: Sequence[LogFile], notes: list[str]) -> list[tuple[str, LogFile]]:
    """Give every log its run's name, and keep the latest log of each task of a run."""
    folders = {folder: folder.name for folder in dict.fromkeys(log.path.resolve().parent for log in files)}
    if name:
        models = {(_model_name(log) or folders[log.path.resolve().parent]) for log in files}
        if len(models) > 1:
            raise CalibrationValueError(
                f"run {name!r}: expected the logs of one model, got {len(models)} "
                f"({', '.join(sorted(models))}); name each model's folder on its own"
            )
    elif len(set(folders.values())) < len(folders):
        # The same model in several output folders: name them by enough of their paths.
        for depth in range(2, 10):
            folders = {folder: "/".join(folder.parts[-depth:]) for folder in folders}
            if len(set(folders.values())) == len(folders):
                break
    latest: dict[tuple[str, str], LogFile] = {}
    older: Counter[str] = Counter()
    for log in files:
        key = (name or folders[log.path.resolve().parent], log.task)
        kept = latest.get(key)
        if kept is not None and kept.path.resolve() != log.path.resolve():
            older[key[0]] += 1
        if kept is None or log.date > kept.date:
            latest[key] = log
    for run, count in older.items():
        notes.append(f"{run}: {count} older sample log{'s' * (count > 1)} of the same tasks passed over")
    return [(run, log) for (run, _), log in latest.items()]


def _model_name(log: LogFile) -> str | None:
    return told_model(read_results(log.results)) if log.results else None


@cache
def read_results(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes())
        if not isinstance(told, dict):
            raise ValueError("it is not a JSON object")
        return told
    except (ValueError, RecursionError) as error:
        raise CalibrationValueError(
            f"{path}: expected lm-eval's results file, got something else ({error}); copy it again, or "
            "remove it to read the sample logs without it"
        ) from error


def told_model(told: Mapping[str, Any]) -> str | None:
    settings = mapping(told.get("config"))
    args = settings.get("model_args")
    pretrained = (
        args.get("pretrained")
        if isinstance(args, Mapping)
        else dict(re.findall(r"(\w+)=([^,]+)", str(args))).get("pretrained")
    )
    return text(told.get("model_name") or pretrained)


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def sources(words: Iterable[str]) -> dict[str, list[str]] | list[str]:
    """The command line's `[NAME=]PATH ...`: a mapping if they are named, else the paths."""
    named: dict[str, list[str]] = {}
    plain: list[str] = []
    for word in words:
        name, equals, path = word.partition("=")
        if equals and name and not Path(word).exists() and "/" not in name:
            named.setdefault(name, []).append(path)
        else:
            plain.append(word)
    if named and plain:
        raise CalibrationValueError(
            f"runs: either all or none have a name, got names for {', '.join(named)} but not for {plain[0]}; "
            f"write NAME={plain[0]}"
        )
    return named or plain
