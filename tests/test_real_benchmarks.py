"""XCOPA and EXAMS on the real data that is kept beside the project."""

from __future__ import annotations

import importlib.util
from collections import Counter
from importlib.resources import files
from pathlib import Path

import datasets
import pytest
from conftest import ROOT as CHECKOUT
from hash_model import HashModel
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_calib.sources import read_benchmark
from lm_eval_calib.tasks.generate import ROOT

pytestmark = pytest.mark.xdist_group("real_hub")


@pytest.fixture(scope="module")
def real_hub(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared data as local copies of their layouts on the hub."""
    spec = importlib.util.spec_from_file_location("real_data", CHECKOUT / "benchmarks" / "real_data.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    hub = tmp_path_factory.mktemp("hub")
    script.local_hub(shared_data, hub)
    return hub


@pytest.fixture
def at_hub(real_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(real_hub)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", real_hub / "cache")
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("at_hub")
def test_xcopa_equals_the_stock_tasks() -> None:
    stock = Path(str(files("lm_eval.tasks"))) / "xcopa"
    manager = TaskManager(include_path=[str(ROOT / "xcopa"), str(stock)], include_defaults=False)
    model = HashModel()
    results = simple_evaluate(
        model=model, tasks=["xcopa", "calib_xcopa"], task_manager=manager, limit=60, bootstrap_iters=0
    )
    assert results is not None
    languages = read_benchmark(ROOT / "xcopa").languages
    for language in languages:
        ours, theirs = f"calib_xcopa_{language}", f"xcopa_{language}"
        assert model.asked[ours] == model.asked[theirs]
        assert results["results"][ours]["acc,none"] == results["results"][theirs]["acc,none"]
        assert results["configs"][ours]["metadata"]["rows"]["test"] == {"read": 500, "malformed": {}}
    assert results["results"]["calib_xcopa"]["acc,none"] == pytest.approx(results["results"]["xcopa"]["acc,none"])


@pytest.mark.usefixtures("at_hub")
def test_exams_has_every_question_of_every_language() -> None:
    manager = TaskManager(include_path=str(ROOT / "exams"), include_defaults=False)
    loaded = manager.load("calib_exams")
    read, malformed, choices = 0, Counter[str](), Counter[int]()
    for task in loaded["tasks"].values():
        told = task.config.metadata["rows"]["test"]
        read += told["read"]
        malformed.update(told["malformed"])
        assert len(task.task_docs) == told["read"] - sum(told["malformed"].values())
        choices.update(len(task.doc_to_choice(doc)) for doc in task.task_docs.select(range(0, len(task.task_docs), 9)))
    assert len(loaded["tasks"]) == 16
    assert read == 13510
    assert malformed == {"the answer '@' is none of the options": 3}
    assert set(choices) == {3, 4, 5}
    task = loaded["tasks"]["calib_exams_vietnamese"]
    doc = task.task_docs[0]
    question = doc["question"]
    expected = question["stem"].strip() + "\n"
    expected += "".join(f"{choice['label']}. {choice['text'].strip()}\n" for choice in question["choices"])
    assert task.doc_to_text(doc) == expected + "Answer:"
    assert task.doc_to_choice(doc) == [choice["label"] for choice in question["choices"]]
    assert task.doc_to_target(doc) == doc["answerKey"]
    task.set_fewshot_seed(1)
    assert task.fewshot_context(doc, num_fewshot=2).count("Answer:") == 3


@pytest.mark.usefixtures("at_hub")
def test_exams_metadata_selects_subjects() -> None:
    metadata = {"subjects": ["Biology"]}
    manager = TaskManager(include_path=str(ROOT / "exams"), include_defaults=False, metadata=metadata)
    task = manager.load("calib_exams_bulgarian")["tasks"]["calib_exams_bulgarian"]
    assert 0 < len(task.task_docs) < 1472
    assert {doc["info"]["subject"] for doc in task.task_docs} == {"Biology"}
