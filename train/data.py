"""Instruction data in the usual forms, turned into tokens and labels, every unusable row counted and named."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_calib.errors import CalibrationError

Messages = list[dict[str, str]]

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
}


class DataError(CalibrationError):
    """Training data that cannot be used."""


class BadRowError(Exception):
    """One row that cannot be used; the message is the reason it is counted under."""


@dataclass(frozen=True)
class Example:
    """A conversation, or text as it stands with the places where the answer begins and ends."""

    messages: Messages | None = None
    text: str = ""
    spans: tuple[tuple[int, int], ...] = ()


@dataclass
class Report:
    """What became of the rows."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    rows: int = 0
    used: int = 0
    truncated: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    template: str = ""
    hash: str = ""

    def refuse(self, reason: str, place: str) -> None:
        self.bad[reason] = self.bad.get(reason, 0) + 1
        self.examples.setdefault(reason, place)

    def check(self, limit: float) -> None:
        """Raise if more than `limit` of the rows are unusable, or none is left."""
        count = sum(self.bad.values())
        listing = "; ".join(
            f"{number} x {reason} (first: {self.examples[reason]})" for reason, number in self.bad.items()
        )
        if not self.rows:
            raise DataError("train_data: expected rows, got none; check the files or the split")
        if count > limit * self.rows or not self.used:
            raise DataError(
                f"train_data: {count} of {self.rows} rows are unusable: {listing}. Mend or remove them, "
                "name the right data_format, or raise max_bad_rows"
            )


def read_rows(source: str) -> Iterator[tuple[str, Any]]:
    """(place, row) of a local file or a Hub data set; a line that is no JSON comes as a `BadRowError`.

    Raises:
        DataError: no such file, or an unreadable one.
    """
    path = Path(source)
    name = path.name.removesuffix(".gz")
    if not path.exists():
        if path.suffix in (".json", ".jsonl", ".gz", ".parquet") or source.startswith((".", "/", "~")):
            raise DataError(f"train_data: expected a file, got {source}, which does not exist")
        yield from _read_hub(source)
    elif path.is_dir():
        yield from _read_hub(source)
    elif name.endswith(".parquet"):
        import pyarrow.parquet as pq

        rows = (row for batch in pq.ParquetFile(path).iter_batches(1000) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield f"{path.name} row {number}", row
    else:
        yield from _read_json(path, name)


def _read_json(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            first = file.read(64).lstrip()[:1]
            file.seek(0)
            if first == "[" or (name.endswith(".json") and first != "{"):
                rows = json.load(file)
                if not isinstance(rows, list):
                    raise DataError(f"train_data: expected a list of objects or JSON lines in {path}")
                for number, row in enumerate(rows, 1):
                    yield f"{path.name} row {number}", row
                return
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    row = BadRowError("not JSON")
                yield f"{path.name} line {number}", row
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"train_data: {path} cannot be read as UTF-8 JSON or JSON lines: {error}") from error


def _read_hub(source: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    try:
        rows = load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the hub client's errors share no base class
        raise DataError(
            f"train_data: {source} is no local file and could not be loaded as a data set "
            f"({type(error).__name__}: {error}); expected `owner/name`, `owner/name:config` or "
            f"`owner/name:config:split`"
        ) from error
    for number, row in enumerate(rows):
        yield f"{source} row {number}", row


def digest(source: str) -> dict[str, Any]:
    """What a source was: its name, and the hash of a local file."""
    path = Path(source)
    if not path.is_file():
        return {"source": source}
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            hasher.update(piece)
    return {"source": path.name, "sha256": hasher.hexdigest()}


def parse(row: Any, data_format: str = "auto") -> Example:
    """One row in any of the forms of `config.DATA_FORMATS`.

    Raises:
        BadRowError: the row is unusable, and why.
    """
    if isinstance(row, BadRowError):
        raise row
    if not isinstance(row, Mapping):
        raise BadRowError("not an object")
    form = _form(row) if data_format == "auto" else data_format
    try:
        if form == "alpaca":
            answer = row["output"] if "output" in row else row["response"]
            return _conversation([("user", _alpaca_question(row)), ("assistant", answer)])
        if form == "sharegpt":
            turns = [(_role(turn["from"]), turn["value"]) for turn in row["conversations"]]
            if isinstance(row.get("system_prompt"), str) and row["system_prompt"].strip():
                turns.insert(0, ("system", row["system_prompt"]))
            return _conversation(turns)
        if form == "messages":
            return _conversation([(_role(turn["role"]), turn["content"]) for turn in row["messages"]])
        if form == "prompt_completion":
            prompt, completion = row["prompt"], row["completion"]
            if isinstance(prompt, str) and isinstance(completion, str):
                if not completion.strip():
                    raise BadRowError("empty answer")
                return Example(text=prompt + completion, spans=((len(prompt), len(prompt + completion)),))
            return _conversation([(_role(turn["role"]), turn["content"]) for turn in [*prompt, *completion]])
        text = row["text"]
    except (KeyError, TypeError) as error:
        raise BadRowError(f"wrong keys for {form}") from error
    if not isinstance(text, str) or not text.strip():
        raise BadRowError("empty answer")
    return Example(text=text, spans=((0, len(text)),))


def _form(row: Mapping[str, Any]) -> str:
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "prompt" in row and "completion" in row:
        return "prompt_completion"
    if "instruction" in row and ("output" in row or "response" in row):
        return "alpaca"
    if "text" in row:
        return "text"
    raise BadRowError(f"wrong keys: {', '.join(sorted(map(str, row)))[:80]}")


def _alpaca_question(row: Mapping[str, Any]) -> str:
    question, extra = row["instruction"], row.get("input")
    if not isinstance(question, str) or not question.strip():
        raise BadRowError("empty prompt")
    return f"{question}\n\n{extra}" if isinstance(extra, str) and extra.strip() else question


def _role(name: Any) -> str:
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise BadRowError(f"unknown role {name!r:.30}")
    return role


def _conversation(turns: list[tuple[str, Any]]) -> Example:
    messages = []
    for role, content in turns:
        if not isinstance(content, str):
            raise BadRowError("a turn that is not text")
        if role == "assistant" and not content.strip():
            raise BadRowError("empty answer")
        messages.append({"role": role, "content": content})
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRowError("no assistant turn")
    if messages[0]["role"] == "assistant":
        raise BadRowError("an answer without a prompt")
    return Example(messages=messages)
