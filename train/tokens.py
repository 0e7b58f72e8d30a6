"""From parsed rows to token ids and labels.

A row becomes one text in which the answers' places are known by character, and is tokenised as a whole:
tokens are then those that the model meets at inference, whatever merges at the border between prompt and
answer, and a label is decided by where a token ends. Two templates give conversations their text: the
tokenizer's chat template, and a plain one for base models, whose turns read

    ### Instruction:
    {user}

    ### Response:
    {assistant}<eos>

with a system prompt in front, and a blank line between an answer and the next instruction. Rows of the forms
`prompt_completion` (strings) and `text` stand as they are, with <eos> at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from lm_eval_calib.train.config import TuneArguments
from lm_eval_calib.train.data import BadRowError, DataError, Example, Report, digest, parse, read_rows
from lm_eval_calib.train.head import IGNORED

SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
BATCH = 512
PLAIN = {"user": "### Instruction:\n", "assistant": "### Response:\n", "tool": "### Input:\n", "system": ""}


def render(example: Example, tokenizer: Any, template: str) -> tuple[str, tuple[tuple[int, int], ...], bool]:
    """Text, the answers' spans with what ends them, and whether special tokens are already part of the text.

    Raises:
        BadRowError: the chat template refuses the conversation or rewrites earlier turns.
    """
    eos = tokenizer.eos_token
    if example.messages is None:
        *spans, (start, end) = example.spans
        return example.text + eos, (*spans, (start, end + len(eos))), False
    spans = []
    if template == "plain":
        text = ""
        for message in example.messages:
            text += ("\n\n" if text else "") + PLAIN[message["role"]]
            start = len(text)
            text += message["content"]
            if message["role"] == "assistant":
                text += eos
                spans.append((start, len(text)))
        return text, tuple(spans), False
    try:
        text = tokenizer.apply_chat_template(example.messages, tokenize=False)
        for index, message in enumerate(example.messages):
            if message["role"] != "assistant":
                continue
            before = tokenizer.apply_chat_template(example.messages[:index], tokenize=False, add_generation_prompt=True)
            through = tokenizer.apply_chat_template(example.messages[: index + 1], tokenize=False)
            if not (text.startswith(before) and text.startswith(through) and len(through) > len(before)):
                raise BadRowError("the chat template rewrites earlier turns")
            spans.append((len(before), len(through)))
    except BadRowError:
        raise
    except Exception as error:  # templates raise what they like
        raise BadRowError(f"refused by the chat template: {error}"[:120]) from error
    return text, tuple(spans), True


def choose_template(wish: str, tokenizer: Any) -> str:
    """`chat` or `plain`.

    Raises:
        DataError: a chat template is wished for and there is none.
    """
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if wish == "chat" and not has_chat:
        raise DataError(
            "prompt_template: expected a tokenizer with a chat template for 'chat', got one without; use "
            "'plain', or name one with chat_template_path"
        )
    if wish == "auto":
        return "chat" if has_chat else "plain"
    return wish


class Tokens:
    """Encodes examples in batches."""

    def __init__(self, tokenizer: Any, template: str, max_length: int | None, train_on_prompt: bool) -> None:
        if not tokenizer.is_fast:
            raise DataError(
                f"model_name_or_path: expected a fast tokenizer, got {type(tokenizer).__name__}; the "
                "answers' tokens are found by their offsets"
            )
        if tokenizer.eos_token is None:
            raise DataError(
                "model_name_or_path: expected a tokenizer with an end-of-sequence token; name one with eos_token"
            )
        self.tokenizer, self.template = tokenizer, template
        self.max_length, self.train_on_prompt = max_length, train_on_prompt
        # What the tokenizer puts in front of any text; what it would put behind is the <eos> that is there
        # already.
        empty = tokenizer("")["input_ids"]
        self.prefix = [token for token in empty if token != tokenizer.eos_token_id]

    def encode(self, batch: list[tuple[str, Example]], report: Report) -> Iterator[tuple[list[int], list[int]]]:
        """(input_ids, labels) of the usable examples; the others are counted."""
        rendered = []
        for place, example in batch:
            try:
                rendered.append((place, *render(example, self.tokenizer, self.template)))
            except BadRowError as reason:
                report.refuse(str(reason), place)
        if not rendered:
            return
        encoded = self.tokenizer(
            [text for _, text, _, _ in rendered],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for (place, _, spans, complete), ids, offsets in zip(
            rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            starts, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
            answer = np.zeros(len(ids), dtype=bool)
            for start, end in spans:
                # A token over the border is counted to the answer, or its first letters would never be
                # learned.
                answer |= (ends > start) & (starts < end)
            labels = np.where(answer | self.train_on_prompt, ids, IGNORED)
            prefix = [] if complete else self.prefix
            all_ids, all_labels = [*prefix, *ids], [*[IGNORED] * len(prefix), *labels.tolist()]
            if self.max_length is not None and len(all_ids) > self.max_length:
                all_ids, all_labels = all_ids[: self.max_length], all_labels[: self.max_length]
                report.truncated += 1
            # The first token is predicted from nothing, so its label does not count.
            if all(label == IGNORED for label in all_labels[1:]):
                report.refuse("no answer token within max_length", place)
                continue
            report.used += 1
            report.tokens += len(all_ids)
            report.answer_tokens += sum(label != IGNORED for label in all_labels[1:])
            yield all_ids, all_labels


def prepare(
    sources: list[str], arguments: TuneArguments, tokenizer: Any, max_length: int | None, seed: int, into: Path
) -> Report:
    """Tokenise all sources into the Arrow stream file `into`, which `datasets.Dataset.from_file` maps into
    memory.

    Raises:
        DataError: an unreadable source, or more unusable rows than `max_bad_rows` allows.
    """
    template = choose_template(arguments.prompt_template, tokenizer)
    report = Report(sources=[digest(source) for source in sources], template=template)
    tokens = Tokens(tokenizer, template, max_length, arguments.train_on_prompt)
    hasher = hashlib.sha256()
    chosen = _sample(sources, arguments.max_train_samples, seed)
    into.parent.mkdir(parents=True, exist_ok=True)
    partial = into.with_name(into.name + ".partial")
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        for batch in _batches(_examples(sources, arguments.data_format, chosen, report)):
            pairs = list(tokens.encode(batch, report))
            columns = [pa.array([pair[side] for pair in pairs], type=SCHEMA.types[side]) for side in (0, 1)]
            for column in columns:
                hasher.update(column.values.to_numpy().tobytes())
                hasher.update(column.offsets.to_numpy().tobytes())
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
    report.check(arguments.max_bad_rows)
    report.hash = hasher.hexdigest()
    partial.replace(into)
    return report


def _sample(sources: list[str], wanted: int | None, seed: int) -> set[int] | None:
    if wanted is None:
        return None
    total = sum(1 for source in sources for _ in read_rows(source))
    return set(np.random.default_rng(seed).permutation(total)[:wanted].tolist())


def _examples(
    sources: list[str], data_format: str, chosen: set[int] | None, report: Report
) -> Iterator[tuple[str, Example]]:
    rows = ((place, row) for source in sources for place, row in read_rows(source))
    for index, (place, row) in enumerate(tqdm(rows, desc="reading data", unit=" rows", delay=2)):
        if chosen is not None and index not in chosen:
            continue
        report.rows += 1
        try:
            yield place, parse(row, data_format)
        except BadRowError as reason:
            report.refuse(str(reason), place)


def _batches(examples: Iterable[tuple[str, Example]]) -> Iterator[list[tuple[str, Example]]]:
    batch = []
    for example in examples:
        batch.append(example)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
