"""The autograd function: the order of tiles and products, and who keeps what until the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lm_eval_calib.train.kernels import (
    BEFORE,
    MAX,
    SUM_EXP,
    SUM_EXP_Z,
    SUM_Z,
    TARGET,
    Head,
    accumulation_dtype,
    columns_of,
    multiply,
    new_state,
    process_tile,
)

MIB = 2**20
# One tile, in bytes. The first stays within 512 MiB together with everything else that is not a gradient.
FUSED_TILE, RECOMPUTED_TILE, CPU_TILE = 501 * MIB, 256 * MIB, 256 * MIB
# A head gradient in 16 bits is rounded once a chunk of tokens; more chunks than this would show in its error.
MOST_CHUNKS = 16
FREQUENT_BYTES = 6 * MIB
LONGEST_CHUNK = 8192


@dataclass(frozen=True)
class Plan:
    """Chunks of tokens, blocks of vocabulary; the last block's tile is still there when the gradient's turn
    comes.
    """

    chunk: int
    blocks: tuple[tuple[int, int], ...]


def plan(tokens: int, vocabulary: int, itemsize: int, *, device: str, fused: bool) -> Plan:
    """As few products as memory and rounding allow.

    `fused`: the gradient follows at once and the head's gradient accumulates in 16 bits, so whole rows of the
    vocabulary in few chunks are best. Otherwise the tiles are recomputed or the gradient is float32, and many
    tokens are best.
    """
    budget = CPU_TILE if device == "cpu" else FUSED_TILE if fused else RECOMPUTED_TILE
    elements = budget // itemsize
    chunk = LONGEST_CHUNK
    if device == "cpu" or fused:
        chunk = elements // vocabulary
        if chunk >= 128:
            chunk = chunk // 128 * 128  # whole tiles of the matrix product
        chunk = max(chunk, _round_up(-(-tokens // MOST_CHUNKS), 128) if fused else 16)
        if 128 <= chunk < tokens:
            chunk = _round_up(-(-tokens // -(-tokens // chunk)), 128)  # chunks of about equal size
    chunk = max(min(chunk, tokens), 1)
    width = min(max(elements // chunk // 128 * 128, 128), vocabulary)
    ends = [*range(vocabulary - width, 0, -width), 0][::-1]
    return Plan(chunk, tuple(zip(ends, [*ends[1:], vocabulary], strict=True)))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class FusedHead(torch.autograd.Function):
    """See `loss.fused_head`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
        scale: float | None,
        dtype: torch.dtype,
        needs_grad: bool,
        statistics: bool,
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        needs = tuple(ctx.needs_input_grad[:3]) if needs_grad else (False, False, False)
        # Float16 gradients need the loss scale before they are rounded, and that is known in the backward
        # pass.
        at_once = any(needs) and scale is not None and dtype != torch.float16
        state = new_state(hidden.shape[0], hidden)
        ctx.gradients = run_tiles(
            hidden,
            weight,
            bias,
            targets,
            state,
            head,
            dtype,
            fold=True,
            needs=needs if at_once else (False, False, False),
            factor=1.0 if scale is None else scale,
            statistics=statistics,
        )
        log_normalizer = state[MAX] + torch.log(state[SUM_EXP])
        nll = log_normalizer - state[TARGET]
        token_loss = nll
        if head.label_smoothing:
            token_loss = nll + head.label_smoothing * (state[TARGET] - state[SUM_Z] / weight.shape[0])
        # Outputs must be tensors of their own, of which one alone carries the gradient.
        loss = token_loss.clone() if scale is None else token_loss.sum() * scale
        token_loss = token_loss.clone() if token_loss is nll else token_loss
        entropy = log_normalizer - state[SUM_EXP_Z] / state[SUM_EXP]
        is_top1 = (state[TARGET] >= state[MAX]) & (state[TARGET] > state[BEFORE])
        ctx.save_for_backward(hidden, weight, bias, targets, state)
        ctx.head, ctx.scale, ctx.dtype, ctx.needs = head, scale, dtype, needs
        ctx.mark_non_differentiable(token_loss, nll, entropy, is_top1)
        return loss, token_loss, nll, entropy, is_top1

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor | None, *_: None) -> tuple[torch.Tensor | None, ...]:
        nothing = (None,) * 6
        if grad_loss is None or not any(ctx.needs):
            return (None, None, None, *nothing)
        gradients: Any
        if ctx.gradients is not None:
            gradients, ctx.gradients = ctx.gradients, None
            for gradient in gradients:
                if gradient is not None:
                    multiply(gradient, grad_loss)
            return (*gradients, *nothing)
        hidden, weight, bias, targets, state = ctx.saved_tensors
        row_weights = grad_loss.to(state.dtype) * (1.0 if ctx.scale is None else ctx.scale)
        row_weights = row_weights.expand(hidden.shape[0]).contiguous()
        gradients = run_tiles(
            hidden,
            weight,
            bias,
            targets,
            state,
            ctx.head,
            ctx.dtype,
            fold=False,
            needs=ctx.needs,
            row_weights=row_weights,
        )
        return (*gradients, *nothing)


def run_tiles(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    state: torch.Tensor,
    head: Head,
    dtype: torch.dtype,
    *,
    fold: bool,
    needs: tuple[bool, bool, bool],
    factor: float = 1.0,
    row_weights: torch.Tensor | None = None,
    statistics: bool = True,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None] | None:
    """Fold all tiles into the state (`fold`), and return the gradients that are needed, times `factor`."""
    tokens, vocabulary = hidden.shape[0], weight.shape[0]
    wants_grad = any(needs)
    fused = fold and wants_grad and weight.dtype == dtype
    tiles = plan(tokens, vocabulary, dtype.itemsize, device=hidden.device.type, fused=fused)
    chunks = [slice(first, min(first + tiles.chunk, tokens)) for first in range(0, tokens, tiles.chunk)]
    wide = accumulation_dtype(dtype)
    # Of several chunks a GPU's 16-bit gradient itself takes the sum: there is no room for twice its size in
    # float32.
    sums = weight.dtype if hidden.is_cuda or len(chunks) == 1 else wide
    frequent = None
    if needs[1] and sums.itemsize == 2 and len(chunks) > 2:
        frequent = FrequentRows(targets, weight)
    # Wide accesses need aligned rows; on CPU a product may read the padding, where the content is arbitrary.
    align = 64 if hidden.is_cuda else 1
    widest = max(_round_up(end - start, align) for start, end in tiles.blocks)
    buffer = torch.empty(min(tiles.chunk, max(tokens, 1)) * widest, device=hidden.device, dtype=dtype)
    grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if needs[0] else None
    grad_weight = torch.empty(weight.shape, device=hidden.device, dtype=sums) if needs[1] else None
    grad_bias = torch.zeros(vocabulary, device=hidden.device, dtype=wide) if needs[2] else None
    if tokens == 0 and grad_weight is not None:
        grad_weight.zero_()
    alpha = head.gradient_factor * factor
    # (block, fold it, differentiate it): the last block's tile is differentiated as it stands.
    steps = [(block, fold, wants_grad and (not fold or block == tiles.blocks[-1])) for block in tiles.blocks]
    if fold and wants_grad:
        steps += [(block, False, True) for block in tiles.blocks[:-1]]

    for rows in chunks:
        chunk = hidden[rows].to(dtype)
        # A chunk of one block is written straight into its gradient; sums over blocks are kept in float32.
        partial = None
        if grad_hidden is not None:
            direct = len(tiles.blocks) == 1 or hidden.dtype == wide
            partial = grad_hidden[rows] if direct else torch.empty_like(chunk, dtype=wide)
        summed = False
        for (start, end), folds, differentiates in steps:
            head_rows = weight[start:end].to(dtype)
            tile = buffer[: chunk.shape[0] * _round_up(end - start, align)].view(chunk.shape[0], -1)
            tile = tile[:, : end - start]
            if bias is None:
                torch.mm(chunk, head_rows.t(), out=tile)
            else:
                torch.addmm(bias[start:end].to(dtype), chunk, head_rows.t(), out=tile)
            process_tile(
                tile,
                targets[rows],
                state[:, rows],
                head,
                first_column=start,
                vocabulary=vocabulary,
                fold=folds,
                gradient=differentiates,
                row_weights=None if row_weights is None else row_weights[rows],
                statistics=statistics,
            )
            if not differentiates:
                continue
            if partial is not None:
                _add_product(partial, tile, head_rows, alpha, keep=summed)
            if grad_weight is not None:
                _add_product(grad_weight[start:end], tile.t(), chunk, alpha, keep=rows.start > 0)
            if frequent is not None:
                frequent.add(tile, start, chunk, alpha)
            if grad_bias is not None:
                grad_bias[start:end] += tile.sum(0, dtype=wide) * alpha
            summed = True
        if partial is not None and grad_hidden is not None and not direct:
            grad_hidden[rows] = partial
    if not wants_grad:
        return None
    if grad_weight is not None:
        grad_weight = grad_weight.to(weight.dtype)
        if frequent is not None:
            grad_weight.index_copy_(0, frequent.index, frequent.sum.to(weight.dtype))
    return grad_hidden, grad_weight, None if grad_bias is None else grad_bias.to(weight.dtype)


class FrequentRows:
    """The head's gradient at the most frequent targets, summed in float32.

    A sum kept in 16 bits is rounded with each chunk. That shows where several chunks contribute much, which
    is at the few hundred most frequent targets: text is Zipfian. Their float32 sums fit where those of the
    whole head do not.
    """

    def __init__(self, targets: torch.Tensor, weight: torch.Tensor) -> None:
        vocabulary, size = weight.shape
        count = min(FREQUENT_BYTES // (4 * size), 1024) // 64 * 64  # aligned rows for the product
        counts = torch.zeros(vocabulary, device=targets.device, dtype=torch.int32)
        counts.scatter_add_(0, targets, torch.ones_like(targets, dtype=torch.int32))
        self.index = counts.topk(min(max(count, 64), vocabulary), sorted=False).indices
        self.sum = torch.zeros(self.index.numel(), size, device=targets.device, dtype=torch.float32)

    def add(self, tile: torch.Tensor, start: int, chunk: torch.Tensor, alpha: float) -> None:
        _add_product(self.sum, columns_of(tile, self.index - start).t(), chunk, alpha, keep=True)


def _add_product(into: torch.Tensor, left: torch.Tensor, right: torch.Tensor, alpha: float, *, keep: bool) -> None:
    """`into = keep * into + alpha * left @ right`, accumulated in the dtype of `into` without rounding the
    product.
    """
    beta = 1 if keep else 0  # with beta 0 the uninitialised content is not read
    if into.dtype == left.dtype:
        torch.addmm(into, left, right, beta=beta, alpha=alpha, out=into)
    elif into.is_cuda:
        torch.addmm(into, left, right, beta=beta, alpha=alpha, out_dtype=into.dtype, out=into)
    else:
        # No mixed product on CPU: upcast, since rounding each chunk's product shows in the sum.
        torch.addmm(into, left.to(into.dtype), right.to(into.dtype), beta=beta, alpha=alpha, out=into)
