"""Contexts and continuations to tokens: the harness's rules, each distinct text once, many texts at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from lm_eval.models.utils import _add_special_kwargs, has_bos_prefix

Pair = tuple[str, str]
Encoded = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]


@contextmanager
def _parallel_tokenizers() -> Iterator[None]:
    """lm_eval's command line turns the tokenizers' threads off, for the sake of forks that do not happen here."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


class PairEncoder:
    """Does for many pairs what `TemplateLM.loglikelihood` and `_encode_pair` do for one.

    `lm` is an HFLM with a causal backend. A tokenizer whose batches do not come out as its single texts do (and one
    without a fast implementation) is asked for one text at a time.
    """

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self._bos = lm.tokenizer.decode(lm.prefix_token_id)
        self._one_by_one = not getattr(lm.tokenizer, "is_fast", False)

    def __call__(self, pairs: Sequence[Pair]) -> list[Encoded]:
        """The tokens of each context and of its continuation, as `hf` would hand them to the model, untruncated."""
        # Whether a context is empty is asked before its spaces are moved: an all-blank one still gets its BOS.
        moved = [(bool(context), *_move_spaces(context, continuation)) for context, continuation in pairs]
        # (text, add_special_tokens): continuations of an empty context get no special tokens.
        texts: dict[tuple[str, bool | None], npt.NDArray[np.int32]] = {}
        for has_context, context, continuation in moved:
            if has_context:
                texts[context, None] = texts[context + continuation, None] = _NOTHING
            else:
                texts[continuation, False] = _NOTHING
        self._fill(texts)
        encoded = []
        for has_context, context, continuation in moved:
            if has_context:
                before = texts[context, None]
                encoded.append((before, texts[context + continuation, None][len(before) :]))
                continue
            after = texts[continuation, False]
            if len(after) and after[0] == self.lm.prefix_token_id:
                encoded.append((after[:1], after[1:]))
            else:
                encoded.append((np.array([self.lm.prefix_token_id], np.int32), after))
        return encoded

    def _fill(self, texts: dict[tuple[str, bool | None], npt.NDArray[np.int32]]) -> None:
        kinds: dict[bool | None, list[tuple[str, bool | None]]] = {}
        for key in texts:
            # What HFLM.tok_encode passes to the tokenizer.
            special = _add_special_kwargs(key[1], self.lm.add_bos_token).get("add_special_tokens")
            if key[1] is None and has_bos_prefix(key[0], self._bos):
                special = False
            kinds.setdefault(special, []).append(key)
        for special, keys in kinds.items():
            for key, tokens in zip(keys, self._encode(keys, special), strict=True):
                texts[key] = np.asarray(tokens, np.int32)

    def _encode(self, keys: Sequence[tuple[str, bool | None]], special: bool | None) -> Iterable[list[int]]:
        def single(key: tuple[str, bool | None]) -> list[int]:
            tokens: list[int] = self.lm.tok_encode(key[0], add_special_tokens=key[1])
            return tokens

        if not self._one_by_one:
            # The first call leaves the backend without truncation and padding; it need not find offsets.
            first = single(keys[0])
            with _parallel_tokenizers():
                batch = self.lm.tokenizer.backend_tokenizer.encode_batch_fast(
                    [text for text, _ in keys], add_special_tokens=special is not False
                )
            if batch[0].ids == first and batch[-1].ids == single(keys[-1]):
                return (encoding.ids for encoding in batch)
            self._one_by_one = True
        return map(single, keys)


_NOTHING = np.empty(0, np.int32)


def _move_spaces(context: str, continuation: str) -> Pair:
    """Spaces at the end of a context belong to the word that the continuation begins with."""
    spaces = len(context) - len(context.rstrip())
    return (context[:-spaces], context[-spaces:] + continuation) if spaces else (context, continuation)
