# ruff: noqa: N803
"""The CUDA side of `kernels.process_tile`: one Triton program a token, so that a row needs no second launch.

A tile is read at the speed of the memory or not much below, which leaves about a dozen instructions for each
logit. Hence: the maximum is taken over the raw products (the soft-cap is monotonic), a lane of eight
neighbours keeps sums of its own so that no block of the row waits at a barrier, only the row's end is masked,
and the target is mended afterwards.
"""

# No `from __future__ import annotations`: Triton reads the constexpr annotations.
import triton
import triton.language as tl
from triton.language.extra import libdevice

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _log2_logits(x, inner, outer, SOFTCAP: tl.constexpr, PRECISE: tl.constexpr):
    """Logits in units of log 2, so that exp2 needs no multiplication of its own, and the soft-cap's slope."""
    if SOFTCAP:
        if PRECISE:
            tanh = libdevice.tanh(x * inner)
            slope = 1 - tanh * tanh
        else:
            # tanh(u) = 1 - 2 / (exp(2u) + 1), good to 1e-7 absolute: far below the rounding of a 16-bit tile.
            tail = 2 / (tl.exp2(x * (inner * 2.8853900817779268)) + 1)
            tanh = 1 - tail
            slope = tail * (2 - tail)
        return tanh * outer, slope
    else:
        return x * outer, 1.0


@triton.jit
def _fold(
    row_ptr, start, neighbours, columns, tile_stride, target, inner, outer,
    lane_x, lane_z, lane_exp, lane_sum, lane_exp_z, lane_before,
    MASKED: tl.constexpr, SOFTCAP: tl.constexpr, PRECISE: tl.constexpr, STATISTICS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of a row into the lanes' largest product and logit, sum of exp, of z, of exp * z, and
    `before`.
    """
    offsets = start + neighbours
    if MASKED:
        # Rows are padded to `tile_stride`, a multiple of 64: only a mask of that kind allows wide accesses.
        x = tl.load(row_ptr + offsets, mask=offsets < tile_stride, other=0.0).to(tl.float32)
        inside = offsets < columns
        largest = tl.max(tl.where(inside, x, -float("inf")), axis=1)
        # Outside the row x is 0, so z is 0 there and adds nothing to the sums of z.
        x = tl.where(inside, x, 0.0)
    else:
        x = tl.load(row_ptr + offsets).to(tl.float32)
        inside = offsets >= 0
        largest = tl.max(x, axis=1)
    if STATISTICS:
        if start + BLOCK <= target:
            lane_before = tl.maximum(lane_before, largest)
        elif start < target:
            earlier = tl.where(inside & (offsets < target), x, -float("inf"))
            lane_before = tl.maximum(lane_before, tl.max(earlier, axis=1))
    lane_x = tl.maximum(lane_x, largest)
    new_z, _ = _log2_logits(lane_x, inner, outer, SOFTCAP, PRECISE)
    shrink = tl.exp2(lane_z - new_z)
    z, _ = _log2_logits(x, inner, outer, SOFTCAP, PRECISE)
    exp = tl.exp2(z - new_z[:, None])
    if MASKED:
        exp = tl.where(inside, exp, 0.0)
    lane_exp = lane_exp * shrink + tl.sum(exp, axis=1)
    lane_sum += tl.sum(z, axis=1)
    if STATISTICS:
        lane_exp_z = lane_exp_z * shrink + tl.sum(exp * z, axis=1)
    return lane_x, new_z, lane_exp, lane_sum, lane_exp_z, lane_before


@triton.jit
def _differentiate(
    row_ptr, offsets, inside, inner, outer, log_normalizer, probability_factor, uniform, weight,
    MASKED: tl.constexpr, SOFTCAP: tl.constexpr, PRECISE: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """One block of a row into its gradient, but for the target."""
    if MASKED:
        x = tl.load(row_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    else:
        x = tl.load(row_ptr + offsets).to(tl.float32)
    z, slope = _log2_logits(x, inner, outer, SOFTCAP, PRECISE)
    gradient = tl.exp2(z - log_normalizer) * probability_factor - uniform
    if SOFTCAP:
        gradient *= slope
    if WEIGHTED:
        gradient *= weight
    gradient = gradient.to(row_ptr.dtype.element_ty)
    if MASKED:
        tl.store(row_ptr + offsets, gradient, mask=inside)
    else:
        tl.store(row_ptr + offsets, gradient)


@triton.jit
def tile_kernel(
    tile_ptr,
    tile_stride,
    targets_ptr,
    state_ptr,
    state_stride,
    weights_ptr,
    first_column,
    columns,
    inner,
    outer,
    probability_factor,
    uniform,
    FOLD: tl.constexpr,
    GRADIENT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    STATISTICS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = tile_ptr + row * tile_stride
    state_ptr += row
    target = (tl.load(targets_ptr + row) - first_column).to(tl.int32)
    is_here = (target >= 0) & (target < columns)
    target_x = tl.load(row_ptr + target, mask=is_here, other=0.0).to(tl.float32)
    target_z, target_slope = _log2_logits(target_x, inner, outer, SOFTCAP, PRECISE)
    largest = tl.load(state_ptr) / LN2
    sum_exp = tl.load(state_ptr + state_stride)
    neighbours = tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    full = columns // BLOCK * BLOCK

    if FOLD:
        # Finite, so that a lane beyond the end of the row does not compute inf - inf.
        lane_x = tl.full((BLOCK // 8,), -1e30, tl.float32)
        lane_z, _slopes = _log2_logits(lane_x, inner, outer, SOFTCAP, PRECISE)
        lane_before = tl.full((BLOCK // 8,), -float("inf"), tl.float32)
        lane_exp = tl.zeros((BLOCK // 8,), tl.float32)
        lane_sum = tl.zeros((BLOCK // 8,), tl.float32)
        lane_exp_z = tl.zeros((BLOCK // 8,), tl.float32)
        for start in range(0, full, BLOCK):
            lane_x, lane_z, lane_exp, lane_sum, lane_exp_z, lane_before = _fold(
                row_ptr, start, neighbours, columns, tile_stride, target, inner, outer,
                lane_x, lane_z, lane_exp, lane_sum, lane_exp_z, lane_before,
                False, SOFTCAP, PRECISE, STATISTICS, BLOCK,
            )  # fmt: skip
        if full < columns:
            lane_x, lane_z, lane_exp, lane_sum, lane_exp_z, lane_before = _fold(
                row_ptr, full, neighbours, columns, tile_stride, target, inner, outer,
                lane_x, lane_z, lane_exp, lane_sum, lane_exp_z, lane_before,
                True, SOFTCAP, PRECISE, STATISTICS, BLOCK,
            )  # fmt: skip
        old_largest = largest
        largest = tl.maximum(old_largest, tl.max(lane_z, axis=0))
        shrink = tl.exp2(old_largest - largest)
        lane_shrink = tl.exp2(lane_z - largest)
        sum_exp = sum_exp * shrink + tl.sum(lane_exp * lane_shrink, axis=0)
        tl.store(state_ptr, largest * LN2)
        tl.store(state_ptr + state_stride, sum_exp)
        sum_z = tl.load(state_ptr + 2 * state_stride) + tl.sum(lane_sum, axis=0) * LN2
        tl.store(state_ptr + 2 * state_stride, sum_z)
        if is_here:
            tl.store(state_ptr + 4 * state_stride, target_z * LN2)
        if STATISTICS:
            exp_z = tl.load(state_ptr + 3 * state_stride) * shrink
            exp_z += tl.sum(lane_exp_z * lane_shrink, axis=0) * LN2
            tl.store(state_ptr + 3 * state_stride, exp_z)
            if target > 0:
                before, _slope = _log2_logits(tl.max(lane_before, axis=0), inner, outer, SOFTCAP, PRECISE)
                before = tl.maximum(tl.load(state_ptr + 5 * state_stride), before * LN2)
                tl.store(state_ptr + 5 * state_stride, before)

    if GRADIENT:
        log_normalizer = largest + tl.log2(sum_exp)
        weight = 1.0
        if WEIGHTED:
            weight = tl.load(weights_ptr + row)
        # Every warp has read the target's product before any warp overwrites the row.
        tl.debug_barrier()
        for start in range(0, full, BLOCK):
            offsets = start + neighbours
            _differentiate(
                row_ptr, offsets, offsets, inner, outer, log_normalizer, probability_factor, uniform, weight,
                False, SOFTCAP, PRECISE, WEIGHTED,
            )  # fmt: skip
        if full < columns:
            offsets = full + neighbours
            _differentiate(
                row_ptr, offsets, offsets < tile_stride, inner, outer, log_normalizer, probability_factor, uniform,
                weight, True, SOFTCAP, PRECISE, WEIGHTED,
            )  # fmt: skip
        if is_here:
            gradient = (tl.exp2(target_z - log_normalizer) * probability_factor - uniform - 1) * target_slope
            tl.debug_barrier()
            tl.store(row_ptr + target, (gradient * weight).to(row_ptr.dtype.element_ty))


@triton.jit
def scale_kernel(values_ptr, count, factor_ptr, BLOCK: tl.constexpr):
    """Multiply in place, or return at once when the factor is 1 (known to the device alone)."""
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        for start in range(tl.program_id(0).to(tl.int64) * BLOCK, count, step):
            offsets = start + tl.arange(0, BLOCK)
            inside = offsets < count
            values = tl.load(values_ptr + offsets, mask=inside).to(tl.float32) * factor
            tl.store(values_ptr + offsets, values.to(values_ptr.dtype.element_ty), mask=inside)


@triton.jit
def columns_kernel(tile_ptr, tile_stride, width, index_ptr, columns_ptr, count, BLOCK: tl.constexpr):
    """Copy some columns of a tile; 0 for an index outside."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + offsets, mask=offsets < count, other=-1)
    values = tl.load(tile_ptr + row * tile_stride + index, mask=(index >= 0) & (index < width), other=0.0)
    tl.store(columns_ptr + row * count + offsets, values, mask=offsets < count)
