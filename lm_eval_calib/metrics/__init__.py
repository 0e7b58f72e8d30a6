"""Metrics of calibration as pure NumPy functions, and the table of them that everything else reads."""

from lm_eval_calib.metrics.accuracy import acc, confidence, overconfidence
from lm_eval_calib.metrics.binned import ace, ece, mce, rms_ce, rms_ce_debiased
from lm_eval_calib.metrics.proper import brier, entropy, nll
from lm_eval_calib.metrics.ranking import auroc
from lm_eval_calib.metrics.table import METRICS, Metric

__all__ = [
    "METRICS",
    "Metric",
    "acc",
    "ace",
    "auroc",
    "brier",
    "confidence",
    "ece",
    "entropy",
    "mce",
    "nll",
    "overconfidence",
    "rms_ce",
    "rms_ce_debiased",
]
