"""Metrics on resamples: their intervals, means over groups, and differences between groups."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.inputs import Floats

Method = Literal["percentile", "basic"]


@dataclass(frozen=True)
class Interval:
    """A metric with its sampling error.

    Attributes:
        value: the metric of the data.
        low, high: the ends of the interval; NaN where no resample defines the metric.
        stderr: the standard deviation of the metric over resamples.
        level: of confidence, such as 0.95.
        method: "percentile" or "basic".
        undefined: resamples in which the metric is NaN, which are left out.
    """

    value: float
    low: float
    high: float
    stderr: float
    level: float
    method: Method
    undefined: int


@dataclass(frozen=True)
class Difference(Interval):
    """The metric of the second minus that of the first, on the same questions.

    Attributes:
        p_value: two-sided: twice the smaller share of resamples on either side of no difference, counted as
            `(1 + hits) / (1 + resamples)`; it is below 1 - level about when the interval excludes 0.
    """

    p_value: float


@dataclass(frozen=True, eq=False)
class Replicates:
    """Metrics of one group on the data and on every resample.

    Attributes:
        size: questions.
        values: name -> the metric of the data.
        replicates: name -> [R] the metric of each resample, NaN where undefined.
        ranges: name -> lowest and highest possible value.
        resampling: names the resamples; only replicates of the same resampling may be compared one by one.
    """

    size: int
    values: Mapping[str, float]
    replicates: Mapping[str, Floats]
    ranges: Mapping[str, tuple[float, float]]
    resampling: Hashable

    def interval(self, name: str, *, level: float = 0.95, method: Method = "basic") -> Interval:
        """The interval of one metric.

        "percentile" takes the quantiles of the replicates. "basic" reflects them at the value, which undoes
        the bias of the metric to first order, and clips them to its range. Calibration errors near 0 need it:
        of 90 % intervals for an ECE of 0.03 from 500 questions 83 % hold the truth, of percentile ones 12 %.
        """
        return Interval(**_summary(self.values[name], self.replicates[name], self.ranges[name], level, method))

    def intervals(self, *, level: float = 0.95, method: Method = "basic") -> dict[str, Interval]:
        """The intervals of all metrics, by name."""
        return {name: self.interval(name, level=level, method=method) for name in self.values}


def average(groups: Sequence[Replicates]) -> Replicates:
    """The unweighted mean over groups, such as the languages of a tier, of metrics and of their replicates.

    From one `replicate` call: what the questions of the groups have in common then stays in the interval of
    the mean, while groups of unrelated questions count as independent. A metric undefined in one group is
    undefined in the mean.
    """
    if not groups:
        raise CalibrationValueError("groups: expected at least one to average, got none")
    resamplings = [group.resampling for group in groups]
    names = [name for name in groups[0].values if all(name in group.values for group in groups)]
    return Replicates(
        size=sum(group.size for group in groups),
        values={name: float(np.mean([group.values[name] for group in groups])) for name in names},
        replicates={name: np.mean([group.replicates[name] for group in groups], axis=0) for name in names},
        ranges={name: groups[0].ranges[name] for name in names},
        resampling=resamplings[0] if len(set(resamplings)) == 1 else tuple(resamplings),
    )


def difference(
    first: Replicates, second: Replicates, *, level: float = 0.95, method: Method = "basic"
) -> dict[str, Difference]:
    """Second minus first for every metric that both have; both of the same questions and resamples.

    They come from one `replicate` call, or are averages of groups from one.
    """
    if first.resampling != second.resampling:
        raise CalibrationValueError(
            "second: expected replicates of the same questions, resamples and seed as the first; call "
            "replicate once with both, and with ids where their questions differ"
        )
    results = {}
    for name in first.values:
        if name in second.values:
            value = second.values[name] - first.values[name]
            replicates = second.replicates[name] - first.replicates[name]
            summary = _summary(value, replicates, (-np.inf, np.inf), level, method)
            # The basic interval excludes 0 when the reflected replicates lie on one side of it.
            compared = replicates if method == "percentile" else 2 * value - replicates
            compared = compared[~np.isnan(compared)]
            sides = [np.count_nonzero(compared <= 0), np.count_nonzero(compared >= 0)]
            p_value = min(1.0, 2 * (1 + min(sides)) / (1 + compared.size)) if compared.size else float("nan")
            results[name] = Difference(**summary, p_value=p_value)
    return results


def _summary(
    value: float, replicates: Floats, limits: tuple[float, float], level: float, method: Method
) -> dict[str, Any]:
    if not isinstance(level, float | int) or not 0 < level < 1:
        raise CalibrationValueError(f"level: expected a number between 0 and 1, such as 0.95, got {level!r}")
    if method not in ("percentile", "basic"):
        raise CalibrationValueError(f"method: expected 'percentile' or 'basic', got {method!r}")
    defined = replicates[~np.isnan(replicates)]
    low = high = stderr = float("nan")
    if defined.size:
        with np.errstate(invalid="ignore"):  # infinite NLL
            # Between a number and infinity there is nothing to interpolate.
            rule: Literal["linear", "inverted_cdf"] = "linear" if np.isfinite(defined).all() else "inverted_cdf"
            ends = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2], method=rule)
            low, high = float(ends[0]), float(ends[1])
            stderr = float(np.std(defined, ddof=1)) if defined.size > 1 else float("nan")
            if method == "basic":
                low, high = (float(np.clip(2 * value - end, *limits)) for end in (high, low))
    return {
        "value": value,
        "low": low,
        "high": high,
        "stderr": stderr,
        "level": float(level),
        "method": method,
        "undefined": int(replicates.size - defined.size),
    }
