"""`lm-eval-calib tasks` and `lm-eval-calib wrap`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from conftest import write_dataset
from hash_model import HashModel
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_calib import wrap
from lm_eval_calib.cli import main
from lm_eval_calib.errors import CalibrationError
from lm_eval_calib.harness import task_index
from lm_eval_calib.tasks.generate import ROOT

pytestmark = pytest.mark.xdist_group("index")


def test_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--path"]) == 0
    assert Path(capsys.readouterr().out.strip()).samefile(ROOT)
    assert main(["tasks"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert next(row for row in rows if row.startswith("calib_global_mmlu ")).split()[1:5] == [
        "42",
        "20",
        "9",
        "13",
    ]
    assert main(["tasks", "calib_xnli", "exams"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 1 + 15 + 16
    assert next(row for row in rows if row.startswith("calib_xnli_sw ")).split()[1:] == [
        *("Swahili", "Kiswahili", "Latn", "Atlantic-Congo", "2", "low")
    ]
    assert main(["tasks", "--json", "xnli"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["benchmark"] == "calib_xnli"
    assert told["tasks"][0] == {
        **{"task": "calib_xnli_ar", "code": "ar", "iso639_3": "ara", "name": "Arabic", "own_name": "العربية"},
        **{"script": "Arab", "family": "Afro-Asiatic", "resource_class": 5, "tier": "high"},
    }
    assert main(["tasks", "nothing"]) == 2
    assert "no benchmark 'nothing'; there are afrimmlu, " in capsys.readouterr().err


@pytest.fixture(scope="module")
def index() -> dict[str, object]:
    return task_index()


def _wrapped(index: dict[str, object], *names: str, prefix: str = "calib_") -> wrap.Wrapper:
    wrapper = wrap.Wrapper(index, prefix)
    for name in names:
        wrapper.add(name)
    return wrapper


def test_wrapped_group_equals_the_stock_group(
    index: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wrapped(index, "include_base_44_albanian").write(tmp_path / "out")
    domains = [
        "Arts & Humanities",
        "STEM",
        "Business & Commerce",
        "Social Science",
        "Health oriented education",
    ]
    rows = [
        {"domain": domain, "question": f"Q{i} {domain}", "answer": i % 4}
        | {f"option_{letter}": letter for letter in "abcd"}
        for number, domain in enumerate(domains)
        for i in range(3 + number)
    ]
    write_dataset(tmp_path / "CohereForAI/include-base-44", {"Albanian": {"test": rows}})
    monkeypatch.chdir(tmp_path)
    stock = Path(str(files("lm_eval.tasks"))) / "include" / "default" / "Albanian"
    manager = TaskManager(include_path=[str(stock), str(tmp_path / "out")], include_defaults=False)
    names = ["include_base_44_albanian", "calib_include_base_44_albanian"]
    results = simple_evaluate(model=HashModel(), tasks=names, task_manager=manager, bootstrap_iters=0)
    assert results is not None
    of_stock, ours = (results["results"][name] for name in names)
    assert ours["acc,none"] == of_stock["acc,none"]
    assert ours["sample_len"] == of_stock["sample_len"] == len(rows)
    assert 0 < ours["ece,none"] < 1


def test_groups_tags_and_what_is_left_out(index: dict[str, object]) -> None:
    found = _wrapped(index, "mmlu_stem").files
    assert found["calib_mmlu_stem"]["task"][:2] == ["calib_mmlu_abstract_algebra", "calib_mmlu_anatomy"]
    assert found["calib_mmlu_stem"]["aggregate_metric_list"].endswith("GROUP_METRICS_BY_SIZE")
    assert found["calib_mmlu_anatomy"]["base_task"] == "mmlu_anatomy"
    assert len(found) == 20  # 19 subjects and the group
    tagged = _wrapped(index, "ai2_arc", prefix="my_").files
    assert {name: config["tag"] for name, config in tagged.items()} == {
        name: ["my_ai2_arc"] for name in ("my_arc_challenge", "my_arc_easy")
    }
    mixed = _wrapped(index, "leaderboard")
    assert mixed.left_out == {"output_type generate_until": 8}
    assert "calib_leaderboard_mmlu_pro" in mixed.files


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no task, group or tag 'nothing'"),
        ("gsm8k", "task 'gsm8k' cannot be wrapped: output_type generate_until"),
        ("mmlu_prox_sw", r"no task in it can be wrapped \(14 with output_type generate_until\)"),
        ("xnli", "16 of the new names exist already"),
        ("calib_xnli_sw", "cannot be wrapped: the calibration metrics already"),
    ],
)
def test_what_cannot_be_wrapped(name: str, message: str, index: dict[str, object]) -> None:
    with pytest.raises(CalibrationError, match=message):
        _wrapped(index, name)


def test_another_prefix(index: dict[str, object]) -> None:
    assert len(_wrapped(index, "xnli", prefix="mine_").files) == 16
    with pytest.raises(CalibrationError, match="--prefix"):
        wrap.Wrapper(index, "my tasks/")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """As in `lm-eval-calib tasks | head -1`."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval_calib", "tasks"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
