"""How each metric of many resamples follows from their sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from lm_eval_calib.inputs import Floats
from lm_eval_calib.metrics.classwise import classwise_from_sums
from lm_eval_calib.metrics.smooth import smooth_error
from lm_eval_calib.metrics.sweep import sweep_error

if TYPE_CHECKING:
    from lm_eval_calib.resampling import Block


def _ece(block: Block) -> Floats:
    return np.asarray(np.abs(block.bin_gaps).sum(axis=1) / block.total)


def _rms_ce(block: Block) -> Floats:
    held, _, gaps = block.bins
    squares = np.where(held > 0, np.square(gaps) / held, 0.0)
    return np.asarray(np.sqrt(squares.sum(axis=1) / block.total))


def _rms_ce_debiased(block: Block) -> Floats:
    held, hits, gaps = block.bins
    accuracy = hits / held
    squares = np.square(gaps) / held - held * accuracy * (1 - accuracy) / (held - 1)
    return np.asarray(np.sqrt(np.maximum(np.where(held > 1, squares, 0.0).sum(axis=1), 0.0) / block.total))


def _mce(block: Block) -> Floats:
    held, _, gaps = block.bins
    return np.asarray(np.where(held > 0, np.abs(gaps) / held, 0.0).max(axis=1))


def _ace(block: Block) -> Floats:
    rows = np.arange(block.total.size)
    return block.sums.mass_error(np.full(rows.size, block.group.num_bins), rows)


def _ece_sweep(block: Block) -> Floats:
    return sweep_error(block.sums)


def _smooth_ece(block: Block) -> Floats:
    return smooth_error(np.divide(block.cells.T, block.total[:, None], order="C"))


def _auroc(block: Block) -> Floats:
    right = block.sums.right
    # In whole numbers, hence exact.
    return np.asarray(block.ranking[0] / (2 * right * (block.total - right)))


def _aurc(block: Block) -> Floats:
    return np.asarray(1 - block.ranking[1] / block.total)


def _accuracy_at_coverage(block: Block) -> Floats:
    sums = block.sums
    answered = block.group.coverage * block.total
    withheld = block.total - answered
    rows = np.arange(withheld.size)
    group = sums.first_reaching(withheld[:, None], rows)
    (before, upto), (below, rest) = (
        (at(group, rows)[:, 0], at(group + 1, rows)[:, 0]) for at in (sums.counts_at, sums.hits_at)
    )
    share = np.where(upto > before, (withheld - before) / (upto - before), 0.0)
    return np.asarray((sums.right - below - share * (rest - below)) / answered)


def _classwise_ece(block: Block) -> Floats:
    return classwise_from_sums(*block.classes[:2])


def _brier_reliability(block: Block) -> Floats:
    return block.brier_parts[0]


def _brier_resolution(block: Block) -> Floats:
    return block.brier_parts[1]


def _brier_uncertainty(block: Block) -> Floats:
    return block.brier_parts[2]


KERNELS: Mapping[str, Callable[[Block], Floats]] = MappingProxyType(
    {
        "ece": _ece,
        "rms_ce": _rms_ce,
        "rms_ce_debiased": _rms_ce_debiased,
        "mce": _mce,
        "ace": _ace,
        "ece_sweep": _ece_sweep,
        "smooth_ece": _smooth_ece,
        "auroc": _auroc,
        "aurc": _aurc,
        "accuracy_at_coverage": _accuracy_at_coverage,
        "classwise_ece": _classwise_ece,
        "brier_reliability": _brier_reliability,
        "brier_resolution": _brier_resolution,
        "brier_uncertainty": _brier_uncertainty,
    }
)
# What they are computed from: bins of every choice position, bins of confidence, or sums over rising confidence.
OF_CLASSES = frozenset({"classwise_ece", "brier_reliability", "brier_resolution", "brier_uncertainty"})
OF_BINS = frozenset({"ece", "rms_ce", "rms_ce_debiased", "mce"})
OF_SUMS = frozenset(KERNELS) - OF_CLASSES - {"ece", "smooth_ece"}
