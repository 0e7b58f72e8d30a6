"""The study's comparisons: levels by hand of other code, intervals by brute force, temperatures that are known."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm_eval_calib import metrics
from lm_eval_calib.confidence import confidence_and_correct
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.report import study, study_text
from lm_eval_calib.report.study_data import Questions, clusters, load_questions, read_questions, write_questions
from lm_eval_calib.report.study_stats import METRICS, SCALED, SCALED_OWN, Comparison, rows, settings

TIERS = {"en": "high", "de": "high", "sw": "low", "xx": "unknown"}
RUNS: list[dict[str, Any]] = [
    {"name": "m", "model": "m", "instruction_set": None, "learning_rate": None, "label_smoothing": None, "seed": None}
] + [
    {
        "name": f"m-{factor}-{seed}",
        "model": "m",
        "instruction_set": "a",
        "learning_rate": 1e-5,
        "label_smoothing": factor,
        "seed": seed,
    }
    for factor in (0.0, 0.1)
    for seed in (0, 1)
]


def made(*, per_language: int = 80, sharpness: float = 2.0, seed: int = 0) -> Questions:
    """Four parallel languages; tuned runs are sharper, smoothed ones less so; some questions have three choices."""
    rng = np.random.default_rng(seed)
    language = np.repeat(np.array(list(TIERS), dtype=object), per_language)
    count = len(language)
    gold_index = np.tile(rng.integers(0, 3, per_language), len(TIERS))
    gold = np.eye(4, dtype=bool)[gold_index]
    base = rng.normal(size=(count, 4)) + 1.2 * gold
    base[np.arange(count) % 5 == 0, 3] = np.nan
    runs = {"m": base}
    for run in RUNS[1:]:
        noise = rng.normal(scale=0.3, size=base.shape)
        runs[run["name"]] = (base + noise) * (sharpness if run["label_smoothing"] == 0 else sharpness / 2)
    return Questions(
        benchmark="calib_made",
        task=np.array([f"calib_made_{code}" for code in language], dtype=object),
        language=language,
        tier=np.array([TIERS[code] for code in language], dtype=object),
        cluster=np.tile(np.arange(per_language), len(TIERS)),
        gold=gold,
        lengths={
            "char": np.where(np.isnan(base), np.nan, 2.0),
            "token:m": np.where(np.isnan(base), np.nan, [1.0, 2.0, 3.0, 4.0]),
        },
        log_likelihoods=runs,
        tokens={run["name"]: "m" for run in RUNS},
    )


def metric_by_language(questions: Questions, run: str, name: str, rows: dict[str, np.ndarray]) -> float:
    """The unweighted mean over languages, from the functions of lm_eval_calib.metrics."""
    values = []
    for chosen in rows.values():
        probabilities = questions.probabilities(run)[chosen]
        confidence, correct = confidence_and_correct(probabilities, questions.gold[chosen])
        if name == "brier":
            values.append(metrics.brier(probabilities, questions.gold[chosen]))
        else:
            values.append(getattr(metrics, name)(confidence, correct))
    return float(np.mean(values))


@pytest.mark.parametrize("name", METRICS)
def test_levels_are_the_metrics_averaged_over_languages(name: str) -> None:
    questions = made()
    comparison = Comparison(questions, resamples=5)
    for scope, codes in {"all": list(TIERS), "high": ["en", "de"], "low": ["sw"]}.items():
        chosen = {code: np.flatnonzero(questions.language == code) for code in codes}
        for runs in (["m"], ["m-0.0-0", "m-0.0-1"]):
            expected = np.mean([metric_by_language(questions, run, name, chosen) for run in runs])
            assert comparison.level_of(runs, scope, name).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["acc", "confidence", "ece", "rms_ce_debiased", "brier"])
def test_resamples_are_paired_and_by_cluster(name: str) -> None:
    """Standard errors equal those of a plain loop that draws questions and recomputes the difference."""
    questions = made(per_language=40)
    estimate = Comparison(questions, resamples=600).difference(["m-0.0-0"], ["m"], "high", name)
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(400):
        picked = rng.integers(0, 40, 40)
        chosen = {
            code: np.concatenate(
                [np.flatnonzero((questions.language == code) & (questions.cluster == c)) for c in picked]
            )
            for code in ("en", "de")
        }
        drawn.append(
            metric_by_language(questions, "m-0.0-0", name, chosen) - metric_by_language(questions, "m", name, chosen)
        )
    half = (estimate.high - estimate.low) / 2
    assert half == pytest.approx(1.96 * np.std(drawn), rel=0.2)
    assert estimate.low < estimate.value < estimate.high


def test_a_run_against_itself_differs_by_nothing() -> None:
    comparison = Comparison(made(), resamples=50)
    for name in METRICS:
        estimate = comparison.difference(["m"], ["m"], "all", name)
        assert (estimate.value, estimate.low, estimate.high, estimate.sign) == (0, 0, 0, 0)


def test_temperatures_are_found_again() -> None:
    """Scores drawn from a calibrated model, made sharper in one language: its temperature is found again."""
    rng = np.random.default_rng(0)
    questions = made(per_language=4000)
    scores = rng.normal(size=(len(questions), 4))
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    answer = (rng.random((len(scores), 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    factor = np.where(questions.language == "sw", 3.0, 0.5)[:, None]
    changed = {"gold": np.eye(4, dtype=bool)[answer], "log_likelihoods": {"m": scores * factor}}
    comparison = Comparison(Questions(**{**questions.__dict__, **changed}), resamples=2)
    own = comparison.temperatures("m", SCALED_OWN)
    assert own[questions.language == "sw"] == pytest.approx(3.0, rel=0.2)
    assert own[questions.language == "de"] == pytest.approx(0.5, rel=0.2)
    assert comparison.temperatures("m", SCALED) == pytest.approx(0.5, rel=0.2)
    ece = comparison.level_of(["m"], "low", "ece", scaling=SCALED_OWN).value
    assert ece < 0.04 < comparison.level_of(["m"], "low", "ece").value


def test_no_question_is_scaled_by_a_temperature_that_was_fitted_on_it() -> None:
    questions = made()
    for scaling in (SCALED, SCALED_OWN):
        before = Comparison(questions, resamples=2).temperatures("m", scaling)
        sharp = dict(questions.log_likelihoods)
        even = questions.cluster % 2 == 0
        sharp["m"] = np.where(even[:, None], sharp["m"] * 5, sharp["m"])
        changed = Questions(**{**questions.__dict__, "log_likelihoods": sharp})
        after = Comparison(changed, resamples=2).temperatures("m", scaling)
        assert np.array_equal(before[even], after[even])  # fitted on the odd half, which did not change
        assert not np.allclose(before[~even], after[~even])


def test_temperature_of_high_resource_languages_serves_all() -> None:
    questions = made()
    low = questions.language == "sw"
    other = dict(questions.log_likelihoods)
    other["m"] = np.where(low[:, None], other["m"] * 7, other["m"])
    changed = Questions(**{**questions.__dict__, "log_likelihoods": other})
    same = [Comparison(q, resamples=2).temperatures("m", SCALED) for q in (questions, changed)]
    assert np.array_equal(*same)
    assert len(set(same[0])) == 2
    own = [Comparison(q, resamples=2).temperatures("m", SCALED_OWN)[low].mean() for q in (questions, changed)]
    assert own[1] == pytest.approx(7 * own[0], rel=1e-3)


def test_token_lengths_divide() -> None:
    questions = made()
    by_token = questions.probabilities("m-0.1-0", normalization="token")
    raw = questions.log_likelihoods["m-0.1-0"] / [1.0, 2.0, 3.0, 4.0]
    expected = np.exp(raw) / np.nansum(np.exp(raw), axis=1, keepdims=True)
    assert np.allclose(by_token, expected, equal_nan=True)
    with pytest.raises(CalibrationValueError, match="'byte' needs lengths"):
        questions.probabilities("m", normalization="byte")


def test_questions_survive_parquet(tmp_path: Path) -> None:
    questions = made()
    again = read_questions(write_questions(tmp_path / "q.parquet", questions))
    assert len(again) == len(questions)
    for name in ("task", "language", "tier", "cluster", "gold"):
        assert np.array_equal(getattr(again, name), getattr(questions, name)), name
    for run, values in questions.log_likelihoods.items():
        assert np.allclose(again.log_likelihoods[run], values, rtol=1e-6, equal_nan=True)
    for key, lengths in questions.lengths.items():
        assert np.array_equal(again.lengths[key], lengths, equal_nan=True)
    assert (again.tokens, again.dropped, again.benchmark) == (questions.tokens, 0, "calib_made")


def test_clusters_join_what_is_parallel() -> None:
    task = np.array(["t_a", "t_a", "t_b", "t_b"], dtype=object)
    assert clusters("t", task, np.array([0, 1, 0, 1])).tolist() == [0, 1, 0, 1]
    assert clusters("t", task, np.array([0, 1, 0, 2])).tolist() == [0, 1, 2, 3]
    # The embedded benchmark's facts have names: Thai lacks some, so its numbers shift against the Swahili ones.
    task = np.array(["calib_cldr_sw"] * 60 + ["calib_cldr_th"] * 60, dtype=object)
    found = clusters("calib_cldr", task, np.tile(np.arange(60), 2))
    assert len(set(found[:60])) == len(set(found[60:])) == 60
    assert 40 < len(set(found[:60]) & set(found[60:])) < 60


def design(**changes: Any) -> dict[str, Any]:
    evaluations = {"made": {"tasks": ["calib_made"], "normalizations": ["none", "token"]}}
    runs = [{**run, "pretrained": "m", "logs": {"made": "/nowhere"}} for run in RUNS]
    options = {"resamples": 60}
    return {"name": "try", "runs": runs, "evaluations": evaluations, "options": options, "missing": 0, **changes}


def test_the_report_says_what_the_numbers_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "report").mkdir()
    write_questions(tmp_path / "report" / "questions-made-calib_made.parquet", made(per_language=150, sharpness=3.0))
    path = tmp_path / "report" / "design-0a.json"
    path.write_text(json.dumps(design()), encoding="utf-8")
    assert study.main([str(path), "--out", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "study.md").read_text(encoding="utf-8")
    assert text.strip() == capsys.readouterr().out.strip()
    assert (tmp_path / "report" / "finished-0a").exists()
    # Tuned without smoothing is three times as sharp: confidence up, accuracy not, calibration worse.
    assert "The papers' effect: confidence rose more than accuracy" in text
    assert "smoothing 0.1 against none: ECE fell" in text
    told = json.loads((tmp_path / "report" / "study.json").read_text(encoding="utf-8"))
    found = {
        (row["comparison"], row["scope"], row["metric"], row["label_smoothing"]): row
        for row in told["rows"]
        if row["normalization"] == "none"
    }
    assert found["tuned - base", "low", "confidence", 0.0]["low"] > 0
    assert found["smoothed - unsmoothed", "low", "ece", 0.1]["high"] < 0
    assert found["scaled - unscaled", "all", "acc", 0.0]["value"] == 0
    assert found["scaled - unscaled", "all", "brier", 0.0]["high"] < 0
    for name in ("study-calib_made-none.png", "study-calib_made-token.png", "study.csv"):
        assert (tmp_path / "report" / name).stat().st_size > 1000


def test_a_normalization_that_changes_nothing_is_told_once(tmp_path: Path) -> None:
    questions = made()
    ones = {name: np.where(np.isnan(values), np.nan, 1.0) for name, values in questions.lengths.items()}
    letters = replace(questions, benchmark="calib_letters", lengths=ones)
    assert letters.changes_nothing("token")
    assert letters.changes_nothing("char")
    assert not questions.changes_nothing("token")
    design = {
        "name": "s",
        "runs": RUNS,
        "options": {"resamples": 5},
        "missing": 0,
        "evaluations": {"made": {"normalizations": ["none", "token"]}, "alone": {"normalizations": ["token"]}},
    }
    alone = replace(letters, benchmark="calib_alone")
    given = {part.benchmark: ("alone" if part is alone else "made", part) for part in (questions, letters, alone)}
    study.write(design, given, tmp_path)
    text = (tmp_path / "study.md").read_text(encoding="utf-8")
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "calib_made, normalisation none",
        "calib_made, normalisation token",
        "calib_letters, normalisation none",
        "calib_alone, normalisation token",
    ]
    assert text.count("Every choice has length 1, so token comes to the same.") == 1


def test_no_effect_is_called_none() -> None:
    comparison = Comparison(made(sharpness=1.0), resamples=60)
    text = "\n".join(study_text.section(study_text.about(comparison), list(rows(comparison, RUNS))))
    assert "The papers' effect is not seen" in text
    assert "The papers' effect:" not in text


def test_runs_without_results_are_left_out() -> None:
    available = ["m", "m-0.0-0", "m-0.1-1"]
    (setting,) = settings(RUNS, available)
    assert setting.tuned == {0.0: ("m-0.0-0",), 0.1: ("m-0.1-1",)}
    assert settings(RUNS, available[1:]) == []


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main([str(tmp_path / "none.json"), "--out", str(tmp_path)]) == 2
    assert "design: expected a study's design" in capsys.readouterr().err
    path = tmp_path / "design-1.json"
    path.write_text(json.dumps(design(options={"resample": 1})))
    assert study.main([str(path), "--out", str(tmp_path)]) == 2
    assert "unknown option resample" in capsys.readouterr().err
    path.write_text(json.dumps(design()))
    assert study.main([str(path), "--out", str(tmp_path)]) == 2
    assert "there are no logs in /nowhere" in capsys.readouterr().err


def test_real_logs_of_two_runs_are_aligned(tmp_path: Path) -> None:
    """Runs with different limits share their first questions; the rest is counted."""
    for name, count in (("a", 5), ("b", 3)):
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True)
        lines = []
        for number in range(count):
            choices = ["x", "yy"]
            requests = {f"gen_args_{k}": {"arg_0": f"Q{number}:", "arg_1": f" {c}"} for k, c in enumerate(choices)}
            answers = [[str(-1.0 - number), "True"], ["-2.5", "False"]]
            lines.append(
                {
                    "doc_id": number,
                    "doc": {"q": number},
                    "target": str(number % 2),
                    "arguments": requests,
                    "resps": [[a] for a in answers],
                    "filtered_resps": answers,
                    "filter": "none",
                    "metrics": ["acc"],
                    "doc_hash": hashlib.sha256(str(number).encode()).hexdigest(),
                    "prompt_hash": "a" * 64,
                    "target_hash": hashlib.sha256(str(number % 2).encode()).hexdigest(),
                    "acc": float((number % 2 == 0) == (number < 2)),
                }
            )
        log = folder / "samples_calib_xcopa_sw_2026-01-01T00-00-00.000000.jsonl"
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    questions = load_questions({"a": [str(tmp_path / "a")], "b": [str(tmp_path / "b")]})["calib_xcopa"]
    assert (len(questions), questions.dropped) == (3, 2)
    assert questions.gold.tolist() == [[True, False], [False, True], [True, False]]
    assert questions.log_likelihoods["b"].tolist() == [[-1.0, -2.5], [-2.0, -2.5], [-3.0, -2.5]]
    assert questions.lengths["byte"].tolist() == [[1.0, 2.0]] * 3
    assert (questions.language[0], questions.tier[0]) == ("sw", "low")
