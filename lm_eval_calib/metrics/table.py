"""The table of metrics that the harness, the reports and the documentation read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Any, Literal

from lm_eval_calib.inputs import Bools, Floats
from lm_eval_calib.metrics import accuracy, binned, classwise, proper, ranking, smooth, sweep


@dataclass(frozen=True)
class Metric:
    """One metric and what must be known to show it.

    Attributes:
        name: as in lm-eval's tables.
        function: returns a float; NaN where the metric is undefined.
        inputs: "confidence" for `function(confidence, correct, **options)`, "distribution" for
            `function(probabilities, gold, **options)`.
        options: the keyword options that the function takes.
        higher_is_better: None where neither direction is better.
        range: lowest and highest value.
        citation: where it is defined.
        per_question: gives the per-question values whose mean the metric is, from confidence [N] and correct
            [N], or from probabilities [N, K] with zeros for padding and the gold mask [N, K]; None if it is
            no such mean.
        live: whether the harness emits it.
    """

    name: str
    function: Callable[..., float]
    inputs: Literal["confidence", "distribution"]
    options: tuple[str, ...] = ()
    higher_is_better: bool | None = False
    range: tuple[float, float] = (0.0, 1.0)
    citation: str = ""
    per_question: Callable[[Floats, Bools], Floats] | None = None
    live: bool = True

    def __call__(self, first: Any, second: Any, **options: Any) -> float:
        """Call the function with those of `options` that it takes."""
        return self.function(first, second, **{key: options[key] for key in self.options if key in options})


_BINS = ("num_bins",)
_GUO = "Guo et al. 2017, On Calibration of Modern Neural Networks"
_KUMAR = "Kumar et al. 2019, Verified Uncertainty Calibration"
_NIXON = "Nixon et al. 2019, Measuring Calibration in Deep Learning"
_MURPHY = "Murphy 1973, A New Vector Partition of the Probability Score"

_ALL = (
    Metric(
        "acc",
        accuracy.acc,
        "confidence",
        higher_is_better=True,
        citation="Gao et al. 2024, The Language Model Evaluation Harness",
        per_question=accuracy.correct_values,
    ),
    Metric(
        "confidence",
        accuracy.confidence,
        "confidence",
        higher_is_better=None,
        citation=_GUO,
        per_question=accuracy.confidence_values,
    ),
    Metric(
        "overconfidence",
        accuracy.overconfidence,
        "confidence",
        higher_is_better=None,
        range=(-1.0, 1.0),
        citation=_GUO,
        per_question=accuracy.overconfidence_values,
    ),
    Metric("ece", binned.ece, "confidence", _BINS, citation=_GUO),
    Metric("rms_ce", binned.rms_ce, "confidence", _BINS, citation=_KUMAR),
    Metric("ace", binned.ace, "confidence", _BINS, citation=_NIXON),
    Metric(
        "mce",
        binned.mce,
        "confidence",
        _BINS,
        citation="Naeini et al. 2015, Obtaining Well Calibrated Probabilities Using Bayesian Binning",
    ),
    Metric("classwise_ece", classwise.classwise_ece, "distribution", _BINS, citation=_NIXON),
    Metric("rms_ce_debiased", binned.rms_ce_debiased, "confidence", _BINS, citation=_KUMAR),
    Metric(
        "ece_sweep",
        sweep.ece_sweep,
        "confidence",
        citation="Roelofs et al. 2022, Mitigating Bias in Calibration Error Estimation",
        live=False,
    ),
    Metric(
        "smooth_ece",
        smooth.smooth_ece,
        "confidence",
        citation="Błasiok and Nakkiran 2023, Smooth ECE",
    ),
    Metric(
        "brier",
        proper.brier,
        "distribution",
        range=(0.0, 2.0),
        citation="Brier 1950, Verification of Forecasts Expressed in Terms of Probability",
        per_question=proper.brier_values,
    ),
    Metric(
        "brier_reliability",
        classwise.brier_reliability,
        "distribution",
        _BINS,
        range=(0.0, 2.0),
        citation=_MURPHY,
        live=False,
    ),
    Metric(
        "brier_resolution",
        classwise.brier_resolution,
        "distribution",
        _BINS,
        higher_is_better=True,
        citation=_MURPHY,
        live=False,
    ),
    Metric(
        "brier_uncertainty",
        classwise.brier_uncertainty,
        "distribution",
        _BINS,
        higher_is_better=None,
        citation=_MURPHY,
        live=False,
    ),
    Metric(
        "nll",
        proper.nll,
        "distribution",
        range=(0.0, inf),
        citation="Good 1952, Rational Decisions",
        per_question=proper.nll_values,
    ),
    Metric(
        "entropy",
        proper.entropy,
        "distribution",
        higher_is_better=None,
        range=(0.0, inf),
        citation="Shannon 1948, A Mathematical Theory of Communication",
        per_question=proper.entropy_values,
        live=False,
    ),
    Metric(
        "auroc",
        ranking.auroc,
        "confidence",
        higher_is_better=True,
        citation="Hendrycks and Gimpel 2017, A Baseline for Detecting Misclassified Examples",
    ),
    Metric(
        "aurc",
        ranking.aurc,
        "confidence",
        citation="Geifman et al. 2019, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers",
    ),
    Metric(
        "accuracy_at_coverage",
        ranking.accuracy_at_coverage,
        "confidence",
        ("coverage",),
        higher_is_better=True,
        citation="El-Yaniv and Wiener 2010, On the Foundations of Noise-free Selective Classification",
        live=False,
    ),
)

METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
