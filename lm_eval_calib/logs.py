"""lm-eval's sample logs and results files, of any release from 0.4.2 on, as one predictions table."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from lm_eval_calib.errors import CalibrationValueError, MissingExtraError
from lm_eval_calib.logfiles import (
    LogFile,
    as_runs,
    find_logs,
    mapping,
    read_results,
    text,
    told_model,
)
from lm_eval_calib.logrows import REASONS
from lm_eval_calib.logtable import Log, read_log
from lm_eval_calib.predictions import SCHEMA, Predictions, Problem, TaskRun, concatenate
from lm_eval_calib.tasknames import TaskName, is_language, parse_task_name, tier_of

Source = str | Path | Sequence["str | Path"] | Mapping[str, "str | Path | Sequence[str | Path]"]


def load_predictions(
    source: Source,
    *,
    languages: Mapping[str, str] | None = None,
    tokenizer: str | None = None,
    filter: str | None = None,
    strict: bool = False,
    progress: bool | None = None,
) -> Predictions:
    """Read lm-eval's sample logs, or a predictions table that was written before.

    Args:
        source: a sample log, a results file (its sample logs are read), a folder (searched in depth) or a
            Parquet file of `Predictions.write_parquet`; a list of them; or a mapping from names of runs to
            them. Without names, every model folder is a run with the model's name.
        languages: from task name (or pattern with `*`) to language code, where the name does not tell.
        tokenizer: name or folder of the model's tokenizer, which fills `choice_tokens`.
        filter: name of the filter to read; by default "none" where a log has it, else the log's first.
        strict: raise for the first row that cannot be used, instead of counting it.
        progress: show a bar; by default on a terminal.

    Returns:
        The questions of the latest log of each task of each run. Rows that could not be used are counted in
        `.problems`, older logs in `.notes`.

    Raises:
        CalibrationValueError: a path does not exist, holds no sample logs, or is none.
    """
    for pattern, code in (languages or {}).items():
        if not is_language(code):
            raise CalibrationValueError(f"languages: {code!r} (for {pattern!r}) is not a known language code")
    named = source if isinstance(source, Mapping) else {"": source}
    plan: list[tuple[str, LogFile]] = []
    parts: list[Predictions] = []
    notes: list[str] = []
    for name, where in named.items():
        files: list[LogFile] = []
        for path in [where] if isinstance(where, str | Path) else where:
            if Path(path).suffix == ".parquet":
                parts.append(_renamed(Predictions.read_parquet(path), name))
            else:
                files += find_logs(Path(path))
        plan += as_runs(name, files, notes)
    results = {path: read_results(path) for path in {log.results for _, log in plan} if path is not None}
    count_tokens = _token_counter(tokenizer) if tokenizer else None
    total = sum(log.path.stat().st_size for _, log in plan)
    shown = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=total, unit="B", unit_scale=True, desc="reading logs", disable=not shown, delay=1) as bar:
        for run, log in plan:
            told = results.get(log.results, {}) if log.results else {}
            parts.append(_read(run, log, told, languages or {}, filter, count_tokens, strict, bar.update))
    together = concatenate(parts)
    return replace(together, notes=(*notes, *together.notes))


def _read(
    run: str,
    log: LogFile,
    told: Mapping[str, Any],
    languages: Mapping[str, str],
    keep_filter: str | None,
    count_tokens: Callable[[str, str], int] | None,
    strict: bool,
    on_bytes: Callable[[int], Any],
) -> Predictions:
    """One log as predictions."""
    config = mapping(mapping(told.get("configs")).get(log.task))
    if keep_filter is None and any(
        key.endswith(",none") for key in mapping(mapping(told.get("results")).get(log.task))
    ):
        keep_filter = "none"
    read = read_log(log.path, config=config, keep_filter=keep_filter, count_tokens=count_tokens, on_bytes=on_bytes)
    rows = read.table
    named = parse_task_name(log.task, config)
    forced = next((code for pattern, code in languages.items() if fnmatch.fnmatch(log.task, pattern)), None)
    language = forced or named.language
    if language is None and (group := _group_of(log.task, told)):
        named = TaskName(group, None, log.task.removeprefix(f"{group}_"))
    task = _task_run(run, log, told, config, named.benchmark, language, read)
    same = {
        "run": run,
        "model": task.model,
        "task": log.task,
        "benchmark": named.benchmark,
        "language": language,
        "tier": tier_of(language),
        "source": str(log.path),
    }
    word = SCHEMA.field("run").type
    columns: dict[str, Any] = {}
    for field in SCHEMA:
        if field.name in same:
            value = pa.array([same[field.name]], pa.string())
            codes = pa.repeat(pa.scalar(0, pa.int32()), rows.num_rows)
            columns[field.name] = (
                pa.nulls(rows.num_rows, word)
                if same[field.name] is None
                else pa.DictionaryArray.from_arrays(codes, value)
            )
        else:
            columns[field.name] = rows[field.name]
    if named.subject is not None:  # a stock task a subject: its name tells better than the documents
        codes = pa.repeat(pa.scalar(0, pa.int32()), rows.num_rows)
        columns["subject"] = pa.DictionaryArray.from_arrays(codes, pa.array([named.subject]))
    problems = tuple(
        Problem(run, log.task, str(log.path), REASONS[reason], count, tuple(read.places[reason]))
        for reason, count in read.unusable.items()
        if reason != "filter"
    )
    if strict and problems:
        raise CalibrationValueError(f"{problems[0]}; without --strict such rows are counted and left out")
    notes = []
    if passed := read.unusable.get("filter"):
        notes.append(f"{log.path}: {passed:,} rows of other filters passed over")
    return Predictions(pa.table(columns, schema=SCHEMA), (task,), problems, tuple(notes))


def _group_of(task: str, told: Mapping[str, Any]) -> str | None:
    """The group whose subject a task is: `mmlu` for `mmlu_anatomy`. Its subjects are pooled."""
    groups = mapping(told.get("group_subtasks"))

    def holds(group: str, seen: frozenset[str]) -> bool:
        members = groups.get(group)
        if not isinstance(members, list) or group in seen:
            return False
        return task in members or any(holds(str(member), seen | {group}) for member in members)

    named = [group for group in groups if task.startswith(f"{group}_") and holds(group, frozenset())]
    return max(named, key=len, default=None)


def _task_run(
    run: str,
    log: LogFile,
    told: Mapping[str, Any],
    config: Mapping[str, Any],
    benchmark: str,
    language: str | None,
    read: Log,
) -> TaskRun:
    """What the results file tells about a task; every field is optional in some release."""
    settings, metadata = mapping(told.get("config")), mapping(config.get("metadata"))
    counts = mapping(mapping(told.get("n-samples")).get(log.task))
    versions, shots = mapping(told.get("versions")), mapping(told.get("n-shot"))
    model_args = settings.get("model_args")
    if isinstance(model_args, Mapping):
        model_args = ",".join(f"{key}={value}" for key, value in model_args.items())
    dtype = re.search(r"softmax_dtype=(?:torch\.)?([\w]+)", str(model_args or ""))
    template = told.get("chat_template_sha") or ("yes" if told.get("chat_template") else None)
    keys = (
        "doc_to_text",
        "doc_to_choice",
        "doc_to_target",
        "target_delimiter",
        "fewshot_delimiter",
        "description",
    )
    prompt = json.dumps([config.get(key) for key in keys], sort_keys=True, default=str) if config else None
    version = versions.get(log.task)
    num_bins, normalization = metadata.get("num_bins"), metadata.get("normalization")
    return TaskRun(
        run=run,
        model=told_model(told) or log.path.resolve().parent.name,
        task=log.task,
        benchmark=benchmark,
        language=language,
        source=str(log.path),
        questions=read.table.num_rows,
        expected=_integer(counts.get("effective")),
        version=None if version is None else str(version),
        num_fewshot=_integer(shots.get(log.task)),
        num_bins=_integer(num_bins),
        normalization=normalization if isinstance(normalization, str) else None,
        prompt=hashlib.sha256(prompt.encode()).hexdigest()[:12] if prompt else None,
        chat_template=template if isinstance(template, str) else None,
        system_instruction=text(told.get("system_instruction")),
        lm_eval_version=text(told.get("lm_eval_version")),
        transformers_version=text(told.get("transformers_version")),
        model_args=text(model_args),
        softmax_dtype=dtype[1] if dtype else None,
        date=log.date or None,
        limit=settings["limit"] if isinstance(settings.get("limit"), int | float) else None,
        disagreements=read.disagreements,
    )


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _renamed(predictions: Predictions, name: str) -> Predictions:
    """A stored table under the run's name that the caller gave."""
    if not name:
        return predictions
    if len(predictions.runs) > 1:
        raise CalibrationValueError(
            f"run {name!r}: expected a table of one run, got {len(predictions.runs)} "
            f"({', '.join(predictions.runs)}); give it without a name"
        )
    codes = pa.repeat(pa.scalar(0, pa.int32()), len(predictions))
    position = SCHEMA.get_field_index("run")
    column = pa.DictionaryArray.from_arrays(codes, pa.array([name]))
    return replace(
        predictions,
        table=predictions.table.set_column(position, SCHEMA.field("run"), column),
        tasks=tuple(replace(task, run=name) for task in predictions.tasks),
        problems=tuple(replace(problem, run=name) for problem in predictions.problems),
    )


def _token_counter(name: str) -> Callable[[str, str], int]:
    """Tokens of a continuation after its context, as lm-eval splits them.

    Only the context's last word is tokenised with the continuation: what stands before it does not change the
    split of what follows, in tokenizers that split at white space first or mark it.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("counting tokens", "hf", error) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CalibrationValueError(f"tokenizer: cannot load {name!r} ({error})") from error

    @cache
    def length(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False)) if text else 0

    def count(context: str, continuation: str) -> int:
        # lm-eval moves the context's trailing spaces to the continuation.
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        tail = kept[kept.rfind(" ", 0, len(kept)) :] if kept else ""
        return length(tail[-40:] + continuation) - length(tail[-40:]) if tail else length(continuation)

    return count
