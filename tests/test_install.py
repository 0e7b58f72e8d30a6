"""What an installed package must hold, editable or as a wheel (CI runs this file in both)."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distribution, files
from importlib.resources import files as resources
from pathlib import Path

import pytest

import lm_eval_calib


def lm_eval_calib_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lm_eval_calib", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_it_is_the_kind_of_install_that_this_run_is_about() -> None:
    if os.environ.get("LM_EVAL_CALIB_EXPECT") != "wheel":
        pytest.skip("CI sets LM_EVAL_CALIB_EXPECT=wheel where the wheel is tested")
    assert "site-packages" in lm_eval_calib.__file__


def test_tasks_train_and_the_start_up_file_are_installed() -> None:
    assert resources("lm_eval_calib.tasks").joinpath("xnli", "calib_xnli_sw.yaml").is_file()
    assert resources("lm_eval_calib.train").joinpath("__init__.py").is_file()
    assert resources("lm_eval_calib").joinpath("py.typed").is_file()
    assert "lm_eval_calib_autoload.pth" in {str(path) for path in files("lm-eval-calib") or []}


def test_entry_points_load() -> None:
    points = distribution("lm-eval-calib").entry_points
    assert {"console_scripts", "lm_eval.models", "lm_eval.tasks"} <= {point.group for point in points}
    for point in points:
        assert point.load() is not None


def test_the_base_install_asks_for_no_trl_and_no_plotting() -> None:
    base = [line.lower() for line in distribution("lm-eval-calib").requires or [] if "extra ==" not in line]
    assert base
    assert not [line for line in base if line.startswith(("trl", "torch", "matplotlib", "peft", "pandas"))]


def test_stock_lm_eval_finds_our_tasks_from_any_folder(tmp_path: Path) -> None:
    code = "from lm_eval.tasks import TaskManager; print([t for t in TaskManager().all_tasks if 'calib_' in t])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "'calib_xnli_sw'" in done.stdout, done.stderr
    assert "'calib_cldr'" in done.stdout


def test_the_folder_for_include_path() -> None:
    done = lm_eval_calib_command("tasks", "--path")
    assert Path(done.stdout.strip(), "xnli").is_dir(), done.stderr


def test_a_mistake_is_one_line_without_a_traceback() -> None:
    done = lm_eval_calib_command("demo", "--languages", "xx")
    assert done.returncode == 2
    assert done.stderr.startswith("lm-eval-calib demo: --languages: expected codes")
    assert "Traceback" not in done.stderr
