"""One sample log of lm-eval, row by row, into Arrow: a fast path for sound lines, a reason for every other one.

Documents are not built: the decoder skips what is not needed, and a batch of rows becomes Arrow arrays at once, so
that memory is that of the predictions, not of the log.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.gold import UnusableRow, gold_of

MAX_LINE = 256 * 2**20  # bytes; bounds memory on a file without line ends
BATCH = 32_768  # rows
REASONS = {
    "corrupt": "not valid JSON in UTF-8 (a truncated or corrupt line)",
    "malformed": "a field is missing or has a wrong type or value",
    "generation": "no log-likelihoods of choices (not a multiple-choice task)",
    "one_choice": "fewer than two choices",
    "mismatch": "different numbers of requests and responses",
    "non_finite": "a log-likelihood is not finite",
    "gold_unknown": "the right choice cannot be told from the log",
    "gold_range": "the right choice is none of the choices",
    "repeated": "the question stands in the log already (another filter, or a row written twice)",
    "filter": "another filter's copy of the question",
}


class _Continuation(msgspec.Struct):
    arg_1: str


class _Doc(msgspec.Struct):
    """The keys under which benchmarks keep the subject."""

    subject: Any = None
    category: Any = None
    info: Any = None


class _Row(msgspec.Struct):
    """What is read of a row; keys that are not named here are skipped without being decoded."""

    doc_id: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    target: Any
    filtered_resps: list[tuple[float, Any]]
    arguments: dict[str, _Continuation]
    doc: _Doc | str | int | float | bool | list[Any] | None = None
    filter: str = ""
    doc_hash: str = ""
    prompt_hash: str = ""
    target_hash: str = ""
    acc: Any = None
    acc_mutual_info: Any = None


@dataclass
class Log:
    """What reading one log gave: a table without the columns that are the same for all rows, and what is missing."""

    table: pa.Table | None = None
    unusable: dict[str, int] = field(default_factory=dict)  # key of REASONS -> rows
    places: dict[str, list[int]] = field(default_factory=dict)  # key of REASONS -> the first lines
    disagreements: int = 0  # rows whose logged acc is not what gold and log-likelihoods give

    def reject(self, reason: str, line: int) -> None:
        self.unusable[reason] = self.unusable.get(reason, 0) + 1
        if self.unusable[reason] <= 5:
            self.places.setdefault(reason, []).append(line)


def read_log(
    path: Path,
    *,
    config: Mapping[str, Any],
    keep_filter: str | None = None,
    count_tokens: Callable[[str, str], int] | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Log:
    """Read a sample log of lm-eval 0.4.2 or later.

    Args:
        path: `.jsonl`, or `.jsonl.gz`; one JSON object a line, or 0.4.2's indented array.
        config: the task's entry in the results file's `configs`; may be empty.
        keep_filter: the filter whose rows are read; None takes the first row's.
        count_tokens: from context and continuation to the number of the continuation's tokens.
        on_bytes: told the number of bytes read since the last call.
    """
    log = Log()
    batch = _Batch(config, count_tokens)
    tables: list[pa.RecordBatch] = []
    decode = msgspec.json.Decoder(_Row, strict=False).decode
    read, number = 0, 0
    for number, line in enumerate(_rows(path), 1):
        read += len(line)
        try:
            try:
                row = decode(line)
                full = None
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                row, full = _decode_slowly(line)
            if keep_filter is None:
                keep_filter = row.filter
            if row.filter != keep_filter and row.filter:
                raise UnusableRow("filter")
            batch.add(row, number, line, full)
        except UnusableRow as unusable:
            log.reject(unusable.reason, number)
        if not number % BATCH:
            tables.append(batch.flush(log))
            on_bytes(read)
            read = 0
    tables.append(batch.flush(log))
    on_bytes(read)
    log.table = _in_order(pa.Table.from_batches(tables), log)
    return log


def documents(path: Path, lines: set[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The whole rows at the given line numbers, for showing their texts."""
    last = max(lines, default=0)
    for number, line in enumerate(_rows(path), 1):
        if number in lines:
            yield number, json.loads(line)
        if number >= last:
            return


def _rows(path: Path) -> Iterator[bytes]:
    """The JSON objects of a log, one at a time, blank lines included so that numbers are those of an editor."""
    with _open(path) as handle:
        start = handle.read(4)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise CalibrationValueError(
                f"{path}: expected UTF-8, got UTF-16; convert it first (iconv -f UTF-16 -t UTF-8)"
            )
        handle.seek(3 if start[:3] == b"\xef\xbb\xbf" else 0)
        if start.lstrip()[:1] == b"[":
            yield from _array_elements(handle, path)
            return
        while line := handle.readline(MAX_LINE):
            yield line
            while len(line) == MAX_LINE and not line.endswith(b"\n"):
                line = handle.readline(MAX_LINE)


def _array_elements(handle: BinaryIO, path: Path) -> Iterator[bytes]:
    """The elements of 0.4.2's indented array, without holding the array.

    A JSON string has no raw line end, so a line of two spaces and a brace can only open or close an element.
    """
    element: list[bytes] = []
    elements = 0
    while line := handle.readline(MAX_LINE):
        if line.rstrip() == b"  {":
            element = [b"{"]
        elif line.rstrip() in (b"  }", b"  },"):
            yield b"".join([*element, b"}"])
            element, elements = [], elements + 1
        elif element:
            element.append(line)
    if element:  # the file ends inside an element
        yield b"".join(element)
    elif not elements:
        # Another tool's array: no line structure to go by.
        handle.seek(0)
        try:
            yield from msgspec.json.decode(handle.read(), type=list[msgspec.Raw])
        except msgspec.MsgspecError as error:
            raise CalibrationValueError(
                f"{path}: expected a sample log (JSON lines, or lm-eval 0.4.2's array), got an array that is not "
                f"valid JSON ({error}); copy the file again"
            ) from error


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb", buffering=2**20)


def _decode_slowly(line: bytes) -> tuple[_Row, dict[str, Any]]:
    """A row that the fast decoder refused: NaN literals, 0.4.2's lists, or a reason to reject it."""
    try:
        full = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise UnusableRow("corrupt") from error
    if not isinstance(full, dict):
        raise UnusableRow("malformed")
    arguments, responses = full.get("arguments"), full.get("filtered_resps")
    if isinstance(arguments, list):  # 0.4.2
        arguments = {
            str(i): dict(zip(("arg_0", "arg_1"), argument, strict=False)) if isinstance(argument, list) else argument
            for i, argument in enumerate(arguments)
        }
        full["arguments"] = arguments
    if isinstance(responses, list) and any(not isinstance(response, list) for response in responses):
        raise UnusableRow("generation")
    if isinstance(arguments, dict):
        for argument in arguments.values():
            if not isinstance(argument, dict) or not isinstance(argument.get("arg_1"), str):
                raise UnusableRow("generation")
    if not full.get("doc_hash") and "doc" in full:
        full |= _hashes(full)
    try:
        slim = {**full, "arguments": {k: {"arg_1": v["arg_1"]} for k, v in (arguments or {}).items()}}
        return msgspec.convert(slim, _Row, strict=False), full
    except (msgspec.MsgspecError, AttributeError, TypeError) as error:
        raise UnusableRow("malformed") from error


def _hashes(full: Mapping[str, Any]) -> dict[str, str]:
    """The hashes that 0.4.3 and later log, so that logs of 0.4.2 pair with them."""
    first = next(iter(full["arguments"].values()), {}) if isinstance(full.get("arguments"), dict) else {}
    texts = {
        "doc_hash": json.dumps(full["doc"], indent=2, ensure_ascii=False),
        "prompt_hash": str(first.get("arg_0", "")),
        "target_hash": str(full.get("target")),
    }
    return {name: hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest() for name, text in texts.items()}


class _Batch:
    """Rows on their way into Arrow: flat lists and counts, vectorised when they are flushed."""

    def __init__(
        self, config: Mapping[str, Any], count_tokens: Callable[[str, str], int] | None
    ) -> None:
        self.config = config
        self.count_tokens = count_tokens
        delimiter = config.get("target_delimiter", " ")
        self.delimiter = delimiter if isinstance(delimiter, str) else " "
        metadata = config.get("metadata")
        normalization = metadata.get("normalization", "none") if isinstance(metadata, Mapping) else "none"
        self.acc_is_argmax = normalization == "none"
        metrics = config.get("metric_list") or ()
        self.mutual_info = any(isinstance(m, Mapping) and m.get("metric") == "acc_mutual_info" for m in metrics)
        self.sizes: dict[str, tuple[int, int]] = {}  # continuation -> characters, bytes: letters repeat
        self._clear()

    def _clear(self) -> None:
        self.likelihoods: list[float] = []
        self.lengths: list[tuple[int, int]] = []
        self.tokens: list[int] = []
        self.sizeless: list[int] = []  # rows of the batch whose lengths are not known
        self.choices: list[int] = []
        self.gold: list[int] = []
        self.golds: list[int] = []
        self.columns: list[tuple[int, int, str, str, str, str | None, float]] = []

    def add(self, row: _Row, number: int, line: bytes, full: dict[str, Any] | None) -> None:
        responses = row.filtered_resps
        if len(row.arguments) != len(responses):
            raise UnusableRow("mismatch")
        count = len(responses)
        if self.mutual_info or row.acc_mutual_info is not None:
            if count % 2:
                raise UnusableRow("mismatch")
            count //= 2  # the unconditional responses follow the K conditional ones
        if count < 2:
            raise UnusableRow("one_choice")
        likelihoods = [response[0] for response in responses[:count]]
        for value in likelihoods:
            if not -1e300 < value < 1e300:
                raise UnusableRow("non_finite")
        texts = [argument.arg_1 for argument in row.arguments.values()][:count]
        contexts = None
        if texts[0] == texts[-1] and len(set(texts)) == 1:
            # The same continuation everywhere: a multiple-input task (winogrande), whose choices are contexts.
            full = full or json.loads(line)
            contexts = [argument.get("arg_0", "") for argument in full["arguments"].values()][:count]
            if len(set(contexts)) == 1:
                contexts = None
        delimiter = self.delimiter
        if delimiter and not all(text.startswith(delimiter) for text in texts):
            delimiter = ""  # chat templates drop it
        gold = gold_of(
            row.target,
            [text[len(delimiter) :] for text in texts] if delimiter else texts,
            likelihoods,
            acc=row.acc if self.acc_is_argmax else None,
            multiple_input=contexts is not None,
            config=self.config,
            row=lambda: full or json.loads(line),
        )
        if self.count_tokens is not None:
            full = full or json.loads(line)
            arguments = list(full["arguments"].values())[:count]
            self.tokens += [self.count_tokens(a.get("arg_0", ""), a["arg_1"]) for a in arguments]
        if contexts is None:
            sizes, cut = self.sizes, len(delimiter)
            for text in texts:
                size = sizes.get(text)
                if size is None:
                    if len(sizes) > 100_000:
                        sizes.clear()
                    size = sizes[text] = (len(text) - cut, len(text.encode(errors="surrogatepass")) - cut)
                self.lengths.append(size)
        else:
            # Contexts are choices after few-shot examples that the log does not set apart.
            self.sizeless.append(len(self.choices))
        self.likelihoods += likelihoods
        self.choices.append(count)
        self.gold += gold
        self.golds.append(len(gold))
        acc = row.acc if isinstance(row.acc, int | float) and self.acc_is_argmax else float("nan")
        doc: Any = row.doc
        subject = None
        if isinstance(doc, _Doc):
            info = doc.info.get("subject") if isinstance(doc.info, dict) else None
            subject = next((s for s in (doc.subject, doc.category, info) if isinstance(s, str) and s), None)
        self.columns.append(
            (row.doc_id, number, row.doc_hash, row.prompt_hash, row.target_hash, subject, acc)
        )

    def flush(self, log: Log) -> pa.RecordBatch:
        """The rows since the last flush as a record batch."""
        n = len(self.choices)
        ids, lines, doc_hash, prompt_hash, target_hash, subject, acc = (
            zip(*self.columns, strict=True) if n else ((),) * 7
        )
        offsets = np.concatenate([[0], np.cumsum(self.choices, dtype=np.int64)]).astype(np.int32)
        likelihoods = np.array(self.likelihoods, np.float64)
        gold = np.array(self.gold, np.int32)
        gold_offsets = np.concatenate([[0], np.cumsum(self.golds)]).astype(np.int32)
        log.disagreements += _disagreements(likelihoods, offsets, gold, gold_offsets, np.array(acc, np.float64))
        lengths = np.array(self.lengths, np.int32).reshape(-1, 2)
        unknown = np.zeros(n, np.bool_)
        unknown[self.sizeless] = True
        known_offsets = np.concatenate([[0], np.cumsum(np.where(unknown, 0, self.choices))]).astype(np.int32)
        tokens = (
            pa.ListArray.from_arrays(offsets, np.array(self.tokens, np.int32))
            if self.count_tokens
            else pa.nulls(n, pa.list_(pa.int32()))
        )
        word = pa.dictionary(pa.int32(), pa.string())
        batch = pa.RecordBatch.from_pydict(
            {
                "doc_id": pa.array(ids, pa.int64()),
                "subject": pa.array(subject, pa.string()).dictionary_encode().cast(word),
                "log_likelihoods": pa.ListArray.from_arrays(offsets, likelihoods),
                "choice_chars": pa.ListArray.from_arrays(
                    known_offsets, lengths[:, 0].copy(), mask=pa.array(unknown)
                ),
                "choice_bytes": pa.ListArray.from_arrays(
                    known_offsets, lengths[:, 1].copy(), mask=pa.array(unknown)
                ),
                "choice_tokens": tokens,
                "gold": pa.ListArray.from_arrays(gold_offsets, gold),
                "doc_hash": pa.array(doc_hash, pa.string()),
                "prompt_hash": pa.array(prompt_hash, pa.string()),
                "target_hash": pa.array(target_hash, pa.string()),
                "line": pa.array(lines, pa.int64()),
            }
        )
        self._clear()
        return batch


def _disagreements(
    likelihoods: np.ndarray[Any, Any],
    offsets: np.ndarray[Any, Any],
    gold: np.ndarray[Any, Any],
    gold_offsets: np.ndarray[Any, Any],
    acc: np.ndarray[Any, Any],
) -> int:
    """Rows whose logged acc contradicts the argmax and the gold set; acc is only what it says for one repeat."""
    if not len(acc):
        return 0
    top = np.maximum.reduceat(likelihoods, offsets[:-1])
    is_top = likelihoods == np.repeat(top, np.diff(offsets))
    at = np.flatnonzero(is_top)
    rows = np.searchsorted(offsets, at, side="right") - 1
    _, first = np.unique(rows, return_index=True)  # ties go to the first choice
    best = at[first] - offsets[:-1]
    right = gold == np.repeat(best, np.diff(gold_offsets))
    correct = np.logical_or.reduceat(right, gold_offsets[:-1])
    return int(np.sum(~np.isnan(acc) & (correct != (acc == 1))))


def _in_order(table: pa.Table, log: Log) -> pa.Table:
    """Sorted by document (ranks of a data-parallel run are concatenated), each question once."""
    ids = table["doc_id"].to_numpy()
    if (np.diff(ids) > 0).all():
        return table
    order = np.argsort(ids, kind="stable")
    repeated = np.flatnonzero(np.isin(ids, ids[order][1:][np.diff(ids[order]) == 0]))
    seen: set[tuple[int, str]] = set()
    drop = []
    for row in repeated.tolist():
        key = (int(ids[row]), table["doc_hash"][row].as_py())
        if key in seen:
            drop.append(row)
            log.reject("repeated", table["line"][row].as_py())
        seen.add(key)
    keep = np.ones(len(ids), np.bool_)
    keep[drop] = False
    return table.take(pa.array(order[keep[order]]))
