"""How much one forward pass may hold, found while running."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from lm_eval_calib.errors import CalibrationError
from lm_eval_calib.scoring.batches import Limits

# Below the harness's own logger, so that `--verbosity` holds for it too.
logger = logging.getLogger("lm_eval.calib.scoring")

# Rows of trees: longer ones waste attention on what is masked, shorter ones repeat the prefix's keys more often.
ROW_TOKENS = {"cpu": 512, "other": 512}
# On a CPU larger passes gain nothing, smaller ones read the weights more often; a GPU starts here and doubles.
FIRST_TOKENS = {"cpu": 2048, "other": 8192}
MOST_TOKENS = 65536
LEAST_TOKENS = 32
# Of the memory that is free, what a pass may be expected to take, and what its logits may.
PASS_SHARE, LOGITS_SHARE = 0.7, 0.2


class Budget:
    """Tokens and logit rows for a pass on `device`; doubled while memory allows, halved when it runs out.

    `batch_tokens` fixes the number of tokens, but for the halving.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        vocabulary: int,
        logit_bytes: int,
        batch_tokens: int | None = None,
        row_tokens: int | None = None,
    ) -> None:
        kind = "cpu" if device.type == "cpu" else "other"
        self.device = device
        self.row_tokens = row_tokens or ROW_TOKENS[kind]
        self._may_grow = batch_tokens is None and device.type == "cuda"
        # The logits themselves, and room for what a soft-cap or a scale makes of them.
        logits = int(LOGITS_SHARE * self._free() / (3 * logit_bytes * vocabulary))
        self.limits = Limits(batch_tokens or FIRST_TOKENS[kind], max(logits, LEAST_TOKENS))

    def fix(self, tokens: int) -> None:
        """Use this number of tokens from now on; a pass still takes at least one row."""
        self.limits, self._may_grow = self.limits._replace(tokens=tokens), False

    def _free(self) -> int:
        if self.device.type != "cuda":
            return int(psutil.virtual_memory().available)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        free: int = torch.cuda.mem_get_info(self.device)[0] + unused
        return free

    @contextmanager
    def watch(self, tokens: int) -> Iterator[None]:
        """Measure what a pass of so many tokens takes, and allow twice as many while that will fit."""
        if not self._may_grow or tokens < self.limits.tokens // 2:
            yield
            return
        torch.cuda.reset_peak_memory_stats(self.device)
        before, free = torch.cuda.memory_allocated(self.device), self._free()
        yield
        taken = torch.cuda.max_memory_allocated(self.device) - before
        if 2 * self.limits.tokens / tokens * taken < PASS_SHARE * free:
            self.limits = self.limits._replace(tokens=2 * self.limits.tokens)
        else:
            self._may_grow = False
        self._may_grow &= self.limits.tokens < MOST_TOKENS

    def halve(self, reason: str) -> None:
        """After running out of memory: half of everything, from now on; an error when there is no half to take."""
        if self.limits.tokens <= LEAST_TOKENS:
            raise CalibrationError(
                f"hf-calib: memory runs out even for {self.limits.tokens} tokens at a time ({reason.splitlines()[0]}); "
                "use a smaller max_length, a smaller dtype, or parallelize=True"
            )
        self.limits = Limits(self.limits.tokens // 2, max(1, self.limits.logits // 2))
        self.row_tokens = min(self.row_tokens, self.limits.tokens)
        self._may_grow = False
        logger.warning("hf-calib: out of memory, going on with %d tokens at a time", self.limits.tokens)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
