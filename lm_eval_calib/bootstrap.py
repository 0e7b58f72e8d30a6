"""Intervals, differences and tests for metrics, by resampling questions.

Most users need `bootstrap` (one group) and `paired_bootstrap` (two models on the same questions). Reports
call `replicate` once for all their groups (languages of several runs): its resamples are of questions, so
that groups with the same questions share them, and the averages and differences of `lm_eval_calib.replicates`
keep what the questions have in common.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from lm_eval_calib.draws import Draws, draws_of
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.inputs import Floats, check_positive_int
from lm_eval_calib.metrics import Metric
from lm_eval_calib.prepared import Prepared
from lm_eval_calib.questions import Questions
from lm_eval_calib.replicates import Difference, Interval, Method, Replicates, difference
from lm_eval_calib.resampling import Block
from lm_eval_calib.workspace import Workspace

Key = TypeVar("Key", bound=Hashable)
Chosen = str | Metric | Iterable[str | Metric] | None

# Entries of a block of resamples: threads wait for each other's Python where blocks are small, for memory where large.
_BLOCK = 1 << 22


def bootstrap(
    questions: Questions,
    metrics: Chosen = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    method: Method = "basic",
    seed: int = 0,
    strata: npt.ArrayLike | None = None,
    **options: Any,
) -> dict[str, Interval]:
    """Metrics with bootstrap intervals and standard errors.

    Questions are drawn with replacement (Efron and Tibshirani 1993). Example:
    `bootstrap(Questions.from_confidence(confidence, correct), ["ece", "acc"])["ece"].low`.

    Args:
        questions: made by `Questions.from_confidence`, `.from_probabilities` or `.from_log_likelihoods`.
        metrics: names in METRICS or Metric objects; None is all that the data allow. A Metric that is not in
            METRICS and no mean of per-question values costs a call a resample.
        resamples: R.
        level: of confidence, in (0, 1).
        method: "percentile" or "basic", see `Replicates.interval`.
        seed: the same seed, size and strata give the same resamples.
        strata: [N] labels, such as subjects; each label's questions are resampled to their own number.
        options: `num_bins`, `coverage`.

    Returns:
        name -> Interval, in the order of `metrics`.
    """
    return replicate(
        {None: questions},
        metrics,
        resamples=resamples,
        seed=seed,
        strata=None if strata is None else {None: strata},
        **options,
    )[None].intervals(level=level, method=method)


def paired_bootstrap(
    first: Questions,
    second: Questions,
    metrics: Chosen = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    method: Method = "basic",
    seed: int = 0,
    strata: npt.ArrayLike | None = None,
    **options: Any,
) -> dict[str, Difference]:
    """Differences of metrics between two models that answered the same questions: second minus first.

    Both are evaluated on the same resamples, so that what makes a question hard for both cancels.

    Args:
        first, second: row i of both is the same question.
        metrics, resamples, level, method, seed, strata, options: as for `bootstrap`.

    Returns:
        name -> Difference.
    """
    if len(first) != len(second):
        raise CalibrationValueError(
            f"second: expected the {len(first)} questions of the first, in their order, got {len(second)}; "
            "pair them by document hash, or pass ids to replicate"
        )
    both = replicate(
        {0: first, 1: second},
        metrics,
        resamples=resamples,
        seed=seed,
        strata=None if strata is None else {0: strata, 1: strata},
        **options,
    )
    return difference(both[0], both[1], level=level, method=method)


def replicate(
    groups: Mapping[Key, Questions],
    metrics: Chosen = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    ids: Mapping[Key, Sequence[Hashable] | npt.NDArray[Any]] | None = None,
    strata: Mapping[Key, npt.ArrayLike] | None = None,
    workers: int | None = None,
    progress: Callable[[Key], None] | None = None,
    **options: Any,
) -> dict[Key, Replicates]:
    """Metrics of many groups on resamples that groups with the same questions share.

    Args:
        groups: key -> questions, such as (run, language) -> questions.
        metrics, resamples, seed, options: as for `bootstrap`.
        ids: key -> [N] identity of each question (document id or hash), the same in every language and run.
            The resamples are then of the union of all ids, and a group's are those of its own ids, whose
            number varies a little where it does not have them all. Without ids row i is the same question in
            all groups of a size.
        strata: key -> [N] labels; with ids, a question has the same label in every group.
        workers: threads; as many as processors by default. The results do not depend on it.
        progress: called with a group's key when the group is done.

    Returns:
        key -> Replicates, in the order of `groups`.
    """
    resamples = check_positive_int(resamples, "resamples")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise CalibrationValueError(f"seed: expected a whole number of at least 0, got {seed!r}")
    chosen = {key: group.resolve(metrics, options) for key, group in groups.items()}
    workers = workers or _processors()
    local = threading.local()
    # glibc gives freed memory back, and new memory costs as much as computing with it, until it has seen a large
    # array come and go.
    np.empty(1 << 24, dtype=np.uint8)

    # The threads are ours: a matrix product that starts its own beside them only waits for processors.
    with ThreadPoolExecutor(workers) as pool, threadpool_limits(1, user_api="blas"):
        draws = draws_of(
            {key: len(group) for key, group in groups.items()},
            ids=ids,
            strata=strata,
            resamples=resamples,
            seed=int(seed),
            mapper=pool.map,
        )

        def run(key: Key, mapper: Callable[..., Iterable[dict[str, Floats]]]) -> Replicates:
            result = _replicates(groups[key], chosen[key], options, draws[key], mapper, local)
            if progress is not None:
                progress(key)
            return result

        # Threads share out the groups where there are enough of them, else the blocks of one.
        if len(groups) >= 2 * workers:
            return dict(zip(groups, pool.map(lambda key: run(key, map), groups), strict=True))
        return {key: run(key, pool.map) for key in groups}


def _replicates(
    group: Questions,
    metrics: Sequence[Metric],
    options: Mapping[str, Any],
    draws: Draws,
    mapper: Callable[..., Iterable[dict[str, Floats]]],
    local: threading.local,
) -> Replicates:
    values = {metric.name: group.value(metric, **options) for metric in metrics}
    if len(group):
        prepared = Prepared(group, metrics, options)

        def block_values(block: range) -> dict[str, Floats]:
            if not hasattr(local, "workspace"):
                local.workspace = Workspace()
            return Block(prepared, draws, block, local.workspace).values()

        parts = list(mapper(block_values, draws.blocks(max(1, _BLOCK // len(group)))))
        replicates = {name: np.concatenate([part[name] for part in parts]) for name in values}
    else:
        replicates = {name: np.full(draws.resamples, np.nan) for name in values}
    return Replicates(
        size=len(group),
        values=values,
        replicates=replicates,
        ranges={metric.name: metric.range for metric in metrics},
        resampling=draws.identity,
    )


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
