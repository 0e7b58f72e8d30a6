"""Task files come from their `benchmark.yml`, and adding a benchmark is what docs/add-a-benchmark.md says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT as CHECKOUT
from conftest import write_dataset
from hash_model import HashModel
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.harness import resolve_base_task
from lm_eval_calib.sources import Function, read_benchmark, task_config
from lm_eval_calib.tasknames import parse_task_name
from lm_eval_calib.tasks.generate import ROOT, differences, files, main, read_benchmarks

MINIMAL = """
title: T
about: a
source: s
languages: {languages}
task: {{base_task: xnli_$language}}
"""


def test_no_file_has_drifted() -> None:
    assert differences(write=False) == []


def test_drift_is_found_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "nli"
    folder.mkdir()
    (folder / "benchmark.yml").write_text(MINIMAL.format(languages="[sw, en]"))
    expected = {
        "_calib_nli.yaml",
        "_calib_nli_high.yaml",
        "_calib_nli_low.yaml",
        "calib_nli_en.yaml",
        "calib_nli_sw.yaml",
    }
    assert main(["--root", str(tmp_path)]) == 0
    assert {path.name for path in folder.glob("*.yaml")} == expected
    assert main(["--root", str(tmp_path), "--check"]) == 0
    (folder / "calib_nli_sw.yaml").write_text("changed")
    (folder / "calib_nli_en.yaml").unlink()
    (folder / "calib_nli_fr.yaml").write_text("left over")
    capsys.readouterr()
    assert main(["--root", str(tmp_path), "--check"]) == 1
    assert capsys.readouterr().out.split() == [
        *(
            "differs:",
            "nli/calib_nli_en.yaml",
            "differs:",
            "nli/calib_nli_fr.yaml",
            "differs:",
            "nli/calib_nli_sw.yaml",
        )
    ]
    assert main(["--root", str(tmp_path)]) == 0
    assert differences(tmp_path, write=False) == []


def test_the_documented_list_is_complete() -> None:
    page = (CHECKOUT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for benchmark in read_benchmarks():
        assert f"| `calib_{benchmark.name}` | {len(benchmark.languages)} |" in page, benchmark.name


SOURCE = """
title: T
about: a
source: s
languages: {sw: swa, en: en}
task:
  base_task: xnli_$language
  process_docs: !function json.dumps
  description: costs $$5 in $language ($code), $word
words: {sw: {word: moja}, en: {word: one}}
overrides: {en: {num_fewshot: 3}}
"""


def test_task_config_fills_in_and_resolves(tmp_path: Path) -> None:
    source = tmp_path / "benchmark.yml"
    source.write_text(SOURCE)
    assert task_config(tmp_path, "sw") == {
        "base_task": "xnli_sw",
        "process_docs": json.dumps,
        "description": "costs $5 in sw (swa), moja",
        "metadata": {"benchmark": f"calib_{tmp_path.name}", "language": "swa"},
    }
    assert read_benchmark(tmp_path).config("sw")["process_docs"] == Function("json.dumps")
    assert task_config(tmp_path, "en")["num_fewshot"] == 3
    with pytest.raises(CalibrationValueError, match=r"benchmark.yml has sw, en, got 'fr'"):
        task_config(tmp_path, "fr")
    with pytest.raises(CalibrationValueError, match=r"needs a benchmark.yml beside the task's YAML"):
        task_config(tmp_path / "elsewhere", "sw")
    source.write_text(SOURCE.replace("json.dumps", "json.dances"))
    with pytest.raises(CalibrationValueError, match=r"!function json\.dances: expected an importable"):
        task_config(tmp_path, "sw")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL.format(languages="[sw, zz]"), "benchmark.yml: unknown language code 'zz'"),
        (MINIMAL.format(languages="[sw]") + "colour: red", r"unknown key \['colour'\]"),
        ("title: T", r"missing key \['about', 'languages', 'source', 'task'\]"),
        (
            MINIMAL.format(languages="[sw]") + "words: {en: {x: y}}",
            r"words and languages differ: \['en', 'sw'\]",
        ),
        (MINIMAL.format(languages="[sw]") + "overrides: {en: {x: y}}", r"overrides of \['en'\]"),
    ],
)
def test_mistakes_in_a_source_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "benchmark.yml").write_text(text)
    with pytest.raises(CalibrationValueError, match=message):
        read_benchmark(tmp_path)


def test_every_task_builds_on_a_task_of_the_installed_harness() -> None:
    manager = TaskManager(include_path=str(ROOT), include_defaults=False)
    names = {benchmark.task_name(suffix) for benchmark in read_benchmarks() for suffix in benchmark.languages}
    assert names == set(manager.all_subtasks)
    for name in names:
        entry = manager.task_index[name]
        assert set(entry.cfg or {}) == {"class", "task", "output_type", "language"}
        assert entry.yaml_path is not None
        config = task_config(entry.yaml_path.parent, (entry.cfg or {})["language"])
        config.pop("rows", None)
        if "base_task" in config:
            resolved = resolve_base_task(config)
            assert resolved["dataset_path"], name
            assert resolved["doc_to_choice"] is not None, name


def test_every_member_of_a_group_exists() -> None:
    manager = TaskManager(include_path=str(ROOT), include_defaults=False)
    listed = set(manager.all_tasks)
    for group in manager.all_groups:
        config = manager.task_index[group].cfg or {}
        assert set(config["task"]) <= listed, group
    papers = manager.task_index["calib_papers"].cfg or {}
    assert papers["task"] == ["calib_global_mmlu", "calib_mmlu_prox"]


def test_the_documented_way_to_add_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (CHECKOUT / "docs" / "add-a-benchmark.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    source = next(block for block in blocks if block.startswith("title:"))
    name = re.search(r"`tasks/(\w+)/benchmark.yml`", text)
    assert name is not None
    folder = tmp_path / "tasks" / name[1]
    folder.mkdir(parents=True)
    (folder / "benchmark.yml").write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "lm_eval_calib.tasks.generate", "--root", str(tmp_path / "tasks")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"written: {name[1]}/_calib_{name[1]}.yaml" in done.stdout
    rows = [
        {"stem": f"Question {i}?", "options": ["x", "y", "z"][: 2 + i % 2], "key": i % 2, "topic": "birds"}
        for i in range(6)
    ]
    rows.append({"stem": "Broken?", "options": ["x", "y"], "key": 7, "topic": "birds"})
    write_dataset(tmp_path / "someone/quiz", {code: {"test": rows} for code in ("swahili", "english")})
    monkeypatch.chdir(tmp_path)
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    results = simple_evaluate(model=HashModel(), tasks=[f"calib_{name[1]}"], task_manager=manager, bootstrap_iters=0)
    assert results is not None
    assert {f"calib_{name[1]}_sw", f"calib_{name[1]}_low"} <= set(results["results"])
    assert results["n-samples"][f"calib_{name[1]}_sw"]["effective"] == 6
    assert results["configs"][f"calib_{name[1]}_sw"]["metadata"]["rows"]["test"]["malformed"] == {
        "the answer 7 is none of the options": 1
    }


def test_stock_validate_passes_over_all_our_tasks_and_groups() -> None:
    names = [name.removesuffix(".yaml").removeprefix("_") for b in read_benchmarks() for name, _ in files(b)]
    command = [sys.executable, "-m", "lm_eval", "validate", "--tasks"]
    done = subprocess.run([*command, ",".join(names)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "All tasks found and valid" in done.stdout
    assert len(names) > 700


def test_logs_tell_benchmark_and_language_of_every_task() -> None:
    for benchmark in read_benchmarks():
        for suffix, code in benchmark.languages.items():
            metadata = task_config(ROOT / benchmark.name, suffix)["metadata"]
            told = parse_task_name(benchmark.task_name(suffix), {"metadata": metadata})
            assert (told.benchmark, told.language) == (f"calib_{benchmark.name}", code)
