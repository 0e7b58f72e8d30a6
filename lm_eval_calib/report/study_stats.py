"""Levels and paired differences of a study: metrics by language, averaged over a tier's languages, resampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import ndtri

from lm_eval_calib.binning import equal_width_bins
from lm_eval_calib.confidence import confidence_and_correct
from lm_eval_calib.languages import TIERS
from lm_eval_calib.metrics.proper import brier_values
from lm_eval_calib.recalibration import fit_temperature
from lm_eval_calib.report.study_data import Questions

METRICS = ("acc", "confidence", "overconfidence", "ece", "rms_ce", "rms_ce_debiased", "brier")
SCOPES = ("all", *TIERS, "unknown")
SCALED, SCALED_OWN = "temperature", "temperature by language"
LEAST = -700.0  # of a choice's log-probability, where the probability itself is 0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Resampled:
    """Metrics by language of one run: [resamples + 1, languages] each, row 0 of the questions as they are."""

    metrics: Mapping[str, Floats]


class Comparison:
    """All runs of one benchmark under one normalisation, resampled together.

    Questions are drawn with replacement in clusters (one question in all its languages), the same draws for
    every run, so differences between runs are paired. A metric is computed in each language and averaged
    over the languages of a scope, each with the same weight, as in lm-eval's group rows; seeds are averaged.

    Args:
        questions: What the runs answered.
        normalization: none, char, byte or token.
        resamples: How many draws the standard errors rest on.
        confidence_level: Of the intervals: the value plus or minus the normal quantile times the standard
        error.
        num_bins: Equal-width bins of ECE and RMS calibration error.
        seed: Of the draws.
    """

    def __init__(
        self,
        questions: Questions,
        *,
        normalization: str = "none",
        resamples: int = 1000,
        confidence_level: float = 0.95,
        num_bins: int = 15,
        seed: int = 0,
    ) -> None:
        self.questions = questions
        self.normalization = normalization
        self.level = confidence_level
        self.num_bins = num_bins
        self.languages = list(dict.fromkeys(questions.language))
        number = {code: index for index, code in enumerate(self.languages)}
        self._language = np.array([number[code] for code in questions.language])
        tier = dict(zip(questions.language, questions.tier, strict=True))
        self.tiers = [str(tier[code]) for code in self.languages]
        count = int(questions.cluster.max()) + 1
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
        self._weights = np.concatenate([np.ones((1, count)), draws]).astype(np.float64)
        self._per_language = self._sums(np.ones(len(questions)), self._language, len(self.languages))
        self._cache: dict[tuple[str, str], Resampled] = {}
        self._temperatures: dict[tuple[str, str], Floats] = {}

    def languages_of(self, scope: str) -> list[int]:
        """Indices of a scope's languages."""
        return [i for i, tier in enumerate(self.tiers) if scope in ("all", tier)]

    def resampled(self, run: str, *, scaling: str = "") -> Resampled:
        """Metrics by language of one run, as it is or temperature-scaled."""
        if (run, scaling) not in self._cache:
            temperature = self.temperatures(run, scaling) if scaling else 1.0
            probabilities = self.questions.probabilities(run, normalization=self.normalization, temperature=temperature)
            self._cache[run, scaling] = self._metrics(probabilities)
        return self._cache[run, scaling]

    def level_of(self, runs: Sequence[str], scope: str, metric: str, *, scaling: str = "") -> Estimate:
        """A metric's mean over the runs (seeds of one setting) and the scope's languages."""
        return self._estimate(self._curve(runs, scope, metric, scaling))

    def difference(
        self,
        runs: Sequence[str],
        baseline: Sequence[str],
        scope: str,
        metric: str,
        *,
        scaling: str = "",
        baseline_scaling: str = "",
    ) -> Estimate:
        """The same, less that of the baseline's runs."""
        return self._estimate(
            self._curve(runs, scope, metric, scaling) - self._curve(baseline, scope, metric, baseline_scaling)
        )

    def temperatures(self, run: str, scaling: str) -> Floats:
        """A temperature for each question, fitted by NLL on the half of the questions that it is not in.

        `temperature` is fitted on the high-resource languages (all, if there are none) and used in every
        language, as one who has no other data would; `temperature by language` is fitted in each language
        itself.
        """
        if (run, scaling) not in self._temperatures:
            ready = self.questions.probabilities(run, normalization=self.normalization)
            with np.errstate(divide="ignore"):
                scores = np.maximum(np.log(ready), LEAST)  # NaN stays, where there is no such choice
            half = self.questions.cluster % 2
            fitted = np.ones(len(half))
            count = len(self.languages)
            if scaling == SCALED:
                pairs = [(np.isin(self._language, self.languages_of("high") or range(count)), half >= 0)]
            else:
                pairs = [(self._language == index, self._language == index) for index in range(count)]
            for fitted_on, used_for in pairs:
                for fold in (0, 1):
                    rows = fitted_on & (half != fold)
                    if rows.any():
                        fitted[used_for & (half == fold)] = fit_temperature(scores[rows], self.questions.gold[rows])
            self._temperatures[run, scaling] = fitted
        return self._temperatures[run, scaling]

    def _curve(self, runs: Sequence[str], scope: str, metric: str, scaling: str) -> Floats:
        members = self.languages_of(scope)
        curves = [self.resampled(run, scaling=scaling).metrics[metric][:, members] for run in runs]
        # A language that a draw leaves without questions is undefined there, not 0.
        return np.asarray(np.nanmean(np.mean(curves, axis=0), axis=1))

    def _estimate(self, curve: Floats) -> Estimate:
        # Not quantiles: a resample repeats questions, so its ECE is larger than that of the questions
        # themselves.
        half = float(ndtri(0.5 + self.level / 2) * np.nanstd(curve[1:], ddof=1)) if len(curve) > 2 else np.nan
        return Estimate(float(curve[0]), float(curve[0]) - half, float(curve[0]) + half)

    def _metrics(self, probabilities: Floats) -> Resampled:
        questions = self.questions
        confidence, correct = confidence_and_correct(probabilities, questions.gold)
        languages = len(self.languages)
        cell = self._language * self.num_bins + equal_width_bins(confidence, self.num_bins)

        brier = brier_values(np.nan_to_num(probabilities), questions.gold)
        shape = (len(self._weights), languages, self.num_bins)
        counts = self._sums(np.ones(len(questions)), cell, languages * self.num_bins).reshape(shape)
        gaps = self._sums(confidence - correct, cell, languages * self.num_bins).reshape(shape)
        right = self._sums(correct.astype(np.float64), cell, languages * self.num_bins).reshape(shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            acc = right.sum(axis=2) / self._per_language
            over = gaps.sum(axis=2) / self._per_language
            squares = np.where(counts > 0, gaps**2 / counts, 0.0)
            noise = np.where(counts > 1, right * (1 - right / counts) / (counts - 1), squares)
            unbiased = np.maximum((squares - noise).sum(axis=2), 0.0) / self._per_language
            return Resampled(
                {
                    "acc": acc,
                    "confidence": acc + over,
                    "overconfidence": over,
                    "ece": np.abs(gaps).sum(axis=2) / self._per_language,
                    "rms_ce": np.sqrt(squares.sum(axis=2) / self._per_language),
                    "rms_ce_debiased": np.sqrt(unbiased),
                    "brier": self._sums(brier, self._language, languages) / self._per_language,
                }
            )

    def _sums(self, values: Floats, cell: NDArray[np.int64], cells: int) -> Floats:
        """[resamples + 1, cells] sums of the values over the draws: one product, clusters by cells."""
        clusters = self._weights.shape[1]
        table = csr_array((values, (self.questions.cluster, cell)), shape=(clusters, cells))
        return np.asarray((table.T @ self._weights.T).T)


@dataclass(frozen=True)
class Setting:
    """What is tuned alike but for smoothing and seed: the base run, and the tuned runs by smoothing factor."""

    model: str
    instruction_set: str
    learning_rate: float
    base: str
    tuned: Mapping[float, tuple[str, ...]]

    @property
    def name(self) -> str:
        return f"{self.model}, {self.instruction_set}, {self.learning_rate:g}"


def settings(runs: Sequence[Mapping[str, Any]], available: Sequence[str]) -> list[Setting]:
    """The settings of a study's runs, as far as their results are there."""
    found: dict[tuple[str, str, float], dict[float, list[str]]] = {}
    for run in runs:
        if run["instruction_set"] is not None and run["name"] in available:
            key = (run["model"], run["instruction_set"], float(run["learning_rate"]))
            found.setdefault(key, {}).setdefault(float(run["label_smoothing"]), []).append(run["name"])
    return [
        Setting(*key, base=key[0], tuned={factor: tuple(names) for factor, names in sorted(tuned.items())})
        for key, tuned in found.items()
        if key[0] in available
    ]


def rows(comparison: Comparison, runs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every level and every difference of a benchmark, one dictionary a number.

    Keys: benchmark, normalization, model, instruction_set, learning_rate, label_smoothing (of the compared
    runs), comparison, scope, languages, metric, value, low, high. `comparison` is `level`, or what is
    subtracted from what: `tuned - base`, `smoothed - unsmoothed`, `smoothed - base`, `scaled - unscaled` and
    `smoothed - scaled` (scaled: the run without smoothing, temperature-scaled with high-resource data).
    """
    available = list(comparison.questions.log_likelihoods)
    scopes = [scope for scope in SCOPES if comparison.languages_of(scope)]
    common = {"benchmark": comparison.questions.benchmark, "normalization": comparison.normalization}

    def row(where: Mapping[str, Any], what: str, scope: str, metric: str, estimate: Estimate) -> dict[str, Any]:
        found = {"scope": scope, "languages": len(comparison.languages_of(scope)), "metric": metric}
        return {**common, **where, "comparison": what, **found, **estimate.__dict__}

    for run in runs:
        if run["instruction_set"] is None and run["name"] in available:
            where = {
                "model": run["name"],
                "instruction_set": None,
                "learning_rate": None,
                "label_smoothing": None,
            }
            for scope in scopes:
                for metric in METRICS:
                    yield row(where, "level", scope, metric, comparison.level_of([run["name"]], scope, metric))
                    scaled = comparison.level_of([run["name"]], scope, metric, scaling=SCALED)
                    yield row(where, "level scaled", scope, metric, scaled)
    for setting in settings(runs, available):
        for factor, tuned in setting.tuned.items():
            where = {
                "model": setting.model,
                "instruction_set": setting.instruction_set,
                "learning_rate": setting.learning_rate,
                "label_smoothing": factor,
            }
            plain = setting.tuned.get(0.0)
            for scope in scopes:
                for metric in METRICS:
                    yield row(where, "level", scope, metric, comparison.level_of(tuned, scope, metric))
                    what = "smoothed - base" if factor else "tuned - base"
                    yield row(
                        where,
                        what,
                        scope,
                        metric,
                        comparison.difference(tuned, [setting.base], scope, metric),
                    )
                    if factor and plain:
                        estimate = comparison.difference(tuned, plain, scope, metric)
                        yield row(where, "smoothed - unsmoothed", scope, metric, estimate)
                        estimate = comparison.difference(tuned, plain, scope, metric, baseline_scaling=SCALED)
                        yield row(where, "smoothed - scaled", scope, metric, estimate)
                    for scaling, label in ((SCALED, "scaled"), (SCALED_OWN, "scaled by language")):
                        yield row(
                            where,
                            f"level {label}",
                            scope,
                            metric,
                            comparison.level_of(tuned, scope, metric, scaling=scaling),
                        )
                    estimate = comparison.difference(tuned, tuned, scope, metric, scaling=SCALED)
                    yield row(where, "scaled - unscaled", scope, metric, estimate)
