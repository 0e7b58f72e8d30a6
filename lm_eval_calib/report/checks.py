"""What a reader should know before trusting or comparing the numbers of a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_calib.predictions import Predictions, TaskRun

if TYPE_CHECKING:
    from lm_eval_calib.replicates import Replicates
    from lm_eval_calib.report.comparisons import Comparison
    from lm_eval_calib.report.scores import Answers, Group

# Fields of TaskRun that must agree between runs, and what to call them.
_COMPARED = {
    "version": "task version",
    "num_fewshot": "number of few-shot examples",
    "prompt": "prompt template",
    "chat_template": "chat template",
    "system_instruction": "system instruction",
    "normalization": "normalisation",
    "limit": "limit",
    "lm_eval_version": "release of lm-eval",
}
_FEW = 100  # below this the plug-in ECE of a perfectly calibrated model is far from 0


def warnings_of(
    predictions: Predictions,
    answers: Answers,
    comparisons: Sequence[Comparison],
    cells: Mapping[Group, Replicates],
) -> tuple[str, ...]:
    """One sentence a matter, the gravest first."""
    return (
        *_rounding(predictions),
        *_settings(predictions),
        *_pairing(comparisons),
        *_prompts(predictions, answers),
        *_rows(predictions),
        *_few(cells),
    )


def _rounding(predictions: Predictions) -> list[str]:
    found = []
    _, run = predictions.words("run")
    names, _ = predictions.words("run")
    likelihoods = predictions.log_likelihoods()
    for index, name in enumerate(names):
        values = likelihoods[run == index]
        values = values[~np.isnan(values)][:200_000]
        dtype = rounded_to(values)
        if dtype:
            ties = _ties(likelihoods[run == index])
            found.append(
                f"{name}: the log-likelihoods are rounded to {dtype}, which blurs confidence"
                + (f" and ties the best choices of {ties:.0%} of the questions" if ties >= 0.005 else "")
                + "; evaluate again with --model_args ...,softmax_dtype=float32."
            )
    return found


def rounded_to(values: np.ndarray[Any, Any]) -> str | None:
    """The 16-bit type that all values fit in exactly, if they are enough and not all whole numbers."""
    if values.size < 64 or not np.any(values % 1):
        return None
    single = values.astype(np.float32)
    if not np.array_equal(single.astype(np.float64), values):
        return None
    if not np.any(single.view(np.uint32) & 0xFFFF):
        return "bfloat16"
    with np.errstate(over="ignore"):
        return "float16" if np.array_equal(single.astype(np.float16).astype(np.float32), single) else None


def _ties(likelihoods: np.ndarray[Any, Any]) -> float:
    """The share of questions whose two best choices have the same log-likelihood."""
    best = np.sort(np.where(np.isnan(likelihoods), -np.inf, likelihoods), axis=1)
    return float(np.mean(best[:, -1] == best[:, -2]))


def _settings(predictions: Predictions) -> list[str]:
    """Settings in which runs differ on the same task."""
    if len(predictions.runs) < 2:
        return []
    by_task: dict[str, list[TaskRun]] = {}
    for task in predictions.tasks:
        by_task.setdefault(task.task, []).append(task)
    found = []
    for name, title in _COMPARED.items():
        differing = [
            task
            for task, runs in by_task.items()
            if len({getattr(run, name) for run in runs}) > 1 and not all(getattr(run, name) is None for run in runs)
        ]
        if differing:
            first = by_task[differing[0]]
            values = ", ".join(f"{run.run}: {_shown(getattr(run, name))}" for run in first)
            found.append(
                f"The {title} differs between the runs in {_count(len(differing), 'task')} "
                f"({differing[0]}: {values}); differences between them are not of the models alone."
            )
    return found


def _shown(value: Any) -> str:
    text = "unknown" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _pairing(comparisons: Sequence[Comparison]) -> list[str]:
    found = []
    languages = [c for c in comparisons if c.accuracy_test is not None]
    for run in dict.fromkeys(c.group.run for c in languages):
        mine = [c for c in languages if c.group.run == run]
        only_baseline, only_run = sum(c.only_baseline for c in mine), sum(c.only_run for c in mine)
        if only_baseline or only_run:
            found.append(
                f"{run} is compared with {mine[0].baseline} on the {sum(c.shared for c in mine):,} questions that "
                f"both have; {only_baseline:,} only {mine[0].baseline} has, {only_run:,} only {run} has."
            )
    return found


def _prompts(predictions: Predictions, answers: Answers) -> list[str]:
    """Questions whose prompt differs between the first run and another one."""
    names, run = predictions.words("run")
    order = [names.index(name) for name in predictions.runs if name in names]
    prompt = predictions.codes("prompt_hash")
    found = []
    base = run == order[0]
    for index in order[1:]:
        other = run == index
        _, one, two = np.intersect1d(answers.ids[base], answers.ids[other], return_indices=True)
        if one.size:
            differing = float(np.mean(prompt[base][one] != prompt[other][two]))
            if differing > 0:
                found.append(
                    f"{differing:.0%} of the questions that {names[order[0]]} and {names[index]} share were asked "
                    "with different prompts (few-shot examples, chat template or system instruction)."
                )
    return found


def _rows(predictions: Predictions) -> list[str]:
    found = []
    unused = sum(problem.count for problem in predictions.problems)
    if unused:
        reasons: dict[str, int] = {}
        for problem in predictions.problems:
            reasons[problem.reason] = reasons.get(problem.reason, 0) + problem.count
        told = "; ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        found.append(f"{_count(unused, 'row')} of the logs could not be used: {told}.")
    missing = [t for t in predictions.tasks if t.expected and t.questions and t.questions < t.expected]
    if missing:
        lost = sum((task.expected or 0) - task.questions for task in missing)
        found.append(
            f"{_count(lost, 'question')} that the harness scored {'is' if lost == 1 else 'are'} missing from the "
            f"logs of {_count(len(missing), 'task')} ({_listed(f'{t.run}: {t.task}' for t in missing)})."
        )
    wrong = [task for task in predictions.tasks if task.disagreements]
    if wrong:
        found.append(
            f"In {_count(sum(task.disagreements for task in wrong), 'row')} the logged acc is not what the logged "
            f"log-likelihoods and the right choice give ({_listed(f'{t.run}: {t.task}' for t in wrong)}); check how "
            "these tasks choose their answer."
        )
    if predictions.notes:
        found.append(f"{' '.join(note + '.' for note in predictions.notes[:3])}")
    return found


def _few(cells: Mapping[Group, Replicates]) -> list[str]:
    few = [group.label for group, part in cells.items() if part.size < _FEW]
    if not few:
        return []
    return [
        f"Fewer than {_FEW} questions in {_listed(few)}: binned calibration errors of so few are biased upward; "
        "rms_ce_debiased and smooth_ece are less so."
    ]


def _listed(names: Iterable[str], limit: int = 4) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - limit} more" if len(unique) > limit else ""
    return ", ".join(unique[:limit]) + more


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
