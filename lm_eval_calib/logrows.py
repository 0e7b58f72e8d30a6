"""The rows of one sample log of lm-eval: a fast decoder for sound lines, a slow one for the others.

Documents are not built: the decoder skips what is not named here.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.gold import UnusableRow

MAX_LINE = 256 * 2**20  # bytes; bounds memory on a file without line ends
REASONS = {
    "corrupt": "not valid JSON in UTF-8 (a truncated or corrupt line)",
    "malformed": "a field is missing or has a wrong type or value",
    "generation": "no log-likelihoods of choices (not a multiple-choice task)",
    "one_choice": "fewer than two choices",
    "mismatch": "different numbers of requests and responses",
    "damaged": "the row contradicts itself (responses and filtered responses, or the target and its hash)",
    "non_finite": "a log-likelihood is not finite",
    "gold_unknown": "the right choice cannot be told from the log",
    "gold_range": "the right choice is none of the choices",
    "repeated": "the question stands in the log already (another filter, or a row written twice)",
    "filter": "another filter's copy of the question",
}


class _Continuation(msgspec.Struct):
    arg_1: str


class Doc(msgspec.Struct):
    """The keys under which benchmarks keep the subject."""

    subject: Any = None
    category: Any = None
    info: Any = None


_Responses = list[tuple[float, Any]]
_Sha256 = Annotated[str, msgspec.Meta(min_length=64, max_length=64)]


class Row(msgspec.Struct):
    """What is read of a row; keys that are not named here are skipped without being decoded."""

    doc_id: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    target: Any
    filtered_resps: _Responses
    arguments: dict[str, _Continuation]
    doc: Doc | str | int | float | bool | list[Any] | None = None
    resps: list[_Responses] | None = None
    filter: str = ""
    doc_hash: _Sha256 = ""
    prompt_hash: _Sha256 = ""
    target_hash: _Sha256 = ""
    acc: Any = None
    acc_mutual_info: Any = None


def documents(path: Path, lines: set[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The whole rows at the given line numbers, for showing their texts."""
    last = max(lines, default=0)
    for number, line in enumerate(rows_of(path), 1):
        if number in lines:
            yield number, json.loads(line)
        if number >= last:
            return


def rows_of(path: Path) -> Iterator[bytes]:
    """The JSON objects of a log, one at a time; blank lines too, so that numbers are those of an editor."""
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
                f"{path}: expected a sample log (JSON lines, or lm-eval 0.4.2's array), got an array that is "
                f"not valid JSON ({error}); copy the file again"
            ) from error


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb", buffering=2**20)


def decode_slowly(line: bytes) -> tuple[Row, dict[str, Any]]:
    """A row that the fast decoder refused: NaN literals, 0.4.2's lists, or a reason to reject it."""
    full = whole_row(line)
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
    try:
        slim = {**full, "arguments": {k: {"arg_1": v["arg_1"]} for k, v in (arguments or {}).items()}}
        return msgspec.convert(slim, Row, strict=False), full
    except (msgspec.MsgspecError, AttributeError, TypeError) as error:
        raise UnusableRow("malformed") from error


def whole_row(line: bytes) -> dict[str, Any]:
    try:
        full = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise UnusableRow("corrupt") from error
    if not isinstance(full, dict):
        raise UnusableRow("malformed")
    return full


def row_hashes(full: Mapping[str, Any]) -> dict[str, str]:
    """The hashes that 0.4.3 and later log, so that logs of 0.4.2 pair with them."""
    arguments = full.get("arguments")
    first: Mapping[str, Any] = next(iter(arguments.values()), {}) if isinstance(arguments, dict) else {}
    texts = {
        "doc_hash": json.dumps(full.get("doc"), indent=2, ensure_ascii=False),
        "prompt_hash": str(first.get("arg_0", "")),
        "target_hash": str(full.get("target")),
    }
    return {name: text_hash(text) for name, text in texts.items()}


@lru_cache(1024)
def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
