"""From token requests to log-likelihoods: plan, run in passes within a memory budget, collect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache

from lm_eval_calib.scoring.attention import AttentionPlan, safe_columns, tree_arguments
from lm_eval_calib.scoring.batches import Batch, Row, make_batch, prefix_rows, take_batch, tree_rows
from lm_eval_calib.scoring.budget import Budget
from lm_eval_calib.scoring.head import head_at, log_probabilities
from lm_eval_calib.scoring.trie import Request, build_trie, plan_groups, plan_sequences


@dataclass
class Work:
    """What was done: tokens of all requests' inputs, tokens run (padding counted), logit rows, passes, seconds."""

    asked: int = 0
    run: int = 0
    logits: int = 0
    passes: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("check", "tokenization", "plan", "model"), 0.0)
    )


@dataclass
class _Results:
    """Sums of log-probabilities as they come in; `left` counts what each request still misses."""

    values: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]
    left: npt.NDArray[np.int64]

    def add(self, request: npt.NDArray[np.int64], value: torch.Tensor, greedy: torch.Tensor) -> npt.NDArray[np.int64]:
        """Add one pass's results; returns the requests that are complete by it."""
        np.add.at(self.values, request, value.cpu().double().numpy())
        np.logical_and.at(self.greedy, request, greedy.cpu().numpy())
        np.subtract.at(self.left, request, 1)
        touched = np.unique(request)
        complete: npt.NDArray[np.int64] = touched[self.left[touched] == 0]
        return complete


# cuDNN's attention is left out: it compiles a kernel for every new shape, and here each pass has a shape of its own.
_CUDA_ATTENTION = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


class Engine:
    """Runs requests through one causal language model.

    `plan` says how the model takes trees; None runs every sequence by itself, in the way that any model can.
    `autocast` opens the context that the model runs in.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        budget: Budget,
        plan: AttentionPlan | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.device, self.autocast, self.budget = model, device, autocast, budget
        self.plan, self.dtype = plan, dtype
        self.kernels: Sequence[SDPBackend] = _CUDA_ATTENTION if device.type == "cuda" else ()
        self.work = Work()
        get_head = getattr(model, "get_output_embeddings", None)
        self.head = get_head() if get_head is not None else None

    def score(
        self, requests: Sequence[Request], done: Callable[[int, float, bool], None] = lambda *_: None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """The summed log-probability of each request's scored tokens, and whether each of them is the likeliest.

        `done(index, value, greedy)` is called as soon as a request is complete. When memory runs out the budget is
        halved and what is not complete is planned anew.
        """
        scored = np.array([request.scored for request in requests])
        results = _Results(np.zeros(len(requests)), np.ones(len(requests), bool), scored.copy())
        self.work.asked += sum(len(request.tokens) - 1 for request in requests)
        while (open_ := np.flatnonzero(results.left)).size:
            results.values[open_], results.greedy[open_], results.left[open_] = 0.0, True, scored[open_]
            failure = self._run_open([requests[int(i)] for i in open_], open_, results, done)
            # Outside of the except block, whose traceback would hold on to the tensors of the failed pass.
            if failure is not None:
                self.budget.halve(failure)
        return results.values, results.greedy

    def _run_open(
        self,
        requests: Sequence[Request],
        indices: npt.NDArray[np.int64],
        results: _Results,
        done: Callable[[int, float, bool], None],
    ) -> str | None:
        """Run the requests; returns the message of the out-of-memory error that ended it early, if one did."""

        def collect(request: npt.NDArray[np.int64], value: torch.Tensor, greedy: torch.Tensor) -> None:
            with self.timed("model"):
                complete = results.add(indices[request], value, greedy)
            for i in complete:
                done(int(i), float(results.values[i]), bool(results.greedy[i]))

        waiting: tuple[npt.NDArray[np.int64], torch.Tensor, torch.Tensor] | None = None
        try:
            for batch, arguments in self.passes(requests):
                outcome = self._forward(batch, arguments)
                # Results are fetched one pass late, so that a GPU is given the next pass before it is waited for.
                if waiting is not None:
                    collect(*waiting)
                waiting = outcome
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return str(error)
        if waiting is not None:
            collect(*waiting)
        return None

    def passes(self, requests: Sequence[Request]) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """What to run, and the model's arguments beside the tokens; each pass must be run before the next is taken."""
        with self.timed("plan"):
            root = build_trie(requests)
            row_tokens = self.budget.row_tokens if self.plan is not None else 0
            groups = plan_groups(root, row_tokens=row_tokens) if self.plan is not None else plan_sequences(root)
            loose = [group for group in groups if group.cut is None]
            behind = sorted((group for group in groups if group.cut), key=lambda group: -group.prefix_length)
            rows = [row for group in loose for row in tree_rows(group, requests, row_tokens=row_tokens)]
        yield from self._row_passes(rows, None)
        while behind:
            # A unit: groups whose prefixes are held at the same time.
            count = max(1, self.budget.limits.tokens // behind[0].prefix_length)
            unit, behind = behind[:count], behind[count:]
            recorded = DynamicCache()
            with self.timed("plan"):
                batch = make_batch(prefix_rows(unit, requests), safe_columns(unit[0].prefix_length, 0, self.plan))
            yield batch, {"past_key_values": recorded, "use_cache": True}
            with self.timed("plan"):
                rows = [
                    row
                    for index, group in enumerate(unit)
                    for row in tree_rows(group, requests, row_tokens=row_tokens, prefix=index)
                ]
            yield from self._row_passes(rows, recorded)

    def _row_passes(self, rows: Sequence[Row], recorded: DynamicCache | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        done = 0
        while done < len(rows):
            with self.timed("plan"):
                taken, columns = take_batch(rows[done:], self.budget.limits)
                prefix_length = max(row.prefix_length for row in taken)
                batch = make_batch(taken, safe_columns(columns, prefix_length, self.plan))
                done += len(taken)
                arguments: dict[str, Any] = {}
                if self.plan is not None and batch.is_chain:
                    arguments = {"use_cache": False}
                elif self.plan is not None:
                    arguments = tree_arguments(self.plan, batch, recorded, device=self.device, dtype=self.dtype)
            yield batch, arguments

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the seconds spent within."""
        begin = perf_counter()
        try:
            yield
        finally:
            self.work.seconds[what] += perf_counter() - begin

    def logits(self, batch: Batch, arguments: dict[str, Any], at: torch.Tensor) -> torch.Tensor:
        """The logits [len(at), vocabulary] at flat indices into the batch, by the model's own forward."""
        tokens = torch.from_numpy(batch.tokens).to(self.device)
        with (
            torch.no_grad(),
            self.autocast(),
            sdpa_kernel(list(self.kernels)) if self.kernels else nullcontext(),
            head_at(self.head, at, tokens.shape[1]) as called,
        ):
            logits: torch.Tensor = self.model(tokens, **arguments).logits
        # A model without a head module, or one that does not call it, has computed all of them.
        return logits[0] if called else logits[:, -tokens.shape[1] :].flatten(0, 1)[at.to(logits.device)]

    def _forward(
        self, batch: Batch, arguments: dict[str, Any]
    ) -> tuple[npt.NDArray[np.int64], torch.Tensor, torch.Tensor]:
        at, row = np.unique(batch.at, return_inverse=True)
        with self.timed("model"), self.budget.watch(batch.tokens.size):
            # A head of no rows is not something every quantised layer knows, so there is always one.
            kept = torch.from_numpy(at if len(at) else np.zeros(1, np.int64))
            logits = self.logits(batch, arguments, kept.to(self.device))
            value, greedy = log_probabilities(
                logits, torch.from_numpy(row).to(logits.device), torch.from_numpy(batch.target).to(logits.device)
            )
        self.work.run += batch.tokens.size
        self.work.logits += len(at)
        self.work.passes += 1
        return batch.request, value, greedy
