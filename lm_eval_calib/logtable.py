"""One sample log of lm-eval as an Arrow table: every row is used, or counted under a reason.

A batch of rows becomes Arrow arrays at once, so that memory is that of the predictions, not of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lm_eval_calib.gold import UnusableRow, gold_of
from lm_eval_calib.logrows import Doc, Row, decode_slowly, row_hashes, rows_of, text_hash, whole_row

BATCH = 32_768  # rows


@dataclass
class Log:
    """What reading one log gave: the columns that differ between its rows, and what could not be used."""

    table: pa.Table = None
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
    decode = msgspec.json.Decoder(Row, strict=False).decode
    read, number = 0, 0
    for number, line in enumerate(rows_of(path), 1):
        read += len(line)
        try:
            try:
                row = decode(line)
                full = None
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                if line.isspace():
                    continue
                row, full = decode_slowly(line)
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


class _Batch:
    """Rows on their way into Arrow: flat lists and counts, vectorised when they are flushed."""

    def __init__(self, config: Mapping[str, Any], count_tokens: Callable[[str, str], int] | None) -> None:
        self.config = config
        self.count_tokens = count_tokens
        delimiter = config.get("target_delimiter", " ")
        self.delimiter = delimiter if isinstance(delimiter, str) else " "
        metadata = config.get("metadata")
        normalization = metadata.get("normalization", "none") if isinstance(metadata, Mapping) else "none"
        self.acc_is_argmax = normalization == "none"
        metrics = config.get("metric_list") or ()
        self.mutual_info = any(isinstance(m, Mapping) and m.get("metric") == "acc_mutual_info" for m in metrics)
        # Unless a task has other filters, its filtered responses are copies of the first responses.
        self.takes_first = "function" not in str(config.get("filter_list")).replace("'function': 'take_first'", "")
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

    def add(self, row: Row, number: int, line: bytes, full: dict[str, Any] | None) -> None:
        responses = row.filtered_resps
        if len(row.arguments) != len(responses):
            raise UnusableRow("mismatch")
        if not (row.doc_hash and row.prompt_hash and row.target_hash):
            full = full or whole_row(line)
            for name, digest in row_hashes(full).items():
                if not getattr(row, name):
                    setattr(row, name, digest)
        elif text_hash(str(row.target)) != row.target_hash:
            raise UnusableRow("damaged")
        likelihoods: list[float] = [response[0] for response in responses]
        for value in likelihoods:
            if not -1e300 < value < 1e300:
                raise UnusableRow("non_finite")
        if self.takes_first and row.resps is not None and [r[0] for r in row.resps if r] != responses:
            raise UnusableRow("damaged")
        texts = [argument.arg_1 for argument in row.arguments.values()]
        acc = row.acc if self.acc_is_argmax and isinstance(row.acc, int | float) else None
        kept, contexts = slice(None), None
        if self.mutual_info or row.acc_mutual_info is not None:
            full = full or whole_row(line)
            kept = _conditional(texts, [argument.get("arg_0") for argument in full["arguments"].values()])
            likelihoods, texts = likelihoods[kept], texts[kept]
            acc = None  # releases before 0.4.9.2 computed it from the wrong responses
        count = len(likelihoods)
        if count < 2:
            raise UnusableRow("one_choice")
        if texts[0] == texts[-1] and len(set(texts)) == 1:
            # One continuation everywhere: a multiple-input task (winogrande), whose choices are contexts.
            full = full or whole_row(line)
            contexts = [argument.get("arg_0", "") for argument in full["arguments"].values()][kept]
            if len(set(contexts)) == 1:
                contexts = None
        delimiter = self.delimiter
        if delimiter and not all(text.startswith(delimiter) for text in texts):
            delimiter = ""  # chat templates drop it
        gold = gold_of(
            row.target,
            [text[len(delimiter) :] for text in texts] if delimiter else texts,
            likelihoods,
            acc=acc,
            multiple_input=contexts is not None,
            config=self.config,
            row=lambda: full or whole_row(line),
        )
        if self.count_tokens is not None:
            full = full or whole_row(line)
            arguments = list(full["arguments"].values())[kept]
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
        doc: Any = row.doc
        subject = None
        if isinstance(doc, Doc):
            info = doc.info.get("subject") if isinstance(doc.info, dict) else None
            subject = next((s for s in (doc.subject, doc.category, info) if isinstance(s, str) and s), None)
        self.columns.append(
            (
                row.doc_id,
                number,
                row.doc_hash,
                row.prompt_hash,
                row.target_hash,
                subject,
                float("nan") if acc is None else acc,
            )
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
                "choice_chars": pa.ListArray.from_arrays(known_offsets, lengths[:, 0].copy(), mask=pa.array(unknown)),
                "choice_bytes": pa.ListArray.from_arrays(known_offsets, lengths[:, 1].copy(), mask=pa.array(unknown)),
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


def _conditional(texts: list[str], contexts: list[str | None]) -> slice:
    """Which requests of an acc_mutual_info task have the question before them: the others stand alone.

    Up to 0.4.4 each choice is followed by its copy alone, later all choices by all copies.
    """
    half = len(texts) // 2
    for kept, alone in ((slice(0, half), slice(half, None)), (slice(0, None, 2), slice(1, None, 2))):
        if not any(contexts[alone]) and [t.strip() for t in texts[kept]] == [t.strip() for t in texts[alone]]:
            return kept
    raise UnusableRow("mismatch")


def _disagreements(
    likelihoods: NDArray[Any],
    offsets: NDArray[Any],
    gold: NDArray[Any],
    gold_offsets: NDArray[Any],
    acc: NDArray[Any],
) -> int:
    """Rows whose logged acc contradicts the argmax and the gold set."""
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
