"""Metrics of calibration as pure NumPy functions, and the table of them that everything else reads."""

from lm_eval_calib.metrics.accuracy import acc, confidence, overconfidence
from lm_eval_calib.metrics.binned import ace, ece, mce, rms_ce, rms_ce_debiased
from lm_eval_calib.metrics.classwise import (
    BrierDecomposition,
    brier_decomposition,
    brier_reliability,
    brier_resolution,
    brier_uncertainty,
    classwise_ece,
)
from lm_eval_calib.metrics.proper import brier, entropy, nll
from lm_eval_calib.metrics.ranking import accuracy_at_coverage, aurc, auroc
from lm_eval_calib.metrics.smooth import smooth_ece
from lm_eval_calib.metrics.sweep import ece_sweep
from lm_eval_calib.metrics.table import METRICS, Metric

__all__ = [
    "METRICS",
    "BrierDecomposition",
    "Metric",
    "acc",
    "accuracy_at_coverage",
    "ace",
    "aurc",
    "auroc",
    "brier",
    "brier_decomposition",
    "brier_reliability",
    "brier_resolution",
    "brier_uncertainty",
    "classwise_ece",
    "confidence",
    "ece",
    "ece_sweep",
    "entropy",
    "mce",
    "nll",
    "overconfidence",
    "rms_ce",
    "rms_ce_debiased",
    "smooth_ece",
]
