"""Runs the stages of a study: side by side where they may, each logged, none twice, what fails alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lm_eval_calib.errors import CalibrationError
from lm_eval_calib.train.stages import Stage, settled

POLL = 0.2  # seconds
STATUS_EVERY = 60.0  # seconds between status lines where there is no terminal
GRACE = 20.0  # seconds that a stage has to end when the study is stopped
_PERCENT = re.compile(rb"(\d{1,3})%\|")


@dataclass
class _Running:
    stage: Stage
    slot: str | None
    process: subprocess.Popen[bytes]
    lock: IO[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Outcome:
    """What became of the stages: their names by fate."""

    finished: tuple[str, ...]
    failed: tuple[str, ...]
    skipped: tuple[str, ...]  # since a stage that they need failed


def gpus() -> list[str]:
    """The GPUs that may be used: those of CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [part for part in visible.split(",") if part.strip() and part.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a study's folder, so that a second runner does not start the same stages."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CalibrationError(
                f"{folder}: another `lm-eval-calib study` runs there; wait for it, stop it, or give another output_dir"
            ) from None
        yield


class Runner:
    """Runs stages on slots.

    Args:
        stages: In the order in which they are started as slots come free.
        folder: The study's folder; logs go to its `logs`.
        slots: One entry for each stage that may run at a time: the GPU that it sees, or None to see all.
        launcher: Words before the commands that use a model.
        say: Takes lines of progress.
        after: Called when a stage has finished.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        folder: Path,
        slots: Sequence[str | None] = (None,),
        launcher: Sequence[str] = (),
        say: Callable[[str], None] = print,
        after: Callable[[], None] | None = None,
    ) -> None:
        self.stages = list(stages)
        self.folder = folder
        self.slots = list(slots)
        self.launcher = tuple(launcher)
        self.say = say
        self.after = after
        self.done = settled(self.stages)
        self.failed: list[str] = []
        self.skipped: list[str] = []
        self.seconds: dict[str, list[float]] = {}  # of the stages that finished, by kind
        self._running: list[_Running] = []
        self._waiting = [stage for stage in self.stages if stage.name not in self.done]
        self._count = len(self.stages)
        self._status_at = time.monotonic()
        self._shown = 0

    def run(self) -> Outcome:
        """Run until nothing can be started any more; on an interrupt end what runs, and raise it."""
        already = len(self.done)
        if already:
            self.say(f"{already} of {self._count} stages are done already")
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            while self._waiting or self._running:
                self._start()
                time.sleep(POLL)
                self._collect()
                self._status()
        except BaseException:
            self._stop()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
            self._clear()
        return Outcome(tuple(sorted(self.done)), tuple(self.failed), tuple(self.skipped))

    def _start(self) -> None:
        for stage in list(self._waiting):
            if set(stage.needs) & {*self.failed, *self.skipped}:
                self._waiting.remove(stage)
                self.skipped.append(stage.name)
                self._line(f"skipped   {stage.name}: a stage that it needs failed")
        free = list(self.slots)
        for running in self._running:
            free.remove(running.slot)
        for slot in free:
            ready = (stage for stage in self._waiting if set(stage.needs) <= self.done)
            if (chosen := next(ready, None)) is None:
                return
            self._waiting.remove(chosen)
            self._launch(chosen, slot)

    def _launch(self, stage: Stage, slot: str | None) -> None:
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        stage.output.parent.mkdir(parents=True, exist_ok=True)
        log = logs / f"{stage.name.replace(' ', '-')}.log"
        # The child holds the lock too: if this process is killed and the child is not, the next study sees.
        lock = (logs / f".{stage.output.name}.lock").open("wb")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._line(f"waiting   {stage.name}: an earlier study, since killed, left it running")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if stage.finished():
            self.done.add(stage.name)
            lock.close()
            return
        if stage.kind == "evaluate" and stage.output.exists():
            shutil.rmtree(stage.output)  # lm-eval writes at the end only, so what is there is half of that
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if slot is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot
        command = stage.command(self.launcher)
        with log.open("ab") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=environment,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
        self._running.append(_Running(stage, slot, process, lock, log))
        where = f" on GPU {slot}" if slot is not None else ""
        self._line(f"started   {stage.name}{where}")

    def _collect(self) -> None:
        for running in list(self._running):
            status = running.process.poll()
            if status is None:
                continue
            self._running.remove(running)
            running.lock.close()
            stage, seconds = running.stage, time.monotonic() - running.started
            if status == 0 and stage.finished():
                self.done.add(stage.name)
                self.seconds.setdefault(stage.kind, []).append(seconds)
                self._line(f"finished  {stage.name} in {duration(seconds)} ({len(self.done)} of {self._count} done)")
                if self.after is not None:
                    self.after()
                continue
            self.failed.append(stage.name)
            why = f"exit status {status}" if status else "it left no whole results"
            self._line(f"FAILED    {stage.name} after {duration(seconds)}: {why}; {running.log} ends with")
            for line in _tail(running.log, 5):
                self._line(f"          {line}")

    def time_left(self) -> float | None:
        """Seconds until all is done, from the mean time of finished stages of each kind; None if unknown."""
        total = 0.0
        kinds = [(stage.kind, None) for stage in self._waiting]
        for kind, running in [*kinds, *((running.stage.kind, running) for running in self._running)]:
            spent = time.monotonic() - running.started if running is not None else 0.0
            known = self.seconds.get(kind)
            share = _share_done(running.log) if running is not None else None
            if known:
                total += max(sum(known) / len(known) - spent, 0.0)
            elif share:
                total += spent * (1 - share) / share
            else:
                return None
        return total / len(self.slots)

    def _status(self) -> None:
        terminal = sys.stderr.isatty()
        now = time.monotonic()
        if now - self._status_at < (1.0 if terminal else STATUS_EVERY) or not self._running:
            return
        self._status_at = now
        left = self.time_left()
        busy = ", ".join(
            running.stage.name + (f" {share:.0%}" if (share := _share_done(running.log)) is not None else "")
            for running in self._running
        )
        remaining = "time left not known yet" if left is None else f"{duration(left)} left"
        text = f"{len(self.done)}/{self._count} done, {remaining}; running: {busy}"
        if terminal:
            self._clear()
            width = shutil.get_terminal_size().columns - 1
            text = text if len(text) <= width else text[: width - 1] + "…"
            sys.stderr.write(text)
            sys.stderr.flush()
            self._shown = len(text)
        else:
            self.say(text)

    def _line(self, text: str) -> None:
        self._clear()
        self.say(text)

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r" + " " * self._shown + "\r")
            sys.stderr.flush()
            self._shown = 0

    def _stop(self) -> None:
        for running in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.process.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for running in self._running:
            try:
                running.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(running.process.pid, signal.SIGKILL)
        if self._running:
            self._line(f"stopped {len(self._running)} running stages; start the study again to go on")


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _tail(log: Path, count: int) -> list[str]:
    text = log.read_bytes()[-20_000:].decode(errors="replace")
    lines = [line.rpartition("\r")[2].rstrip() for line in text.splitlines()]
    return [line for line in lines if line][-count:]


def _share_done(log: Path) -> float | None:
    """The last percentage that a progress bar wrote into the log."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 4096))
            found = _PERCENT.findall(stream.read())
    except OSError:
        return None
    return min(int(found[-1]), 100) / 100 if found else None


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
