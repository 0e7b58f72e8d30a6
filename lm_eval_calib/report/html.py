"""The report as one HTML file: nothing is fetched, and its content security policy forbids it to try."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from lm_eval_calib import __version__
from lm_eval_calib.logrows import documents
from lm_eval_calib.metrics import METRICS
from lm_eval_calib.report.summary import page_data

if TYPE_CHECKING:
    from lm_eval_calib.report.analysis import Report


# In this order: each uses those before it, and page.js draws.
SCRIPTS = ("svg.js", "charts.js", "state.js", "tables.js", "sections.js", "page.js")


def render(report: Report, *, questions: int = 0) -> str:
    """The page; `questions` adds that many confident errors a run, whose texts are read from the logs again."""
    folder = files("lm_eval_calib.report") / "page"
    css, *scripts = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", *SCRIPTS))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    return template.render(
        title=_title(report),
        version=__version__,
        findings=[_small_intervals(finding) for finding in report.findings],
        warnings=report.warnings,
        facts=_facts(report),
        runs=[{"name": run, "facts": _run_facts(report, run)} for run in report.runs],
        metrics=[
            {
                "name": name,
                "better": {True: "higher ↑", False: "lower ↓", None: "–"}[METRICS[name].higher_is_better],
                "citation": METRICS[name].citation,
            }
            for name in METRICS
        ],
        methods=_methods(report),
        questions=confident_errors(report, questions) if questions else [],
        # A script element ends at "</script", wherever that stands: no "<" in the data.
        data=Markup(json.dumps(page_data(report), ensure_ascii=False).replace("<", "\\u003c")),
        css=Markup(css),
        scripts=[Markup(script) for script in scripts],
        script_hashes=Markup(" ".join(map(_hash, scripts))),
        style_hash=Markup(_hash(css)),
    )


def _small_intervals(sentence: str) -> Markup:
    """A finding with its intervals set small, so that the sentence reads on."""
    return Markup(re.sub(r"\([^()]*\[[^()]*\)|\[[^\]]*\]", r'<span class="figure">\g<0></span>', str(escape(sentence))))


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _title(report: Report) -> str:
    runs = report.runs
    if len(runs) == 1:
        return f"How well {runs[0]} knows what it knows"
    return f"{', '.join(runs[:-1])} and {runs[-1]}"


def _facts(report: Report) -> list[tuple[str, str]]:
    languages = {group.language for group in report.cells if group.language}
    benchmarks = list(dict.fromkeys(group.benchmark for group in report.cells))
    facts = [
        ("Questions", f"{len(report.predictions):,}"),
        ("Runs", str(len(report.runs))),
        ("Benchmark" if len(benchmarks) == 1 else "Benchmarks", _some(benchmarks)),
    ]
    if languages:
        facts.insert(1, ("Languages", str(len(languages))))
    facts.append(("Bins", str(report.answers.bins)))
    return facts


def _run_facts(report: Report, run: str) -> list[tuple[str, str]]:
    """What is known of a run; a value that differs between its tasks is listed."""
    tasks = [task for task in report.predictions.tasks if task.run == run and task.questions]
    unused = sum(problem.count for problem in report.predictions.problems if problem.run == run)
    names = {
        "model": "Model",
        "model_args": "Arguments",
        "lm_eval_version": "lm-eval",
        "transformers_version": "transformers",
        "num_fewshot": "Few-shot examples",
        "normalization": "Normalisation",
        "version": "Task version",
        "chat_template": "Chat template",
        "system_instruction": "System instruction",
        "limit": "Limit",
        "date": "Date",
    }
    facts = [("Tasks", f"{len(tasks)} ({_some([task.task for task in tasks])})")]
    for name, label in names.items():
        values = [str(v) for v in dict.fromkeys(getattr(task, name) for task in tasks) if v is not None]
        if values:
            facts.append((label, _some(values)))
    facts.append(("Questions", f"{sum(task.questions for task in tasks):,}"))
    if unused:
        facts.append(("Rows not used", f"{unused:,}"))
    return facts


def _some(values: Iterable[str], limit: int = 3) -> str:
    unique = list(dict.fromkeys(values))
    more = f" and {len(unique) - limit} more" if len(unique) > limit else ""
    return ", ".join(value if len(value) <= 90 else value[:87] + "..." for value in unique[:limit]) + more


def _methods(report: Report) -> str:
    normalization = report.answers.normalization or "as each task was run"
    return (
        "Confidence is the largest probability after a softmax over the choices' log-likelihoods "
        f"(normalisation: {normalization}); an answer is right if that choice is. Binned errors use "
        f"{report.answers.bins} bins of equal width. Intervals are 95 % bootstrap intervals over questions, whose "
        "resamples runs and languages share: percentile intervals, and for the calibration errors, which are biased "
        "upwards, basic ones (reflected at the value), widened to hold the value; "
        "p-values come from the same resamples, McNemar's exact test is in summary.json. Tiers follow the resource "
        "classes of Joshi et al. 2020: high 4 and 5, mid 3, low 0 to 2."
    )


def confident_errors(report: Report, limit: int) -> list[dict[str, Any]]:
    """The most confident wrong answers of each run, with their texts from the logs."""
    answers, predictions = report.answers.questions, report.predictions
    names, run = predictions.words("run")
    score = np.where(answers.correct, -1.0, answers.confidence)
    picked: list[int] = []
    for name in report.runs:
        mine = np.flatnonzero(run == names.index(name))
        best = mine[np.argsort(-score[mine], kind="stable")][:limit]
        picked += [int(row) for row in best if score[row] >= 0]
    table = predictions.table.take(picked).to_pylist()
    wanted: dict[str, set[int]] = {}
    for row in table:
        wanted.setdefault(row["source"], set()).add(row["line"])
    texts: dict[tuple[str, int], dict[str, Any]] = {}
    for source, lines in wanted.items():
        if Path(source).is_file():
            texts |= {(source, line): whole for line, whole in documents(Path(source), lines)}
    return [
        _question(row, texts.get((row["source"], row["line"])), answers.probabilities[index])
        for row, index in zip(table, picked, strict=True)
        if answers.probabilities is not None
    ]


def _question(row: dict[str, Any], whole: dict[str, Any] | None, probabilities: np.ndarray[Any, Any]) -> dict[str, Any]:
    count = len(row["log_likelihoods"])
    pairs = [("", "?")] * count
    if whole is not None:
        arguments = whole["arguments"]
        values = arguments.values() if isinstance(arguments, dict) else arguments
        pairs = [(a["arg_0"], a["arg_1"]) if isinstance(a, dict) else (a[0], a[1]) for a in list(values)[:count]]
    contexts, continuations = zip(*pairs, strict=True)
    # Multiple-input tasks keep the choices in the contexts.
    shown = continuations if len(set(contexts)) == 1 else contexts
    chosen = int(np.argmax(probabilities[:count]))
    return {
        **{name: row[name] for name in ("run", "task", "doc_id")},
        "confidence": float(probabilities[chosen]),
        "context": contexts[0][-1500:] if len(set(contexts)) == 1 else continuations[0],
        "choices": [
            {"text": text.strip(), "probability": float(p), "gold": k in row["gold"], "chosen": k == chosen}
            for k, (text, p) in enumerate(zip(shown, probabilities, strict=False))
        ],
    }
