"""Label-smoothed negative log-likelihood of a linear head, without its full logits.

The product of all hidden states with the head, tokens x vocabulary, is the largest tensor of a training step.
It is made here a tile at a time with the platform's own matrix product; one kernel turns the tile into its
gradient in place (`kernels.py`); two more products turn that into the gradients of hidden states and head.
The gradients are worked out in the forward pass, where the tile is at hand anyway, and wait for the backward
pass: three products, as with full logits, where recomputing in the backward pass takes four.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.train.fused import FusedHead
from lm_eval_calib.train.kernels import Head

REDUCTIONS = ("mean", "sum", "none")


class SmoothedLoss(NamedTuple):
    """The smoothed loss, and beside it the plain negative log-likelihood (no gradient), reduced alike."""

    loss: torch.Tensor
    nll: torch.Tensor


def label_smoothed_nll(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    label_smoothing: float,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> SmoothedLoss:
    """Cross-entropy of targets (1-b) on y and b/V everywhere, in nats, from hidden states and head.

        x = hidden @ weight.T + bias
        z = softcap * tanh(logit_scale * x / softcap), or logit_scale * x without a soft-cap
        nll = logsumexp(z) - z_y
        loss = nll + b (z_y - mean_v z_v), b = label_smoothing

    Args:
        hidden: [..., H], the tokens' last hidden states. No shift happens here: hidden[i] predicts
            targets[i].
        weight: [V, H], the head. All V rows take part in the mean, so cut off padded rows first.
        targets: [...], integers in [0, V), or `ignore_index`.
        label_smoothing: b, from 0 to below 1.
        bias: [V], or None.
        softcap: the final soft-cap of the logits (Gemma 2: 30), or None.
        logit_scale: the factor on the logits (Cohere's `logit_scale`, 1 / Granite's `logits_scaling`).
        ignore_index: the target of tokens without a loss.
        reduction: "mean" over the tokens not ignored, "sum", or "none" (shape of `targets`, 0 where ignored).

    Returns:
        `SmoothedLoss(loss, nll)` in float32 (float64 for float64 inputs), both >= 0 but for rounding. Without
        any token to count both are 0 and still differentiable, where `F.cross_entropy` gives NaN.

    Under autocast the products run in its dtype. Equals `F.cross_entropy(z, targets, label_smoothing=b)` on
    float32 logits in value and gradient. "mean" and "sum" keep the gradients from the forward pass on; "none"
    and float16 (whose loss scale must be known first) recompute the logits in the backward pass instead, as
    does a second backward pass over the same graph. No double backward.

    Raises:
        CalibrationValueError: an argument out of its range, shapes that do not fit, or a target outside the
        vocabulary.

    Source: Szegedy et al. 2016 for the target distribution; Guo et al. 2017 and Lu et al. 2025 (arXiv
    2508.00264) for what it does to calibration.
    """
    head = Head(label_smoothing=label_smoothing, softcap=softcap, logit_scale=logit_scale)
    _validate(hidden, weight, bias, targets, head, ignore_index, reduction)
    flat_hidden, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    counts = flat_targets != ignore_index
    outside = counts & ((flat_targets < 0) | (flat_targets >= weight.shape[0]))
    count, wrong = torch.stack([counts.sum(), outside.sum()]).tolist()  # the one synchronisation on a GPU
    if wrong:
        raise CalibrationValueError(
            f"targets: expected indices from 0 to {weight.shape[0] - 1} or ignore_index ({ignore_index}), "
            f"got {int(flat_targets[outside][0])} among {wrong} others; a tokenizer with more tokens than "
            f"the head does this"
        )
    kept = counts.nonzero().squeeze(1) if count < flat_targets.numel() else None
    if kept is not None:
        flat_hidden, flat_targets = flat_hidden.index_select(0, kept), flat_targets.index_select(0, kept)
    scale = None if reduction == "none" else 1.0 if reduction == "sum" else 1 / max(count, 1)
    result = fused_head(flat_hidden, weight, bias, flat_targets, head, scale, statistics=False)
    if scale is not None:
        return SmoothedLoss(result.loss, result.nll.sum() * scale)
    shape = targets.shape
    if kept is None:
        return SmoothedLoss(result.loss.view(shape), result.nll.view(shape))
    loss, nll = (x.new_zeros(targets.numel()).index_copy(0, kept, x).view(shape) for x in (result.loss, result.nll))
    return SmoothedLoss(loss, nll)


class HeadResult(NamedTuple):
    """Of N tokens: `loss` (scaled sum, or per token) carries the gradient; the rest [N] does not."""

    loss: torch.Tensor
    token_loss: torch.Tensor
    nll: torch.Tensor
    entropy: torch.Tensor
    is_top1: torch.Tensor


def fused_head(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    head: Head,
    scale: float | None,
    *,
    statistics: bool = True,
) -> HeadResult:
    """Loss and statistics of [N, H] hidden states whose [N] targets all count.

    `scale` multiplies the sum of the losses; it belongs in here, because the gradients are computed with it
    and rounded once. None gives one loss a token. Without `statistics` entropy and top-1 are meaningless.
    """
    dtype = hidden.dtype
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    elif weight.dtype != dtype:
        raise CalibrationValueError(
            f"weight: expected the dtype of hidden ({dtype}) outside autocast, got {weight.dtype}; cast one of them"
        )
    needs = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    return HeadResult(*FusedHead.apply(hidden, weight, bias, targets, head, scale, dtype, needs, statistics))


def _validate(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    head: Head,
    ignore_index: int,
    reduction: str,
) -> None:
    def refuse(name: str, expected: str, got: Any) -> None:
        raise CalibrationValueError(f"{name}: expected {expected}, got {got}")

    if not 0 <= head.label_smoothing < 1:
        refuse("label_smoothing", "a number from 0 to below 1", head.label_smoothing)
    if head.softcap is not None and not head.softcap > 0:
        refuse("softcap", "a positive number, or None for no soft-cap", head.softcap)
    if not head.logit_scale > 0:
        refuse("logit_scale", "a positive factor", head.logit_scale)
    if reduction not in REDUCTIONS:
        refuse("reduction", f"one of {REDUCTIONS}", repr(reduction))
    if weight.ndim != 2 or not weight.shape[0] or hidden.shape[-1:] != weight.shape[1:]:
        refuse(
            "weight",
            f"shape [V, H] with the H of hidden {tuple(hidden.shape)} and V >= 1",
            tuple(weight.shape),
        )
    if targets.shape != hidden.shape[:-1]:
        refuse("targets", f"shape {tuple(hidden.shape[:-1])}, one for each hidden state", tuple(targets.shape))
    if targets.is_floating_point() or targets.is_complex():
        refuse("targets", "integers", targets.dtype)
    if bias is not None and bias.shape != weight.shape[:1]:
        refuse("bias", f"shape {tuple(weight.shape[:1])}", tuple(bias.shape))
    if not hidden.is_floating_point():
        refuse("hidden", "floating-point hidden states", hidden.dtype)
    if 0 <= ignore_index < weight.shape[0]:
        refuse("ignore_index", "an integer outside the vocabulary, such as -100", ignore_index)
