"""The language-model head at the positions that are asked for, and what is asked of its logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Elements of the float32 scratch that logits are normalised in: in cache on a CPU, enough to fill a GPU.
_SCRATCH = {"cpu": 1 << 20, "other": 1 << 27}


@contextmanager
def head_at(head: torch.nn.Module | None, at: torch.Tensor, columns: int) -> Iterator[list[bool]]:
    """While open, the head sees the hidden states at the flat indices `at` into [rows x columns] only.

    The model's own forward does the rest, so that soft-caps, logit scales and adapters on the head stay as they
    are. Yields a list that is no longer empty once the head was called (a model may not call it as a module).
    Virtual tokens that prompt tuning puts in front are skipped.
    """
    called: list[bool] = []

    def select(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = None if args else next(iter(kwargs))
        hidden = args[0] if name is None else kwargs[name]
        called.append(True)
        chosen = hidden[:, hidden.shape[1] - columns :].flatten(0, 1)[at.to(hidden.device)][None]
        return ((chosen, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: chosen})

    if head is None:
        yield called
        return
    # First of the hooks, so that those of tensor parallelism or quantisation get what they are used to.
    handle = head.register_forward_pre_hook(select, prepend=True, with_kwargs=True)
    try:
        yield called
    finally:
        handle.remove()


def log_probabilities(
    logits: torch.Tensor, row: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 log-softmax of `logits[row]` at `target`, and whether `target` is the row's (first) largest.

    Equal to `log_softmax(logits.float(), -1)[row, target]` and to comparing `argmax`, without a float32 copy of
    all the logits. Shapes: logits [N, V]; row, target and both results [M].
    """
    rows, width = logits.shape
    on_cpu = logits.device.type == "cpu"
    largest, normaliser = torch.empty(2, rows, device=logits.device)
    winner = torch.full((rows,), -1, device=logits.device)
    step = max(1, min(rows, _SCRATCH["cpu" if on_cpu else "other"] // width))
    scratch = torch.empty(step, width, device=logits.device)
    for start in range(0, rows, step):
        part = scratch[: min(step, rows - start)].copy_(logits[start : start + step])
        largest[start : start + step] = top = part.amax(-1)
        if not on_cpu:
            winner[start : start + step] = part.argmax(-1)
        normaliser[start : start + step] = part.sub_(top[:, None]).exp_().sum(-1).log_()
        if on_cpu:
            # argmax takes a CPU longer than all the rest, so it is left to rows in which the largest occurs twice.
            for tied in ((part >= 1).sum(-1) > 1).nonzero()[:, 0].tolist():
                winner[start + tied] = logits[start + tied].argmax()
    chosen = logits[row, target].float()
    greedy = torch.where(winner[row] < 0, chosen == largest[row], winner[row] == target)
    return chosen - largest[row] - normaliser[row], greedy
