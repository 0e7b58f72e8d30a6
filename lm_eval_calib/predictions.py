"""The predictions table: one row a question, whatever log it came from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lm_eval_calib.confidence import choice_probabilities
from lm_eval_calib.errors import CalibrationValueError, MissingExtraError

if TYPE_CHECKING:
    import pandas
    import polars

NORMALIZATIONS = {"none": None, "char": "choice_chars", "byte": "choice_bytes", "token": "choice_tokens"}
_WORD = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {
        "run": _WORD,  # the name that reports use
        "model": _WORD,
        "task": _WORD,
        "benchmark": _WORD,  # the task's name less language and subject
        "language": _WORD,  # as the task spells it ("sw", "swh_Latn"); null if unknown
        "tier": _WORD,  # high, mid, low; null if unknown
        "subject": _WORD,
        "doc_id": pa.int64(),
        "log_likelihoods": pa.list_(pa.float64()),  # one a choice, nats, not normalised
        "choice_chars": pa.list_(pa.int32()),  # null where the log does not tell
        "choice_bytes": pa.list_(pa.int32()),  # UTF-8
        "choice_tokens": pa.list_(pa.int32()),  # null unless a tokenizer was given
        "gold": pa.list_(pa.int32()),  # the set of right choices
        "doc_hash": pa.string(),  # SHA-256 of the document: pairs questions of two runs
        "prompt_hash": pa.string(),
        "target_hash": pa.string(),
        "source": _WORD,  # the log's path
        "line": pa.int64(),  # line in it, from 1 (element of the array for lm-eval 0.4.2)
    }
)
_META = b"lm_eval_calib"


@dataclass(frozen=True)
class TaskRun:
    """One task of one run, as its log and results file tell it; None where they do not."""

    run: str
    model: str
    task: str
    benchmark: str
    language: str | None
    source: str
    questions: int
    expected: int | None = None  # questions that the harness says it scored
    version: str | None = None
    num_fewshot: int | None = None
    num_bins: int | None = None
    normalization: str | None = None
    prompt: str | None = None  # digest of templates, delimiters and description
    chat_template: str | None = None  # its SHA, or "yes"
    system_instruction: str | None = None
    lm_eval_version: str | None = None
    transformers_version: str | None = None
    model_args: str | None = None
    softmax_dtype: str | None = None
    date: str | None = None
    limit: float | None = None
    disagreements: int = 0  # rows whose logged `acc` is not what gold and log-likelihoods give


@dataclass(frozen=True)
class Problem:
    """Rows of one file that could not be used, for one reason."""

    run: str
    task: str
    source: str
    reason: str
    count: int
    lines: tuple[int, ...] = ()  # the first few

    def __str__(self) -> str:
        places = ", ".join(map(str, self.lines)) + (", ..." if self.count > len(self.lines) else "")
        where = f"{self.source}:{self.lines[0]}" if self.count == 1 and self.lines else self.source
        detail = f" (lines {places})" if self.count > 1 and self.lines else ""
        return f"{where}: {self.count:,} row{'s' * (self.count != 1)} not used: {self.reason}{detail}"


@dataclass(frozen=True)
class Predictions:
    """Questions of one or more runs.

    Attributes:
        table: A pyarrow Table of the columns of `SCHEMA`, sorted by run, task and document.
        tasks: What is known about each task of each run.
        problems: Rows that could not be used, counted by file and reason.
        notes: Logs that were passed over, and other remarks for the reader.
    """

    table: pa.Table
    tasks: tuple[TaskRun, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        unused = sum(problem.count for problem in self.problems)
        return (
            f"Predictions({len(self):,} questions, {len(self.runs)} runs, {len(self.tasks)} tasks, "
            f"{unused:,} rows not used)"
        )

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs, in the order they were given."""
        return tuple(dict.fromkeys(task.run for task in self.tasks))

    def column(self, name: str) -> NDArray[Any]:
        """A column as a NumPy array; strings as objects, None where null."""
        column = self.table[name]
        if pa.types.is_dictionary(column.type):
            values, codes = self.words(name)
            # A string object a distinct value, not a row.
            return np.array([*values, None], dtype=object)[codes]
        return np.asarray(column.to_numpy())

    def words(self, name: str) -> tuple[list[str | None], NDArray[np.int64]]:
        """The distinct values of a column of words, null among them, and [N] codes into them."""
        column = self.table[name]
        if not len(column):
            return [], np.zeros(0, np.int64)
        array = pa.concat_arrays(column.unify_dictionaries().chunks)
        values = [*array.dictionary.to_pylist(), None]
        codes = pc.fill_null(array.indices, len(values) - 1).to_numpy()
        used, codes = np.unique(codes, return_inverse=True)
        return [values[code] for code in used], codes.astype(np.int64)

    def codes(self, name: str) -> NDArray[np.int64]:
        """[N] numbers from 0, equal where a column of hashes or document numbers is equal."""
        column = pc.dictionary_encode(self.table[name])
        return np.concatenate([np.zeros(0, np.int64), *(chunk.indices.to_numpy() for chunk in column.chunks)])

    def select(self, mask: NDArray[np.bool_]) -> Predictions:
        """The questions that a boolean mask selects."""
        return dataclasses.replace(self, table=self.table.filter(pa.array(mask)))

    def gold(self) -> NDArray[np.bool_]:
        """[N, K] whether a choice is right."""
        offsets, values = _lists(self.table["gold"])
        rows = np.repeat(np.arange(len(self)), np.diff(offsets))
        choices = np.diff(_lists(self.table["log_likelihoods"])[0])
        mask = np.zeros((len(self), int(choices.max(initial=0))), dtype=np.bool_)
        mask[rows, values] = True
        return mask

    def probabilities(self, *, normalization: str | None = None, temperature: float = 1.0) -> NDArray[np.float64]:
        """[N, K] probabilities of the choices, padded with NaN.

        `normalization` is none, char, byte or token; None takes what each task's own configuration
        says, which is `none` for tasks that are not ours.
        """
        likelihoods, lengths = self.log_likelihoods(), self.lengths(normalization)
        return np.asarray(choice_probabilities(likelihoods, lengths=lengths, temperature=temperature))

    def lengths(self, normalization: str | None = None) -> NDArray[np.float64]:
        """[N, K] what log-likelihoods are divided by, padded with NaN; 1 for `none`."""
        likelihoods = self.log_likelihoods()
        divisor = np.ones_like(likelihoods)
        for name, rows in self._by_normalization(normalization):
            if (column := NORMALIZATIONS[name]) is not None:
                divisor[rows] = self._lengths(column, rows, likelihoods.shape[1], name)
        divisor[np.isnan(likelihoods)] = np.nan
        return divisor

    def log_likelihoods(self) -> NDArray[np.float64]:
        """[N, K] log-likelihoods as logged, padded with NaN."""
        offsets, values = _lists(self.table["log_likelihoods"])
        return _padded(offsets, values.astype(np.float64), int(np.diff(offsets).max(initial=0)))

    def _by_normalization(self, normalization: str | None) -> Iterator[tuple[str, NDArray[np.intp]]]:
        if normalization is not None:
            if normalization not in NORMALIZATIONS:
                raise CalibrationValueError(
                    f"normalization: expected one of {', '.join(NORMALIZATIONS)}, got {normalization!r}"
                )
            yield normalization, np.arange(len(self))
            return
        own = {(task.run, task.task): task.normalization or "none" for task in self.tasks}
        if set(own.values()) <= {"none"}:
            return
        names = np.array([own.get(key, "none") for key in zip(self.column("run"), self.column("task"), strict=True)])
        for name in dict.fromkeys(names.tolist()):
            yield name, np.flatnonzero(names == name)

    def _lengths(self, column: str, rows: NDArray[np.intp], width: int, name: str) -> NDArray[np.float64]:
        lengths = self.table[column].take(pa.array(rows))
        if lengths.null_count:
            first = self.table.take([int(rows[int(pc.index(pc.is_null(lengths), True).as_py())])])
            task, source = first["task"][0].as_py(), first["source"][0].as_py()
            remedy = (
                "pass the model's tokenizer (--tokenizer NAME)"
                if name == "token"
                else "the log does not contain the choices' texts; use normalization none"
            )
            raise CalibrationValueError(
                f"normalization: {name!r} needs the lengths of the choices, which {lengths.null_count:,} "
                f"questions lack (first: task {task}, {source}); {remedy}"
            )
        offsets, values = _lists(lengths)
        padded = _padded(offsets, values.astype(np.float64), width)
        if (empty := np.flatnonzero((padded == 0).any(axis=1))).size:
            at = self.table.take([int(rows[empty[0]])])
            raise CalibrationValueError(
                f"normalization: {name!r} cannot divide by the length of an empty choice, got one in "
                f"{at['source'][0].as_py()}:{at['line'][0].as_py()} ({empty.size:,} such questions); "
                "use normalization none"
            )
        return padded

    def to_pandas(self) -> pandas.DataFrame:
        """A pandas DataFrame; words become categories, lists arrays."""
        try:
            import pandas  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("to_pandas", "report", error) from error
        return self.table.to_pandas()

    def to_polars(self) -> polars.DataFrame:
        """A polars DataFrame over the same memory."""
        try:
            import polars
        except ImportError as error:
            raise CalibrationValueError(f"to_polars needs polars ({error}): pip install polars") from error
        return polars.DataFrame(polars.from_arrow(self.table))

    def write_parquet(self, path: str | Path) -> Path:
        """Write table, tasks and problems into one Parquet file; `read_parquet` and any reader opens it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {
            "tasks": [dataclasses.asdict(task) for task in self.tasks],
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
            "notes": list(self.notes),
        }
        meta = {**(self.table.schema.metadata or {}), _META: json.dumps(told).encode()}
        beside = path.with_name(f".{path.name}.part")
        try:
            pq.write_table(self.table.replace_schema_metadata(meta), beside, compression="zstd")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        return path

    @staticmethod
    def read_parquet(path: str | Path) -> Predictions:
        """Read what `write_parquet` wrote."""
        try:
            table = pq.read_table(path)
            told = json.loads((table.schema.metadata or {})[_META])
            return Predictions(
                table=table.cast(SCHEMA),
                tasks=tuple(TaskRun(**task) for task in told["tasks"]),
                problems=tuple(Problem(**{**p, "lines": tuple(p["lines"])}) for p in told["problems"]),
                notes=tuple(told["notes"]),
            )
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise CalibrationValueError(
                f"{path}: expected a predictions table written by lm-eval-calib, got something else "
                f"({error}); make it again from the sample logs"
            ) from error


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Several sets of questions as one."""
    tables = [part.table for part in parts]
    return Predictions(
        table=pa.concat_tables(tables) if tables else SCHEMA.empty_table(),
        tasks=_chain(parts, lambda part: part.tasks),
        problems=_chain(parts, lambda part: part.problems),
        notes=_chain(parts, lambda part: part.notes),
    )


def _chain(parts: Sequence[Predictions], get: Callable[[Predictions], tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(item for part in parts for item in get(part))


def _lists(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Offsets [N + 1] from 0 and flat values of a list column without nulls."""
    offsets, values, start = [np.zeros(1, np.int64)], [], 0
    for chunk in column.chunks:
        mine = chunk.offsets.to_numpy().astype(np.int64)
        offsets.append(mine[1:] - mine[0] + start)
        values.append(chunk.values.slice(mine[0], mine[-1] - mine[0]).to_numpy(zero_copy_only=False))
        start += int(mine[-1] - mine[0])
    return np.concatenate(offsets), np.concatenate(values) if values else np.empty(0)


def _padded(offsets: NDArray[np.int64], values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    real = np.arange(width) < np.diff(offsets)[:, None]
    padded = np.full(real.shape, np.nan)
    padded[real] = values
    return padded
