"""The runner: side by side, alone in its folder, and the same result however often it is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from lm_eval_calib.errors import CalibrationError
from lm_eval_calib.train.runner import Runner, duration, gpus, only_one
from lm_eval_calib.train.stages import Stage

# A stage: notes when it begins and ends, reads what it needs, writes its result at the end.
FAKE = """
import json, os, sys, time
out, seconds, *needs = sys.argv[1:]
def note(what):
    path = out + ".notes"
    # A new file appears with its line in it: whoever waits for the file may read it.
    beside = path if os.path.exists(path) else f"{path}.{os.getpid()}"
    with open(beside, "a") as stream:
        stream.write(json.dumps([what, time.time(), os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n")
    os.replace(beside, path)
note("begin")
text = "".join(open(path).read() for path in needs)
for step in range(10):
    time.sleep(float(seconds) / 10)
    print(f"{step * 10}%|")
if os.environ.get("FAIL") and os.environ["FAIL"] in out:
    sys.exit("it broke here")
with open(out + ".part", "w") as stream:
    stream.write(text + os.path.basename(out) + "\\n")
note("end")
os.replace(out + ".part", out)
"""
# The same plan as `plan_of` makes, run as a process that can be killed.
STUDY = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_study_runner import plan_of
from lm_eval_calib.train.runner import Runner, only_one
folder = Path(sys.argv[1])
with only_one(folder):
    outcome = Runner(plan_of(folder), folder=folder, slots=[None] * 3).run()
sys.exit(len(outcome.failed))
"""


@pytest.fixture(autouse=True)
def fake_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "fake_stage.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))


def stage(folder: Path, name: str, seconds: float = 0.0, needs: tuple[str, ...] = (), kind: str = "data") -> Stage:
    out = folder / name
    arguments = (str(out), str(seconds), *(str(folder / need) for need in needs))
    return Stage(name, kind, "fake_stage", arguments, out, needs)


def plan_of(folder: Path) -> list[Stage]:
    plan = [stage(folder, "base", 0.2)]
    for letter in "abcd":
        plan += [stage(folder, f"tune-{letter}", 0.4, ("base",))]
        plan += [stage(folder, f"evaluate-{letter}", 0.3, (f"tune-{letter}",))]
    return plan


def notes(folder: Path, name: str) -> list[tuple[str, float, int, str | None]]:
    lines = (folder / f"{name}.notes").read_text().splitlines()
    return [tuple(json.loads(line)) for line in lines]


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_stages_run_side_by_side_each_on_its_gpu(tmp_path: Path) -> None:
    plan = [stage(tmp_path, name, 1.0) for name in "ab"]
    said: list[str] = []
    outcome = Runner(plan, folder=tmp_path, slots=["0", "3"], say=said.append).run()
    assert outcome.finished == ("a", "b")
    (begin_a, end_a), (begin_b, end_b) = notes(tmp_path, "a"), notes(tmp_path, "b")
    assert max(begin_a[1], begin_b[1]) < min(end_a[1], end_b[1])
    assert {begin_a[3], begin_b[3]} == {"0", "3"}
    assert any("finished" in line and "(2 of 2 done)" in line for line in said)


def test_needs_come_first_and_finished_stages_are_not_run_again(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    Runner(plan, folder=tmp_path, slots=[None] * 3, say=lambda _: None).run()
    assert (tmp_path / "evaluate-d").read_text() == "base\ntune-d\nevaluate-d\n"
    for letter in "abcd":
        assert notes(tmp_path, "base")[1][1] <= notes(tmp_path, f"tune-{letter}")[0][1]
    said: list[str] = []
    outcome = Runner(plan, folder=tmp_path, say=said.append).run()
    assert len(outcome.finished) == 9
    assert said == ["9 of 9 stages are done already"]
    assert all(len(notes(tmp_path, stage.name)) == 2 for stage in plan)


def test_a_failure_takes_along_only_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "tune-b")
    plan = plan_of(tmp_path)
    said: list[str] = []
    outcome = Runner(plan, folder=tmp_path, slots=[None] * 3, say=said.append).run()
    assert (outcome.failed, outcome.skipped) == (("tune-b",), ("evaluate-b",))
    assert len(outcome.finished) == 7
    (at,) = (index for index, line in enumerate(said) if line.startswith("FAILED"))
    assert "exit status 1" in said[at]
    assert "it broke here" in "".join(said[at : at + 6])
    monkeypatch.delenv("FAIL")
    outcome = Runner(plan, folder=tmp_path, slots=[None], say=lambda _: None).run()
    assert len(outcome.finished) == 9
    assert len(notes(tmp_path, "tune-a")) == 2
    assert len(notes(tmp_path, "tune-b")) == 3  # began twice, ended once


def test_a_command_that_leaves_no_results_has_failed(tmp_path: Path) -> None:
    silent = Stage("silent", "data", "this", (), tmp_path / "nothing")
    outcome = Runner([silent], folder=tmp_path, say=lambda _: None).run()
    assert outcome.failed == ("silent",)


def start(folder: Path) -> subprocess.Popen[str]:
    code = textwrap.dedent(STUDY).format(tests=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.environ["PYTHONPATH"]},
    )


def test_killed_at_random_points_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    rng = random.Random(0)
    for _ in range(6):
        process = start(folder)
        time.sleep(0.6 + rng.random())
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        process.communicate(timeout=60)
    process = start(folder)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    for letter in "abcd":
        assert (folder / f"evaluate-{letter}").read_text() == f"base\ntune-{letter}\nevaluate-{letter}\n"
    for one in plan_of(folder):
        runs = notes(folder, one.name)
        assert sum(what == "end" for what, *_ in runs) == 1  # what had finished was not run again
        # Never twice at a time: whatever began before an end belongs to a process that was dead or done by then.
        begun = [pid for what, _, pid, _ in runs if what == "begin"]
        assert len(set(begun)) == len(begun)
        for (_, at, pid, _), (what, after, other, _) in pairwise(runs):
            assert after >= at
            assert what != "end" or other == pid


def test_an_orphan_of_a_killed_study_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    plan = [stage(folder, "slow", 2.0)]
    folder.mkdir()
    code = "import sys; sys.path.insert(0, sys.argv[2]); from test_study_runner import *; from pathlib import Path; "
    code += "f = Path(sys.argv[1]); Runner([stage(f, 'slow', 2.0)], folder=f).run()"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(Path(__file__).parent)])
    wait_until((folder / "slow.notes").exists)
    process.kill()
    process.wait()
    said: list[str] = []
    outcome = Runner(plan, folder=folder, say=said.append).run()
    assert outcome.finished == ("slow",)
    assert any(line.startswith("waiting   slow") for line in said)
    assert [what for what, *_ in notes(folder, "slow")] == ["begin", "end"]


def test_an_interrupt_ends_what_runs(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    process = start(folder)
    wait_until((folder / "tune-a.notes").exists)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert "start the study again to go on" in said
    assert [what for what, *_ in notes(folder, "tune-a")] == ["begin"]  # it was ended, not waited for
    for note in folder.glob("*.notes"):
        pid = json.loads(note.read_text().splitlines()[0])[2]
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_one_runner_a_folder(tmp_path: Path) -> None:
    refused = pytest.raises(CalibrationError, match="another `lm-eval-calib study` runs there")
    with only_one(tmp_path), refused, only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


def test_time_left_and_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(plan_of(tmp_path), folder=tmp_path, slots=[None, None], say=lambda _: None)
    assert runner.time_left() is None
    runner.seconds["data"] = [10.0, 20.0]
    assert runner.time_left() == pytest.approx(9 * 15 / 2)
    assert [duration(s) for s in (45, 720, 12_000)] == ["45 s", "12 min", "3 h 20 min"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,4")
    assert gpus() == ["1", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus() == []
