"""The start-up file: nothing unless lm_eval is imported, and never in lm_eval's way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


def test_nothing_heavy_at_start() -> None:
    heavy = ("lm_eval", "lm_eval_calib", "numpy", "torch", "yaml", "inspect")
    done = python(f"import sys; print(sorted(m for m in sys.modules if m.split('.')[0] in {heavy}))")
    assert done.stdout.strip() == "[]"


def test_switched_off() -> None:
    done = python("import sys; print([f for f in sys.meta_path if 'Calib' in repr(f)])", LM_EVAL_CALIB_AUTOLOAD="0")
    assert done.stdout.strip() == "[]"


def test_our_folder_stands_between_the_stock_tasks_and_the_users(tmp_path: Path) -> None:
    code = f"""
import lm_eval.tasks.manager as manager
from pathlib import Path
from lm_eval_calib.autoload import task_folder
import lm_eval.tasks._index as index
stock, user = Path(manager.__file__).parent, Path({str(tmp_path)!r})
seen = []
index.TaskIndex._iter_yaml_files = staticmethod(lambda root: seen.append(Path(root)) or [])
manager.TaskManager(include_path=str(user))
assert seen == [stock, task_folder(), user], seen
seen.clear()
manager.TaskManager(include_path=str(task_folder()))
assert seen == [stock, task_folder()], seen
seen.clear()
manager.TaskManager(include_path=str(user), include_defaults=False)
assert seen == [user], seen
print("ok")
"""
    done = python(code)
    assert done.stdout.strip() == "ok", done.stderr


def test_it_steps_aside_when_the_harness_reads_entry_points(tmp_path: Path) -> None:
    """A harness that names the entry-point group in its task package is left alone."""
    code = f"""
import shutil, sys
from pathlib import Path
import importlib.util
stock = Path(importlib.util.find_spec("lm_eval").origin).parent
copy = Path({str(tmp_path)!r}) / "lm_eval"
shutil.copytree(stock, copy, ignore=shutil.ignore_patterns("*.yaml", "*.json", "*.txt"))
with (copy / "tasks" / "manager.py").open("a") as file:
    file.write('''
def _plugins():
    from importlib.metadata import entry_points
    return entry_points(group="lm_eval.tasks")
''')
sys.path.insert(0, {str(tmp_path)!r})
import lm_eval.tasks.manager as manager
assert Path(manager.__file__).parent == copy / "tasks"
assert manager.TaskIndex.build.__qualname__ == "TaskIndex.build", manager.TaskIndex.build
print("ok")
"""
    done = python(code)
    assert done.stdout.strip() == "ok", done.stderr


def test_a_broken_shim_warns_and_breaks_nothing() -> None:
    code = """
import warnings
warnings.simplefilter("always")
import lm_eval_calib.autoload as autoload
def broken(*_):
    raise RuntimeError("boom")
autoload._register_models = broken
import lm_eval.tasks.manager as manager
print(manager.TaskIndex.build.__qualname__)
"""
    done = python(code)
    assert done.stdout.strip() == "TaskIndex.build"
    assert done.stderr.count("lm-eval-calib could not add its tasks") == 1
    assert "--include_path" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_uninstalled_package_warns_and_breaks_nothing() -> None:
    done = python(
        "import sys; sys.modules['lm_eval_calib.autoload'] = None\n"
        "import lm_eval.tasks.manager as m; print(m.TaskIndex.build.__qualname__)"
    )
    assert done.stdout.strip() == "TaskIndex.build"
    assert done.stderr.count("could not add its tasks") == 1
    assert "Traceback" not in done.stderr


def test_the_model_is_known_to_the_harness() -> None:
    done = python("import lm_eval.tasks; from lm_eval.api.registry import get_model; print(get_model('hf-calib'))")
    assert "lm_eval_calib.scoring" in done.stdout, done.stderr
