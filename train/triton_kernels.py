"""The CUDA side of `kernels.process_tile`: one Triton program a token, so that a row needs no second launch."""

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
        z = tanh * outer
    else:
        z = x * outer
        slope = 1.0
    return z, slope


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
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = tile_ptr + row * tile_stride
    state_ptr += row
    target = (tl.load(targets_ptr + row) - first_column).to(tl.int32)
    largest = tl.load(state_ptr) / LN2
    sum_exp = tl.load(state_ptr + state_stride)

    # Eight neighbours a lane: one wide access, and a maximum that is renewed without a barrier.
    neighbours = tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]

    if FOLD:
        # Finite, so that a lane beyond the end of the row does not compute inf - inf.
        lane_largest = tl.full((BLOCK // 8,), -1e30, tl.float32)
        lane_before = tl.full((BLOCK // 8,), -float("inf"), tl.float32)
        lane_exp = tl.zeros((BLOCK // 8,), tl.float32)
        lane_exp_z = tl.zeros((BLOCK // 8,), tl.float32)
        lane_z = tl.zeros((BLOCK // 8,), tl.float32)
        for start in tl.range(0, columns, BLOCK, num_stages=STAGES):
            offsets = start + neighbours
            # Rows are padded to `tile_stride`, a multiple of 64: only a mask of that kind allows wide accesses.
            x = tl.load(row_ptr + offsets, mask=offsets < tile_stride, other=0.0).to(tl.float32)
            inside = offsets < columns
            z, _ = _log2_logits(tl.where(inside, x, 0.0), inner, outer, SOFTCAP, PRECISE)
            masked = tl.where(inside, z, -float("inf"))
            block_largest = tl.max(masked, axis=1)
            if start + BLOCK <= target:
                lane_before = tl.maximum(lane_before, block_largest)
            elif start < target:
                earlier = tl.where(offsets < target, masked, -float("inf"))
                lane_before = tl.maximum(lane_before, tl.max(earlier, axis=1))
            new_largest = tl.maximum(lane_largest, block_largest)
            shrink = tl.exp2(lane_largest - new_largest)
            exp = tl.exp2(masked - new_largest[:, None])
            # Outside the row x is 0, so z is 0 there and adds nothing to either sum of z.
            lane_exp = lane_exp * shrink + tl.sum(exp, axis=1)
            lane_exp_z = lane_exp_z * shrink + tl.sum(exp * z, axis=1)
            lane_z += tl.sum(z, axis=1)
            lane_largest = new_largest
        old_largest = largest
        largest = tl.maximum(old_largest, tl.max(lane_largest, axis=0))
        shrink = tl.exp2(old_largest - largest)
        lane_shrink = tl.exp2(lane_largest - largest)
        sum_exp = sum_exp * shrink + tl.sum(lane_exp * lane_shrink, axis=0)
        sum_z = tl.load(state_ptr + 2 * state_stride) + tl.sum(lane_z, axis=0) * LN2
        sum_exp_z = tl.load(state_ptr + 3 * state_stride) * shrink + tl.sum(lane_exp_z * lane_shrink, axis=0) * LN2
        before = tl.maximum(tl.load(state_ptr + 5 * state_stride), tl.max(lane_before, axis=0) * LN2)
        if (target >= 0) & (target < columns):
            x = tl.load(row_ptr + target).to(tl.float32)
            z, _ = _log2_logits(x, inner, outer, SOFTCAP, PRECISE)
            tl.store(state_ptr + 4 * state_stride, z * LN2)
        tl.store(state_ptr, largest * LN2)
        tl.store(state_ptr + state_stride, sum_exp)
        tl.store(state_ptr + 2 * state_stride, sum_z)
        tl.store(state_ptr + 3 * state_stride, sum_exp_z)
        tl.store(state_ptr + 5 * state_stride, before)

    if GRADIENT:
        # Every warp has read the target's logit before any warp overwrites the row.
        tl.debug_barrier()
        log_normalizer = largest + tl.log2(sum_exp)
        weight = 1.0
        if WEIGHTED:
            weight = tl.load(weights_ptr + row)
        for start in tl.range(0, columns, BLOCK, num_stages=STAGES):
            offsets = start + neighbours
            padded = offsets < tile_stride
            x = tl.load(row_ptr + offsets, mask=padded, other=0.0).to(tl.float32)
            z, slope = _log2_logits(x, inner, outer, SOFTCAP, PRECISE)
            gradient = tl.exp2(z - log_normalizer) * probability_factor - uniform
            gradient = tl.where(offsets == target, gradient - 1, gradient)
            if SOFTCAP:
                gradient *= slope
            if WEIGHTED:
                gradient *= weight
            tl.store(row_ptr + offsets, gradient.to(tile_ptr.dtype.element_ty), mask=padded)


@triton.jit
def scale_kernel(values_ptr, count, factor_ptr, BLOCK: tl.constexpr):
    """Multiply in place, or return at once when the factor is 1 (known to the device alone)."""
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = offsets < count
        values = tl.load(values_ptr + offsets, mask=inside).to(tl.float32) * factor
        tl.store(values_ptr + offsets, values.to(values_ptr.dtype.element_ty), mask=inside)
