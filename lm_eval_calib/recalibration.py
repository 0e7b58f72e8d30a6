"""Recalibration by temperature, isotonic regression or Platt scaling, cross-fitted.

Every question is scored by a fit to other questions: the data are cut into folds, and what is fitted on the
others is applied to each. So the metrics after recalibration are those to expect on new questions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.optimize

from lm_eval_calib.confidence import choice_probabilities, padded
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.inputs import Bools, Floats, Ints, check_confidence, check_positive_int, gold_mask
from lm_eval_calib.questions import Questions

# Where all answers are right the best temperature is 0, where they are worse than chance it is infinite.
TEMPERATURES = (0.01, 100.0)


@dataclass(frozen=True, eq=False)
class TemperatureScaling:
    """Questions before and after temperature scaling.

    Attributes:
        temperatures: group -> the temperature fitted on all its questions, to be used on new ones; above 1
            where the model is overconfident.
        fold_temperatures: group -> those that its questions were scored with, one a fold.
        before: the questions as they came.
        after: the same, each scored at a temperature fitted without it. Its accuracy is that of `before`.
    """

    temperatures: Mapping[Hashable, float]
    fold_temperatures: Mapping[Hashable, tuple[float, ...]]
    before: Questions
    after: Questions


def fit_temperature(
    log_likelihoods: Sequence[npt.ArrayLike] | npt.ArrayLike,
    gold: Any,
    *,
    lengths: Sequence[npt.ArrayLike] | npt.ArrayLike | None = None,
) -> float:
    """The temperature T that minimises the negative log-likelihood of `softmax(l / length / T)`.

    Guo et al. 2017. Sought in [0.01, 100]; at an end where the minimum lies outside, as when all answers are
    right. With one gold choice a question the NLL is convex in 1 / T and the minimum unique.

    Args:
        log_likelihoods, lengths: as for `choice_probabilities`.
        gold: as for `confidence_and_correct`.

    Returns:
        T, positive; above 1 where the model is overconfident.

    Raises:
        CalibrationValueError: no questions, or input that `choice_probabilities` or gold checks refuse.
    """
    scores, real = _scores(log_likelihoods, lengths)
    return _fit(scores, gold_mask(gold, real))


def temperature_scaling(
    log_likelihoods: Sequence[npt.ArrayLike] | npt.ArrayLike,
    gold: Any,
    *,
    lengths: Sequence[npt.ArrayLike] | npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    ids: Sequence[Hashable] | npt.NDArray[Any] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> TemperatureScaling:
    """Temperature scaling, cross-fitted, with one temperature for all questions or one for each group.

    Args:
        log_likelihoods, lengths: [N] rows, as for `choice_probabilities`.
        gold: as for `confidence_and_correct`.
        groups: [N] labels, such as languages, each with a temperature of its own; None is one group, named
            None.
        ids: [N] identities of questions. Rows of one identity (a question in several languages) share a fold,
            so that no temperature is applied to a question that it has seen in another language.
        folds: at least 2; as many as a group has questions if it has fewer.
        seed: of the assignment to folds.

    Raises:
        CalibrationValueError: also for a group of fewer than two questions.
    """
    scores, real = _scores(log_likelihoods, lengths)
    mask = gold_mask(gold, real)
    before = Questions.from_probabilities(_softmax(scores), mask)
    temperature_of = np.ones(len(scores))
    temperatures, fold_temperatures = {}, {}
    for label, rows, fold_of in _folds(len(scores), groups, ids, folds, seed):
        temperatures[label] = _fit(scores[rows], mask[rows])
        fitted = []
        for fold in range(fold_of.max() + 1):
            out = fold_of == fold
            fitted.append(_fit(scores[rows[~out]], mask[rows[~out]]))
            temperature_of[rows[out]] = fitted[-1]
        fold_temperatures[label] = tuple(fitted)
    after = Questions.from_probabilities(_softmax(scores / temperature_of[:, None]), mask)
    # Rounding may part or join two nearly equal choices; a temperature does not change which is the largest.
    after = Questions(after.confidence, before.correct, after.probabilities, after.gold, after.real)
    return TemperatureScaling(temperatures, fold_temperatures, before, after)


def recalibrated_confidence(
    confidence: npt.ArrayLike,
    correct: npt.ArrayLike,
    *,
    method: Literal["isotonic", "platt"] = "isotonic",
    groups: npt.ArrayLike | None = None,
    ids: Sequence[Hashable] | npt.NDArray[Any] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Floats:
    """Confidence recalibrated by isotonic regression or Platt scaling, cross-fitted, with scikit-learn.

    Isotonic regression (Zadrozny and Elkan 2002) fits the non-decreasing step function of confidence nearest
    to correctness, and makes ties; Platt scaling (Platt 1999) a logistic regression on the logit of
    confidence, without regularisation. Both need more questions than a temperature does.

    Args:
        confidence: [N] in [0, 1].
        correct: [N], boolean or 0 and 1.
        method: "isotonic" or "platt".
        groups, ids, folds, seed: as for `temperature_scaling`.

    Returns:
        [N] in [0, 1], for `Questions.from_confidence`.
    """
    values, right = check_confidence(confidence, correct)
    if method not in ("isotonic", "platt"):
        raise CalibrationValueError(f"method: expected 'isotonic' or 'platt', got {method!r}")
    result = np.empty(values.size)
    for _, rows, fold_of in _folds(values.size, groups, ids, folds, seed):
        for fold in range(fold_of.max() + 1):
            out = fold_of == fold
            fit = _isotonic if method == "isotonic" else _platt
            result[rows[out]] = fit(values[rows[~out]], right[rows[~out]], values[rows[out]])
    return result


def _isotonic(confidence: Floats, correct: Bools, new: Floats) -> Floats:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    return np.asarray(model.fit(confidence, correct).predict(new))


def _platt(confidence: Floats, correct: Bools, new: Floats) -> Floats:
    from sklearn.linear_model import LogisticRegression

    if correct.all() or not correct.any():  # nothing to separate
        return np.full(new.size, correct.mean())
    inside = [np.clip(values, 1e-12, 1 - 1e-12)[:, None] for values in (confidence, new)]
    logits, new_logits = (np.log(values / (1 - values)) for values in inside)
    model = LogisticRegression(C=np.inf).fit(logits, correct)
    return np.asarray(model.predict_proba(new_logits)[:, 1])


def _scores(log_likelihoods: Any, lengths: Any) -> tuple[Floats, Bools]:
    """What the softmax is taken of, its largest 0 in every row and -inf in unused places."""
    scores, real = padded(log_likelihoods, "log_likelihoods", lengths)
    if not len(scores):
        raise CalibrationValueError("log_likelihoods: expected questions to fit a temperature on, got none")
    scores = np.where(real, scores, -np.inf)
    return scores - scores.max(axis=1, keepdims=True), real


def _softmax(scores: Floats) -> Floats:
    return choice_probabilities(np.where(np.isneginf(scores), np.nan, scores))


def _fit(scores: Floats, gold: Bools) -> float:
    finite = np.where(np.isneginf(scores), 0.0, scores)

    def slope(log_inverse: float) -> float:
        # The derivative of the NLL by 1 / T: the mean score under the model less that under the gold choices.
        weights = np.exp(scores * np.exp(log_inverse))
        model = (weights * finite).sum(axis=1) / weights.sum(axis=1)
        gold_weights = np.where(gold, np.exp(finite * np.exp(log_inverse)), 0.0)
        total = gold_weights.sum(axis=1)
        # Gold choices that underflow: the likeliest of them has all the weight.
        likeliest = np.where(gold, finite, -np.inf).max(axis=1)
        answer = np.where(total > 0, (gold_weights * finite).sum(axis=1) / np.where(total > 0, total, 1.0), likeliest)
        return float((model - answer).mean())

    low, high = -np.log(TEMPERATURES[1]), -np.log(TEMPERATURES[0])
    at_low, at_high = slope(low), slope(high)
    if at_low == at_high == 0:  # every choice is as likely as the others, at any temperature
        return 1.0
    if at_low >= 0:
        return TEMPERATURES[1]
    if at_high <= 0:
        return TEMPERATURES[0]
    return float(np.exp(-scipy.optimize.brentq(slope, low, high, xtol=1e-12, rtol=1e-12)))


def _folds(size: int, groups: Any, ids: Any, folds: int, seed: int) -> list[tuple[Hashable, Ints, Ints]]:
    """For each group its label, its rows and their folds, of which none is empty."""
    if check_positive_int(folds, "folds") < 2:
        raise CalibrationValueError(f"folds: expected at least 2, got {folds!r}: nothing is scored by its own fit")
    listed = {}
    for name, values in (("groups", groups), ("ids", ids)):
        if values is not None:
            listed[name] = values.tolist() if hasattr(values, "tolist") else list(values)
            if len(listed[name]) != size:
                raise CalibrationValueError(
                    f"{name}: expected one for each of {size} questions, got {len(listed[name])}"
                )
    # A random order of identities, dealt out in turn within each group.
    identities = listed.get("ids", range(size))
    names = sorted(set(identities), key=repr)
    rank = dict(zip(names, np.random.default_rng(seed).permutation(len(names)).tolist(), strict=True))
    members: dict[Hashable, list[int]] = {}
    for row, label in enumerate(listed.get("groups", [None] * size)):
        members.setdefault(label, []).append(row)
    result = []
    for label, rows in members.items():
        at = np.array(rows)
        # Rows of one identity have one rank, hence one fold.
        ranks = np.array([rank[identities[row]] for row in rows])
        distinct = np.unique(ranks)
        if distinct.size < 2:
            raise CalibrationValueError(
                f"groups: expected at least 2 questions in {label!r} to cross-fit on, got {distinct.size}; "
                "leave the group out"
            )
        fold_of = np.searchsorted(distinct, ranks) % min(folds, distinct.size)
        result.append((label, at, fold_of))
    return result
