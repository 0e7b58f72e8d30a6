"""`--model hf-calib`: the log-likelihoods of `--model hf`, several times faster."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.scoring.budget import Budget
from lm_eval_calib.scoring.encode import Encoded, Pair, PairEncoder
from lm_eval_calib.scoring.engine import Engine
from lm_eval_calib.scoring.probe import find_plan, steady_length
from lm_eval_calib.scoring.tokens import LogLikelihood, use_counter
from lm_eval_calib.scoring.trie import Request

# Below the harness's own logger, so that `--verbosity` holds for it too.
logger = logging.getLogger("lm_eval.calib.scoring")

# Requests that are tokenized and planned together, sorted by context, so that few beginnings are shared across.
_WINDOW_REQUESTS, _WINDOW_CHARACTERS = 16384, 1 << 25

Answer = tuple[LogLikelihood, bool]


class SharedPrefixLM(HFLM):
    """lm-eval's `hf` with another way to compute log-likelihoods; everything else is inherited.

    What requests share (few-shot examples, a question in front of its choices) is run once, the head is applied
    only where a log-probability is asked for, and log-softmax is always taken in float32. Generation and rolling
    log-likelihoods are those of `hf`, as are encoder-decoder models and tensor parallelism (`tp_plan`).

    Args:
        batch_tokens: tokens of a forward pass; "auto" begins small and doubles while memory allows.
        row_tokens: tokens of one row of a pass; "auto" is a good value for the device.
        share_prefixes: False runs each distinct sequence by itself, for a comparison.
        **kwargs: those of `lm_eval.models.huggingface.HFLM`. `batch_size` concerns generation and rolling
            log-likelihoods only, `softmax_dtype` and `logits_cache` not the log-likelihoods computed here.
    """

    def __init__(
        self,
        *args: Any,
        batch_tokens: int | str = "auto",
        row_tokens: int | str = "auto",
        share_prefixes: bool = True,
        **kwargs: Any,
    ) -> None:
        self._batch_tokens = _positive("batch_tokens", batch_tokens)
        self._row_tokens = _positive("row_tokens", row_tokens)
        self._share_prefixes = share_prefixes
        super().__init__(*args, **kwargs)
        self._as_hf = self.backend != "causal" or kwargs.get("tp_plan") is not None
        use_counter(self.count_tokens)

    def count_tokens(self, pairs: Sequence[Pair]) -> list[int]:
        """The number of tokens that each (context, continuation) is scored over."""
        return [len(continuation) for _, continuation in PairEncoder(self)(pairs)]

    @cached_property
    def _engine(self) -> Engine:
        config = self.model.config.get_text_config(decoder=True)
        dtype = self.mixed_precision_dtype or getattr(self.model, "dtype", torch.float32)
        budget = Budget(
            self.device,
            vocabulary=config.vocab_size,
            logit_bytes=dtype.itemsize if dtype.is_floating_point else 4,
            batch_tokens=self._batch_tokens,
            row_tokens=self._row_tokens,
        )
        engine = Engine(self.model, device=self.device, autocast=self._autocast, budget=budget)
        if self._share_prefixes:
            with engine.timed("check"):
                engine.plan, engine.dtype, reason = find_plan(engine)
            if engine.plan is None:
                logger.warning(
                    "hf-calib: this model cannot be run on shared prefixes (%s); every distinct sequence is run by "
                    "itself, with the head only where it is needed",
                    reason,
                )
        return engine

    @cached_property
    def _one_by_one(self) -> Engine:
        """For sequences that are so long that they must not share a pass; see `steady_length`."""
        shared = self._engine
        engine = Engine(self.model, device=self.device, autocast=self._autocast, budget=copy.copy(shared.budget))
        engine.budget.fix(1)
        engine.work = shared.work
        return engine

    def _autocast(self) -> torch.autocast:
        dtype = self.mixed_precision_dtype
        return torch.autocast(device_type=self.device.type, dtype=dtype, enabled=dtype is not None)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Answer]:
        """Log-likelihood of each continuation and whether it is the greedy one; see lm-eval's `LM.loglikelihood`."""
        if self._as_hf or self.enable_thinking:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)  # type: ignore[no-any-return]
        pairs = [request.args for request in requests]
        windows = list(_windows(pairs))
        encode = PairEncoder(self)
        answers: list[Answer | None] = [None] * len(pairs)
        # Window by window, so that memory does not grow with the run; one is tokenized while another is scored.
        with ThreadPoolExecutor(1) as ahead, self._progress(len(pairs), disable_tqdm) as progress:
            encoded = [ahead.submit(encode, [pairs[i] for i in window]) for window in windows[:1]]
            for number, window in enumerate(windows):
                with self._engine.timed("tokenization"):
                    tokens = encoded.pop().result()
                if number + 1 < len(windows):
                    encoded.append(ahead.submit(encode, [pairs[i] for i in windows[number + 1]]))
                found = self._score(tokens, [pairs[i] for i in window], progress)
                for i, answer in zip(window, found, strict=True):
                    answers[i] = answer
        self._report_work()
        return answers  # type: ignore[return-value]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Pair | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Any]:
        # Rolling log-likelihoods come with a batch size, and stay those of hf.
        if self._as_hf or override_bs is not None:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)  # type: ignore[no-any-return]
        encoded = [(np.array(context, np.int32), np.array(after, np.int32)) for _, context, after in requests]
        with self._progress(len(requests), disable_tqdm) as progress:
            return self._score(encoded, [pair for pair, _, _ in requests], progress)

    def _score(self, encoded: Sequence[Encoded], pairs: Sequence[Pair | None], progress: tqdm) -> list[Answer]:
        limit = self.max_length
        requests, cut = [], 0
        for (context, continuation), pair in zip(encoded, pairs, strict=True):
            if not len(context) or not 0 < len(continuation) <= limit:
                raise CalibrationValueError(
                    f"hf-calib: expected a context of at least one token and a continuation of 1 to {limit} "
                    f"(max_length), got {len(context)} and {len(continuation)} for {pair!r}; mend the task's prompt or "
                    "choices, or set max_length"
                )
            tokens = np.concatenate([context, continuation])
            cut += len(tokens) > limit + 1
            requests.append(Request(tokens[-(limit + 1) :], len(continuation)))
        if cut:
            logger.warning(
                "hf-calib: %d of %d requests are longer than max_length=%d and lose tokens on the left, as with hf",
                cut,
                len(requests),
                limit,
            )
        answers: list[Answer | None] = [None] * len(requests)

        steady = steady_length(self.model.config)
        alone = [i for i, request in enumerate(requests) if len(request.tokens) - 1 > steady]
        shared = [i for i, request in enumerate(requests) if len(request.tokens) - 1 <= steady]
        for indices, is_long in ((shared, False), (alone, True)):

            def done(place: int, value: float, greedy: bool, indices: list[int] = indices) -> None:
                index = indices[place]
                answers[index] = answer = (LogLikelihood(value, requests[index].scored), greedy)
                pair = pairs[index]
                if pair is not None:
                    self.cache_hook.add_partial("loglikelihood", pair, answer)
                progress.update()

            if indices:
                engine = self._one_by_one if is_long else self._engine
                engine.score([requests[i] for i in indices], done)
        return answers  # type: ignore[return-value]

    def _progress(self, total: int, disable_tqdm: bool) -> tqdm:
        quiet = disable_tqdm or self.rank != 0
        return tqdm(total=total, disable=quiet, desc="Running loglikelihood requests")

    def _report_work(self) -> None:
        work = self._engine.work
        logger.info(
            "hf-calib so far: ran %d of %d tokens, logits at %d positions, in %d passes; waited %s",
            work.run,
            work.asked,
            work.logits,
            work.passes,
            ", ".join(f"{seconds:.1f} s for the {what}" for what, seconds in work.seconds.items()),
        )


def _windows(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """Indices of the pairs in parts of limited size; if there are several, contexts that begin alike are neighbours."""
    order: Sequence[int] = range(len(pairs))
    if len(pairs) > _WINDOW_REQUESTS or sum(len(context) for context, _ in pairs) > _WINDOW_CHARACTERS:
        order = sorted(order, key=lambda i: pairs[i][0])
    window: list[int] = []
    characters = 0
    for i in order:
        characters += len(pairs[i][0]) + len(pairs[i][1])
        if window and (len(window) >= _WINDOW_REQUESTS or characters > _WINDOW_CHARACTERS):
            yield window
            window, characters = [], len(pairs[i][0]) + len(pairs[i][1])
        window.append(i)
    if window:
        yield window


def _positive(name: str, value: int | str) -> int | None:
    """None for "auto", else a positive integer."""
    if value == "auto":
        return None
    if not str(value).isdigit() or int(value) < 1:
        raise CalibrationValueError(f"hf-calib: {name} must be 'auto' or a positive integer, got {value!r}")
    return int(value)
