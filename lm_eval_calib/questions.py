"""The answered questions of one group, checked once, from which every metric is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lm_eval_calib.confidence import choice_probabilities, confidence_and_correct
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.inputs import Bools, Floats, check_confidence, check_probabilities, gold_mask
from lm_eval_calib.metrics import METRICS, Metric


@dataclass(frozen=True, eq=False)
class Questions:
    """What a model answered to N questions; made by one of the `from_*` methods, which check.

    Attributes:
        confidence: [N] in [0, 1].
        correct: [N], boolean.
        probabilities: [N, K] with zeros in unused places, or None where only confidence is known.
        gold: [N, K], the gold sets as a mask, or None.
        real: [N, K], True where a choice exists, or None.
    """

    confidence: Floats
    correct: Bools
    probabilities: Floats | None = None
    gold: Bools | None = None
    real: Bools | None = None

    @classmethod
    def from_confidence(cls, confidence: npt.ArrayLike, correct: npt.ArrayLike) -> Questions:
        """From confidence [N] and correctness [N]; metrics of all probabilities are then out of reach."""
        return cls(*check_confidence(confidence, correct))

    @classmethod
    def from_probabilities(cls, probabilities: npt.ArrayLike, gold: Any) -> Questions:
        """From probabilities [N, K], padded with NaN, and gold as for `confidence_and_correct`."""
        confidence, correct = confidence_and_correct(probabilities, gold)
        values, real = check_probabilities(probabilities)
        return cls(confidence, correct, values, gold_mask(gold, real), real)

    @classmethod
    def from_log_likelihoods(
        cls,
        log_likelihoods: Sequence[npt.ArrayLike] | npt.ArrayLike,
        gold: Any,
        *,
        lengths: Sequence[npt.ArrayLike] | npt.ArrayLike | None = None,
        temperature: float = 1.0,
    ) -> Questions:
        """From log-likelihoods, ragged or padded; the options are those of `choice_probabilities`."""
        return cls.from_probabilities(
            choice_probabilities(log_likelihoods, lengths=lengths, temperature=temperature), gold
        )

    def __len__(self) -> int:
        return self.confidence.size

    def evaluate(
        self, metrics: str | Metric | Iterable[str | Metric] | None = None, **options: Any
    ) -> dict[str, float]:
        """The value of every metric asked for, by name; of all that the data allow if none is named.

        Args:
            metrics: names in METRICS, or Metric objects of your own.
            options: `num_bins`, `coverage`, ...: each reaches the metrics that take it.
        """
        return {metric.name: self.value(metric, **options) for metric in self.resolve(metrics, options)}

    def value(self, metric: Metric, **options: Any) -> float:
        """The value of one metric."""
        if metric.inputs == "confidence":
            return metric(self.confidence, self.correct, **options)
        if self.probabilities is None or self.real is None:
            raise ValueError(f"{metric.name} needs probabilities")  # `resolve` has ruled it out
        return metric(np.where(self.real, self.probabilities, np.nan), self.gold, **options)

    def take(self, rows: npt.NDArray[Any]) -> Questions:
        """The questions of these rows (indices, repeated ones too, or a mask)."""
        parts = (self.confidence, self.correct, self.probabilities, self.gold, self.real)
        return Questions(*[None if part is None else part[rows] for part in parts])  # type: ignore[arg-type]

    def resolve(self, metrics: str | Metric | Iterable[str | Metric] | None, options: dict[str, Any]) -> list[Metric]:
        """Metric objects from names; an error names what is unknown or cannot be computed from these data."""
        if metrics is None:
            possible = METRICS.values()
            chosen = [m for m in possible if m.inputs == "confidence" or self.probabilities is not None]
        else:
            listed = [metrics] if isinstance(metrics, str | Metric) else list(metrics)
            unknown = [m for m in listed if isinstance(m, str) and m not in METRICS]
            if unknown:
                raise CalibrationValueError(
                    f"metrics: expected names among {', '.join(METRICS)}; got {', '.join(map(repr, unknown))}"
                )
            chosen = [METRICS[m] if isinstance(m, str) else m for m in listed]
        for metric in chosen:
            if metric.inputs == "distribution" and self.probabilities is None:
                raise CalibrationValueError(
                    f"metrics: {metric.name} needs the probabilities of all choices, and only confidence was "
                    "given; use Questions.from_probabilities or from_log_likelihoods"
                )
        taken = {option for metric in [*METRICS.values(), *chosen] for option in metric.options}
        strange = set(options) - taken
        if strange:
            raise CalibrationValueError(
                f"options: no metric takes {', '.join(sorted(strange))}; known are {', '.join(sorted(taken))}"
            )
        return chosen
