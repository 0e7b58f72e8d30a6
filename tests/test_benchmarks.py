"""Every benchmark through lm-eval's own loading and evaluation, on made-up rows in the layout of its data set."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from benchmark_cases import CASES, Case
from conftest import write_dataset
from hash_model import HashModel
from lm_eval.tasks import TaskManager

from lm_eval_calib.errors import CalibrationError
from lm_eval_calib.sources import read_benchmark
from lm_eval_calib.tasks.generate import ROOT

datasets.disable_progress_bars()
STOCK = Path(str(files("lm_eval.tasks")))
PROMPTS = Path(__file__).parent / "benchmark_prompts.json"


def _rows(case: Case, language: str, count: int, start: int, bad: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [case.row(start + i, language) for i in range(count)]
    # A malformed row after each of the first good ones, so that none of them shifts into a place that hides it.
    for place, change in enumerate(bad):
        rows.insert(2 * place + 1, case.row(start + place, language) | change)
    return rows


def _write(root: Path, name: str, *, bad: bool) -> None:
    case = CASES[name]
    configs: dict[str, dict[str, Any]] = {}
    for language in case.languages:
        configs[case.config(language)] = {
            split: _rows(case, language, count, 100 * number, case.bad if bad and not number else [])
            for number, (split, count) in enumerate(case.splits.items())
        }
    if name == "mmlu":  # whose stock tasks read a config a subject
        for subject in sorted({row["subject"] for row in configs["all"]["test"]}):
            configs[subject] = {
                split: [row for row in rows if row["subject"] == subject] for split, rows in configs["all"].items()
            }
    write_dataset(root / case.dataset, configs)


Hub = Callable[[Path], None]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Make a folder the place where data sets are found by their ids."""

    def enter(folder: Path) -> None:
        monkeypatch.chdir(folder)
        # datasets tells two folders of one relative path apart by nothing, so each has a cache of its own.
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")

    return enter


def _evaluate(tasks: list[str], folders: list[Path], *, shots: int = 0, **metadata: Any) -> tuple[Any, HashModel]:
    # Only the folders that matter are indexed: the whole of lm-eval takes seconds.
    manager = TaskManager(include_path=list(map(str, folders)), include_defaults=False, metadata=metadata)
    model = HashModel()
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=tasks,
        task_manager=manager,
        num_fewshot=shots,
        bootstrap_iters=0,
        log_samples=False,
    )
    return results, model


def _task(name: str, language: str) -> str:
    return read_benchmark(ROOT / name).task_name(language)


ALL = [(name, language) for name, case in CASES.items() for language in case.languages]
WITH_STOCK = [(name, language) for name, language in ALL if CASES[name].stock]


@pytest.mark.parametrize(("name", "language"), WITH_STOCK)
def test_equals_the_stock_task(name: str, language: str, tmp_path: Path, hub: Hub) -> None:
    case = CASES[name]
    _write(tmp_path, name, bad=False)
    hub(tmp_path)
    ours = _task(name, language)
    folders = [ROOT / name, STOCK / case.folder.format(_folder_name(language))]
    manager = TaskManager(include_path=list(map(str, folders)), include_defaults=False)
    stock = [task for task in (item.format(language) for item in case.stock) if task in manager.all_subtasks]
    assert stock
    for shots in sorted({0, case.shots}):
        results, model = _evaluate([ours, *stock], folders, shots=shots)
        pooled: Counter[tuple[str, str]] = sum((model.asked[task] for task in stock), Counter())
        assert model.asked[ours] == pooled
        sizes = [results["n-samples"][task]["effective"] for task in stock]
        weighted = sum(results["results"][task]["acc,none"] * size for task, size in zip(stock, sizes, strict=True))
        assert sum(sizes) == results["n-samples"][ours]["effective"] == next(iter(case.splits.values()))
        assert results["results"][ours]["acc,none"] == pytest.approx(weighted / sum(sizes), abs=1e-12)
        assert 0 < results["results"][ours]["ece,none"] < 1


def _folder_name(language: str) -> str:
    return language.title() if len(language) > 5 else language


@pytest.mark.parametrize(("name", "language"), [(name, case.languages[0]) for name, case in CASES.items()])
def test_malformed_rows_are_left_out_and_counted(
    name: str, language: str, tmp_path: Path, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES[name]
    task = _task(name, language)
    asked = []
    for bad in (False, True):
        root = tmp_path / str(bad)
        _write(root, name, bad=bad)
        hub(root)
        with caplog.at_level(logging.WARNING, logger="lm_eval_calib.benchmarks"):
            results, model = _evaluate([task], [ROOT / name])
        asked.append(model.asked[task])
        split, count = next(iter(case.splits.items()))
        told = results["configs"][task]["metadata"]["rows"][split]
        assert told["read"] == count + (len(case.bad) if bad else 0)
        assert sum(told["malformed"].values()) == (len(case.bad) if bad else 0)
        assert ("malformed" in caplog.text) == bad
    assert asked[0] == asked[1]


def test_prompts_are_pinned(tmp_path: Path, hub: Hub, request: pytest.FixtureRequest) -> None:
    prompts: dict[str, Any] = {}
    for name in CASES:
        _write(tmp_path, name, bad=False)
    hub(tmp_path)
    for name, language in ALL:
        task = TaskManager(include_path=str(ROOT / name), include_defaults=False).load(_task(name, language))
        (built,) = task["tasks"].values()
        built.set_fewshot_seed(1234)
        doc = built.task_docs[1]
        shots = 1
        context = built.fewshot_context(doc, num_fewshot=shots)
        instances = built.construct_requests(doc=doc, ctx=context, metadata=(built.task_name, 1, 1))
        prompts[built.task_name] = {
            "contexts": sorted({instance.args[0] for instance in instances}),
            "continuations": list(dict.fromkeys(instance.args[1] for instance in instances)),
            "gold": built.doc_to_text(doc) if built.multiple_input else built.doc_to_target(doc),
        }
    text = json.dumps(prompts, ensure_ascii=False, indent=1) + "\n"
    if request.config.getoption("--pin"):
        PROMPTS.write_text(text, encoding="utf-8")
    assert prompts == json.loads(PROMPTS.read_text(encoding="utf-8"))


def test_metadata_selects(tmp_path: Path, hub: Hub) -> None:
    _write(tmp_path, "global_mmlu", bad=False)
    hub(tmp_path)
    task, folders = "calib_global_mmlu_sw", [ROOT / "global_mmlu"]

    def questions(**metadata: Any) -> set[str]:
        _, model = _evaluate([task], folders, **metadata)
        return {context.splitlines()[0].split()[-1] for context, _ in model.asked[task]}

    numbers = {str(i) for i in range(18)}
    assert questions() == numbers
    assert questions(subjects="anatomy") == {str(i) for i in range(0, 18, 3)}
    assert questions(subjects=["anatomy", "us_foreign_policy"]) == numbers - {str(i) for i in range(1, 18, 3)}
    assert questions(cultural_sensitivity="CS") == {str(i) for i in range(1, 18, 2)}
    assert questions(cultural_sensitivity="CA", subjects=["anatomy"]) == {"0", "6", "12"}
    assert questions(categories="Social Sciences") == {str(i) for i in range(2, 18, 3)}
    manager = TaskManager(include_path=str(folders[0]), include_defaults=False, metadata={"subjects": "anatomy"})
    built = manager.load(task)["tasks"][task]
    built.build_all_requests(cache_requests=True)  # whose key omits the selection
    assert len(built.instances) == 6 * 4
    assert not list(tmp_path.rglob("*.pickle"))
    with pytest.raises(CalibrationError, match=r"selects \['botany'\].*'anatomy'"):
        questions(subjects=["botany", "anatomy"])
    with pytest.raises(CalibrationError, match="must be a value or a list of values"):
        questions(subjects=3)


def test_too_few_examples(tmp_path: Path, hub: Hub) -> None:
    _write(tmp_path, "global_mmlu", bad=False)
    hub(tmp_path)
    with pytest.raises(CalibrationError, match="asks for 5 examples of subject 'anatomy', the data set has 3"):
        _evaluate(["calib_global_mmlu_sw"], [ROOT / "global_mmlu"], shots=5)


@pytest.mark.parametrize(
    ("name", "language"), [("xwinograd", "jp"), ("include", "albanian"), ("hellaswag_multilingual", "te")]
)
def test_a_question_is_never_its_own_example(name: str, language: str, tmp_path: Path, hub: Hub) -> None:
    _write(tmp_path, name, bad=False)
    hub(tmp_path)
    task = _task(name, language)
    _, plain = _evaluate([task], [ROOT / name])
    _, model = _evaluate([task], [ROOT / name], shots=3)
    questions = {context.split("about", 1)[-1] for context, _ in plain.asked[task]}
    for context, _ in model.asked[task]:
        question = next(item for item in questions if context.endswith(item[-30:]))
        assert context.count(question[-30:]) == 1


def test_reseeding_draws_the_same_examples(tmp_path: Path, hub: Hub) -> None:
    _write(tmp_path, "global_mmlu_lite", bad=False)
    hub(tmp_path)
    manager = TaskManager(include_path=str(ROOT / "global_mmlu_lite"), include_defaults=False)
    task = manager.load("calib_global_mmlu_lite_ar")["tasks"]["calib_global_mmlu_lite_ar"]

    def prompts(seed: int) -> list[str]:
        task.set_fewshot_seed(seed)
        return [task.fewshot_context(doc, num_fewshot=2) for doc in task.task_docs]

    first = prompts(1)
    assert prompts(2) != first
    assert prompts(1) == first


def test_examples_are_read_when_needed(tmp_path: Path, hub: Hub) -> None:
    _write(tmp_path, "xnli", bad=False)
    hub(tmp_path)
    manager = TaskManager(include_path=str(ROOT / "xnli"), include_defaults=False)
    task = manager.load("calib_xnli_sw")["tasks"]["calib_xnli_sw"]
    assert set(task.config.metadata["rows"]) == {"validation"}
    task.set_fewshot_seed(1)
    task.fewshot_context(task.task_docs[0], num_fewshot=2)
    assert set(task.config.metadata["rows"]) == {"validation", "train"}


def test_missing_columns_and_splits_are_named(tmp_path: Path, hub: Hub) -> None:
    hub(tmp_path)
    manager = TaskManager(include_path=str(ROOT / "xnli"), include_defaults=False)
    write_dataset(tmp_path / "facebook/xnli", {"sw": {"validation": [{"premise": "a", "label": 0}]}})
    with pytest.raises(CalibrationError, match=r"split 'validation' lacks the columns \['hypothesis'\]"):
        manager.load("calib_xnli_sw")
    write_dataset(tmp_path / "facebook/xnli", {"sw": {"dev": [{"premise": "a", "label": 0}]}})
    with pytest.raises(CalibrationError, match=r"'validation' is not in the data set, which has \['dev'\]"):
        manager.load("calib_xnli_sw")


def test_group_rows_are_unweighted_means(tmp_path: Path, hub: Hub) -> None:
    benchmark = read_benchmark(ROOT / "xnli")
    hub(tmp_path)
    configs = {
        language: {"validation": [CASES["xnli"].row(i, language) for i in range(4 + 3 * number)]}
        for number, language in enumerate(benchmark.languages)
    }
    write_dataset(tmp_path / "facebook/xnli", configs)
    results, _ = _evaluate(["calib_xnli"], [ROOT / "xnli"])
    rows = results["results"]
    tiers = {language: benchmark.language(language).tier for language in benchmark.languages}
    for tier in ("high", "mid", "low", None):
        name = f"calib_xnli_{tier}" if tier else "calib_xnli"
        members = [f"calib_xnli_{language}" for language, its in tiers.items() if tier in (its, None)]
        for metric in ("acc,none", "ece,none", "brier,none", "overconfidence,none"):
            mean = sum(rows[member][metric] for member in members) / len(members)
            assert rows[name][metric] == pytest.approx(mean, abs=1e-12)
