"""One tile of logits: the statistics of its rows, then its gradient in place.

A tile holds the product of some tokens' hidden states with a block of the head's rows, bias included: shape
[tokens, columns] of a vocabulary of V. Logits are z = softcap * tanh(scale * x / softcap), or scale * x
without a soft-cap. The statistics of a token (`STATE`, natural units, float32) are folded over the blocks of
the vocabulary one after the other; once all are folded, the loss L = lse - (1-b) z_y - b mean(z) has the
gradient

    dL/dx_v = (1-b) * scale * (p_v / (1-b) - b / ((1-b) V) - [v = y]) * (1 - tanh^2).

The factor (1-b) * scale is left to the matrix products that follow, which apply it in float32: in bf16 the
target's 1 - b would be off by the same 2e-3 on every token, a bias between pull and push; 1 is exact.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Any

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None

# Rows of the state, one column a token: max z, sum exp(z - max), sum z, sum exp(z - max) z, z of the target,
# and the largest z before the target's index (ties go to the first index, as in argmax).
STATE = ("max", "sum_exp", "sum_z", "sum_exp_z", "target", "before")
MAX, SUM_EXP, SUM_Z, SUM_EXP_Z, TARGET, BEFORE = range(len(STATE))


@dataclass(frozen=True)
class Head:
    """What the loss applies to the products of hidden states and head."""

    label_smoothing: float
    softcap: float | None = None
    logit_scale: float = 1.0

    @property
    def gradient_factor(self) -> float:
        """What a tile's gradient is to be multiplied by."""
        return (1 - self.label_smoothing) * self.logit_scale


def new_state(tokens: int, like: torch.Tensor) -> torch.Tensor:
    """The state before any block was folded in."""
    state = torch.zeros(len(STATE), tokens, device=like.device, dtype=accumulation_dtype(like.dtype))
    state[MAX] = state[BEFORE] = -math.inf
    return state


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def process_tile(
    tile: torch.Tensor,
    targets: torch.Tensor,
    state: torch.Tensor,
    head: Head,
    *,
    first_column: int,
    vocabulary: int,
    fold: bool,
    gradient: bool,
    row_weights: torch.Tensor | None = None,
    statistics: bool = True,
) -> None:
    """Fold the tile into the state, turn it into its gradient (the state complete by then), or both.

    `tile` [T, C] is overwritten if `gradient`, and with it whatever lies between its rows; `targets` [T] are
    indices into the whole vocabulary; `state` [6, T]; `row_weights` [T] multiply the rows of the gradient.
    Without `statistics` the state's last entries, which entropy and top-1 need, may be left out.
    """
    if not tile.numel():
        return
    run = _triton_tile if HAS_TRITON and tile.is_cuda and tile.dtype != torch.float64 else _torch_tile
    run(tile, targets, state, head, first_column, vocabulary, fold, gradient, row_weights, statistics)


def _torch_tile(
    tile: torch.Tensor,
    targets: torch.Tensor,
    state: torch.Tensor,
    head: Head,
    first_column: int,
    vocabulary: int,
    fold: bool,
    gradient: bool,
    row_weights: torch.Tensor | None,
    statistics: bool,
) -> None:
    z = tile.to(state.dtype)
    if z is tile and not gradient:
        z = tile.clone() if head.softcap is not None or head.logit_scale != 1 else tile
    steepness = None
    if head.softcap is not None:
        # The tile itself may be overwritten from here on: a gradient is asked for, or z is a copy.
        tanh = z.mul_(head.logit_scale / head.softcap).tanh_()
        if gradient:
            steepness = tanh.square().neg_().add_(1)
        z = tanh.mul_(head.softcap)
    elif head.logit_scale != 1:
        z.mul_(head.logit_scale)
    columns = torch.arange(first_column, first_column + tile.shape[1], device=tile.device)
    inside = (targets >= first_column) & (targets < first_column + tile.shape[1])
    local = (targets - first_column).clamp(0, tile.shape[1] - 1)[:, None]
    if fold:
        largest = torch.maximum(state[MAX], z.amax(1))
        shrink = torch.exp(state[MAX] - largest)
        exp = torch.exp(z - largest[:, None])
        state[MAX] = largest
        state[SUM_EXP].mul_(shrink).add_(exp.sum(1))
        state[SUM_Z] += z.sum(1)
        state[TARGET] = torch.where(inside, z.gather(1, local)[:, 0], state[TARGET])
        if statistics:
            state[SUM_EXP_Z].mul_(shrink).add_(exp.mul_(z).sum(1))
            earlier = torch.where(columns < targets[:, None], z, -math.inf).amax(1)
            state[BEFORE] = torch.maximum(state[BEFORE], earlier)
    if gradient:
        z -= (state[MAX] + torch.log(state[SUM_EXP]))[:, None]
        z.exp_()
        kept = 1 - head.label_smoothing
        z.mul_(1 / kept).sub_(head.label_smoothing / (kept * vocabulary))
        z.scatter_add_(1, local, -inside[:, None].to(z.dtype))
        if steepness is not None:
            z.mul_(steepness)
        if row_weights is not None:
            z.mul_(row_weights[:, None])
        if z is not tile:
            tile.copy_(z)


def _triton_tile(
    tile: torch.Tensor,
    targets: torch.Tensor,
    state: torch.Tensor,
    head: Head,
    first_column: int,
    vocabulary: int,
    fold: bool,
    gradient: bool,
    row_weights: torch.Tensor | None,
    statistics: bool,
) -> None:
    kept = 1 - head.label_smoothing
    log2e = 1 / math.log(2)
    # Measured on an H200: one program a multiprocessor and a half, and little of the row left to the masked
    # end.
    block = 4096 if tile.shape[1] < 65536 else 8192
    has_cap = head.softcap is not None
    cap = head.softcap if head.softcap is not None else 1.0
    _kernels().tile_kernel[(tile.shape[0],)](
        tile,
        tile.stride(0),
        targets,
        state,
        state.stride(0),
        state if row_weights is None else row_weights,
        first_column,
        tile.shape[1],
        head.logit_scale / cap if has_cap else 1.0,
        cap * log2e if has_cap else head.logit_scale * log2e,
        1 / kept,
        head.label_smoothing / (kept * vocabulary),
        FOLD=fold,
        GRADIENT=gradient,
        SOFTCAP=has_cap,
        PRECISE=tile.dtype == torch.float32,
        WEIGHTED=row_weights is not None,
        STATISTICS=statistics,
        BLOCK=block,
        num_warps=16,
    )


def columns_of(tile: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Columns of a tile, [T, K]; zeros where the index lies outside."""
    if not (HAS_TRITON and tile.is_cuda):
        inside = (index >= 0) & (index < tile.shape[1])
        return tile.index_select(1, index.clamp(0, tile.shape[1] - 1)) * inside
    columns = torch.empty(tile.shape[0], index.numel(), device=tile.device, dtype=tile.dtype)
    grid = (tile.shape[0], -(-index.numel() // 512))
    _kernels().columns_kernel[grid](tile, tile.stride(0), tile.shape[1], index, columns, index.numel(), BLOCK=512)
    return columns


def multiply(values: torch.Tensor, factor: torch.Tensor) -> None:
    """In place; the usual factor of 1 costs neither a pass over the values nor a synchronisation."""
    if values.is_cuda and HAS_TRITON and values.is_contiguous() and values.dtype != torch.float64:
        size = values.numel()
        if size:
            _kernels().scale_kernel[(min(-(-size // 4096), 1024),)](values, size, factor.float(), BLOCK=4096)
    elif values.is_cuda or factor != 1:
        values.mul_(factor)


def _kernels() -> Any:
    from lm_eval_calib.train import triton_kernels

    return triton_kernels
