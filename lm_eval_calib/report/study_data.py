"""The questions that all runs of a study answered, one row a question, one column a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lm_eval_calib.confidence import choice_probabilities
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.logs import load_predictions
from lm_eval_calib.predictions import Predictions
from lm_eval_calib.tasknames import parse_task_name

_META = b"lm_eval_calib.study"


@dataclass(frozen=True)
class Questions:
    """One benchmark's questions and what each run gave their choices.

    Attributes:
        benchmark: Its name.
        task, language, tier, cluster: [N] of each question; questions of one cluster are one question in
        several
            languages, and are resampled together.
        gold: [N, K] whether a choice is right.
        lengths: [N, K] of the choices: by `char`, `byte` and `token:RUN`, in tokens of that run's tokenizer;
        NaN where
            there is no such choice.
        log_likelihoods: [N, K] of each run.
        tokens: From a run to the run that its token lengths are named by.
        dropped: Questions that not all runs answered.
        unusable: Rows of the logs, over all runs, that could not be read.
    """

    benchmark: str
    task: NDArray[Any]
    language: NDArray[Any]
    tier: NDArray[Any]
    cluster: NDArray[np.int64]
    gold: NDArray[np.bool_]
    lengths: Mapping[str, NDArray[np.float64]]
    log_likelihoods: Mapping[str, NDArray[np.float64]]
    tokens: Mapping[str, str] = field(default_factory=dict)
    dropped: int = 0
    unusable: int = 0

    def __len__(self) -> int:
        return len(self.task)

    def probabilities(self, run: str, *, normalization: str = "none", temperature: Any = 1.0) -> NDArray[np.float64]:
        """[N, K] probabilities of the choices of one run; `temperature` is one, or one a question."""
        plain = normalization == "none"
        divisor = np.ones_like(self.log_likelihoods[run]) if plain else self._lengths(run, normalization)
        divisor = np.where(np.isnan(self.log_likelihoods[run]), np.nan, divisor)
        divisor = divisor * np.reshape(np.asarray(temperature, dtype=np.float64), (-1, 1))
        return np.asarray(choice_probabilities(self.log_likelihoods[run], lengths=divisor))

    def changes_nothing(self, normalization: str) -> bool:
        """Whether all choices have length 1, as letters do, so that this normalisation comes to the same as none."""
        if normalization == "none":
            return False
        lengths = [self._lengths(run, normalization) for run in self.log_likelihoods]
        return all(bool((np.nan_to_num(values, nan=1) == 1).all()) for values in lengths)

    def _lengths(self, run: str, normalization: str) -> NDArray[np.float64]:
        key = f"token:{self.tokens.get(run)}" if normalization == "token" else normalization
        if key not in self.lengths:
            raise CalibrationValueError(
                f"normalizations: {normalization!r} needs lengths that the logs of {self.benchmark} (run {run}) "
                f"do not tell; they tell {', '.join(self.lengths) or 'none'}"
            )
        return self.lengths[key]


def load_questions(
    logs: Mapping[str, Sequence[str]], *, tokenizers: Mapping[str, str] | None = None
) -> dict[str, Questions]:
    """Read the logs of all runs and keep, by benchmark, the questions that every run has that has any.

    Args:
        logs: From the name of a run to its folders of logs.
        tokenizers: From the name of a run to its tokenizer; choices are cut into tokens once a tokenizer.

    Returns:
        Benchmark -> questions, in the order of the first run.
    """
    parts: dict[str, Predictions] = {}
    tokens: dict[str, str] = {}
    first_with: dict[str, str] = {}
    for name, folders in logs.items():
        tokenizer = (tokenizers or {}).get(name)
        if tokenizer is not None:
            tokens[name] = first_with.setdefault(tokenizer, name)
        parts[name] = load_predictions({name: list(folders)}, tokenizer=tokenizer if tokens.get(name) == name else None)
    for problem in (problem for part in parts.values() for problem in part.problems):
        print(problem, file=sys.stderr)
    benchmarks = dict.fromkeys(word for part in parts.values() for word in part.column("benchmark"))
    return {name: _align(name, parts, tokens) for name in benchmarks}


def _align(benchmark: str, parts: Mapping[str, Predictions], tokens: Mapping[str, str]) -> Questions:
    own = {name: part.select(part.column("benchmark") == benchmark) for name, part in parts.items()}
    own = {name: part for name, part in own.items() if len(part)}
    places = {
        name: {key: row for row, key in enumerate(zip(part.column("task"), part.column("doc_hash"), strict=True))}
        for name, part in own.items()
    }
    shared = set.intersection(*(set(place) for place in places.values()))
    first = next(iter(own))
    keys = [key for key in places[first] if key in shared]
    if not keys:
        raise CalibrationValueError(
            f"{benchmark}: the runs {', '.join(own)} have no question in common; did the data change between them?"
        )
    rows = {name: np.array([place[key] for key in keys]) for name, place in places.items()}
    head = own[first]
    table = head.table.take(pa.array(rows[first]))
    base = replace(head, table=table)
    doc_id = np.asarray(table["doc_id"].to_numpy())
    lengths = {}
    told = {
        "char": first,
        "byte": first,
        **{f"token:{name}": name for name in own if tokens.get(name) == name},
    }
    for key, name in told.items():
        column = own[name].table[f"choice_{key.partition(':')[0]}s"]
        if column.null_count == 0:
            lengths[key] = _padded(column.take(pa.array(rows[name])))
    task = base.column("task")
    return Questions(
        benchmark=benchmark,
        task=task,
        language=np.array([code or "?" for code in base.column("language")], dtype=object),
        tier=np.array([tier or "unknown" for tier in base.column("tier")], dtype=object),
        cluster=clusters(benchmark, task, doc_id),
        gold=base.gold(),
        lengths=lengths,
        log_likelihoods={name: part.log_likelihoods()[rows[name]] for name, part in own.items()},
        tokens={name: tokens[name] for name in own if name in tokens},
        dropped=max(map(len, places.values())) - len(keys),
        unusable=sum(
            problem.count
            for part in parts.values()
            for problem in part.problems
            if parse_task_name(problem.task).benchmark == benchmark
        ),
    )


def clusters(benchmark: str, task: NDArray[Any], doc_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which questions are one question in several languages, as numbers.

    The embedded benchmark names its facts. Elsewhere tasks of equal size are taken to hold the same
    questions in the same order, as parallel benchmarks do; else every question stands alone. Parallel
    questions are harder or easier together, so resampling them apart would make intervals over languages too
    narrow.
    """
    if benchmark == "calib_cldr":
        from lm_eval_calib.cldr import questions

        names = {name: [row["id"] for row in questions(name.removeprefix("calib_cldr_"))] for name in set(task)}
        keys: list[Any] = [names[name][number] for name, number in zip(task, doc_id, strict=True)]
    else:
        sizes = {name: int(doc_id[task == name].max()) for name in set(task)}
        parallel = len(set(sizes.values())) == 1
        keys = [number if parallel else (name, number) for name, number in zip(task, doc_id, strict=True)]
    index: dict[Any, int] = {}
    return np.array([index.setdefault(key, len(index)) for key in keys], dtype=np.int64)


def _padded(column: Any) -> NDArray[np.float64]:
    rows = column.to_pylist()
    padded = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded


def write_questions(path: Path, questions: Questions) -> Path:
    """Write one benchmark's questions as Parquet: small, since what runs share is there once.

    Log-likelihoods are kept as float32, which is what models compute them in.
    """
    choices = (~np.isnan(next(iter(questions.log_likelihoods.values())))).sum(axis=1)

    def ragged(values: NDArray[Any], kind: Any) -> Any:
        inside = np.arange(values.shape[1]) < choices[:, None]
        offsets = np.concatenate([[0], np.cumsum(choices)]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(values[inside], type=kind))

    columns: dict[str, Any] = {
        name: pa.array(getattr(questions, name)).dictionary_encode() for name in ("task", "language", "tier")
    }
    columns["cluster"] = pa.array(questions.cluster, type=pa.int32())
    columns["gold"] = ragged(questions.gold, pa.bool_())
    columns |= {f"length:{key}": ragged(np.nan_to_num(v), pa.int32()) for key, v in questions.lengths.items()}
    columns |= {f"ll:{run}": ragged(v, pa.float32()) for run, v in questions.log_likelihoods.items()}
    told = {name: getattr(questions, name) for name in ("benchmark", "dropped", "unusable")}
    told["tokens"] = dict(questions.tokens)
    meta = {_META: json.dumps(told).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    pq.write_table(pa.table(columns).replace_schema_metadata(meta), beside, compression="zstd", compression_level=12)
    beside.replace(path)
    return path


def read_questions(path: Path) -> Questions:
    """Read what `write_questions` wrote."""
    table = pq.read_table(path)
    meta = (table.schema.metadata or {}).get(_META)
    if meta is None:
        raise CalibrationValueError(f"{path}: expected the questions of a study, got another Parquet file")
    told = json.loads(meta)
    gold = _padded(table["gold"])
    return Questions(
        benchmark=told["benchmark"],
        task=np.array(table["task"].to_pylist(), dtype=object),
        language=np.array(table["language"].to_pylist(), dtype=object),
        tier=np.array(table["tier"].to_pylist(), dtype=object),
        cluster=np.asarray(table["cluster"].to_numpy(), dtype=np.int64),
        gold=np.nan_to_num(gold).astype(np.bool_),
        lengths={name[7:]: _padded(table[name]) for name in table.column_names if name.startswith("length:")},
        log_likelihoods={name[3:]: _padded(table[name]) for name in table.column_names if name.startswith("ll:")},
        tokens=told["tokens"],
        dropped=told["dropped"],
        unusable=told["unusable"],
    )
