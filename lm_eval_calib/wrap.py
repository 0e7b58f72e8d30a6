"""`lm-eval-calib wrap TASK...`: YAML files that give stock multiple-choice tasks and groups the calibration metrics."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lm_eval_calib.errors import CalibrationValueError

_HEADER = "# Written by `lm-eval-calib wrap`.\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    parser.add_argument("task", nargs="+", help="a task, group or tag of the installed lm-eval")
    parser.add_argument("-o", "--output", type=Path, default=Path("calib_tasks"), help="folder to write into")
    parser.add_argument("--prefix", default="calib_", help="what the new names begin with (default: calib_)")


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from lm_eval_calib.harness import task_index

    print("Reading lm-eval's index of tasks (some seconds) ...", file=sys.stderr)
    wrapper = Wrapper(task_index(), arguments.prefix)
    for name in arguments.task:
        wrapper.add(name)
    wrapper.write(arguments.output)
    tasks = sum("class" in config for config in wrapper.files.values())
    print(f"{arguments.output}: {tasks} tasks and {len(wrapper.files) - tasks} groups written")
    for reason, count in wrapper.left_out.items():
        print(f"left out: {count} with {reason}")
    names = ",".join(dict.fromkeys(arguments.prefix + name for name in arguments.task))
    print(f"lm_eval run --tasks {names} --include_path {arguments.output} ...")
    return 0


class Wrapper:
    """Collects the wrappers of tasks, and of groups with all that is in them.

    Args:
        index: lm-eval's index: name -> entry, as `TaskManager.task_index` has it.
        prefix: What the new names begin with.

    Attributes:
        files: New name -> configuration to write.
        left_out: Reason -> number of members of groups and tags that cannot be wrapped.
    """

    def __init__(self, index: dict[str, Any], prefix: str) -> None:
        if not prefix.isidentifier():
            raise CalibrationValueError(f"--prefix: expected letters, digits and _, got {prefix!r}")
        self.index = index
        self.prefix = prefix
        self.files: dict[str, dict[str, Any]] = {}
        self.left_out: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """Add a task, group or tag that the user named.

        Raises:
            CalibrationValueError: There is none of this name, its new name is taken, or nothing of it can be wrapped.
        """
        if name not in self.index:
            raise CalibrationValueError(f"no task, group or tag {name!r} in lm-eval; `lm_eval ls tasks` lists them")
        entry = self.index[name]
        if entry.kind.name == "TAG":
            if not [self._task(task, {}, tag=name) for task in sorted(entry.tags) if self._wrappable(task)]:
                raise CalibrationValueError(f"tag {name!r}: no task in it can be wrapped ({self._reasons()})")
        elif entry.kind.name == "GROUP":
            if self._group(name, entry.cfg) is None:
                raise CalibrationValueError(f"group {name!r}: no task in it can be wrapped ({self._reasons()})")
        elif (reason := _obstacle(entry.cfg)) is not None:
            raise CalibrationValueError(
                f"task {name!r} cannot be wrapped: {reason}; expected a task with output_type multiple_choice"
            )
        else:
            self._task(name, {})
        if taken := sorted(new for new in self.files if new in self.index):
            raise CalibrationValueError(
                f"{len(taken)} of the new names exist already ({', '.join(taken[:3])} ...): lm-eval-calib brings these "
                "tasks itself; use them, or give another --prefix"
            )

    def write(self, folder: Path) -> None:
        """Write one YAML a task and group."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, config in self.files.items():
            path = folder / f"{name}.yaml"
            partial = path.with_suffix(".partial")
            partial.write_text(_HEADER + _dump(config), encoding="utf-8")
            partial.replace(path)

    def _wrappable(self, task: str) -> bool:
        entry = self.index.get(task)
        reason = "no entry in the index" if entry is None else _obstacle(entry.cfg)
        if reason is not None:
            self.left_out[reason] += 1
        return reason is None

    def _task(self, task: str, overrides: dict[str, Any], tag: str | None = None) -> str:
        name = self.prefix + task
        config = self.files.setdefault(
            name,
            {
                "class": _Function("lm_eval_calib.harness.CalibratedTask"),
                "task": name,
                "output_type": "multiple_choice",
                "base_task": task,
            },
        )
        config.update(overrides)
        if tag is not None:
            config.setdefault("tag", []).append(self.prefix + tag)
        return name

    def _group(self, name: str, config: dict[str, Any]) -> str | None:
        members = list(self._members(config))
        if not members:
            return None
        metrics = config.get("aggregate_metric_list") or []
        metrics = metrics if isinstance(metrics, list) else [metrics]
        # Our rows are means as the stock group's `acc` is, so that the two agree.
        by_size = any(item.get("metric") == "acc" and item.get("weight_by_size", True) for item in metrics)
        constant = "GROUP_METRICS_BY_SIZE" if by_size else "GROUP_METRICS"
        self.files[self.prefix + name] = {
            "group": self.prefix + name,
            "task": members,
            "aggregate_metric_list": _Function(f"lm_eval_calib.benchmarks.{constant}"),
        }
        return self.prefix + name

    def _members(self, config: dict[str, Any]) -> Iterator[str]:
        members = config.get("task") or []
        for member in [members] if isinstance(members, str) else members:
            overrides = dict(member) if isinstance(member, dict) else {}
            name = overrides.pop("task", None) if "group" not in overrides else overrides["group"]
            name = member if isinstance(member, str) else name
            kind = self.index[name].kind.name if name in self.index else None
            if "group" in overrides and kind is None:
                new: str | None = self._group(name, overrides)  # defined in place
                if new is not None:
                    yield new
            elif kind == "GROUP":
                new = self._group(name, self.index[name].cfg)
                if new is not None:
                    yield new
            elif kind == "TAG":
                yield from (self._task(task, {}) for task in sorted(self.index[name].tags) if self._wrappable(task))
            elif self._wrappable(name):
                # What the group changes of the task (few-shot number, prompt) goes along, its metrics do not.
                kept = {key: value for key, value in overrides.items() if key not in ("metric_list", "task_alias")}
                yield self._task(name, {key: _restored(value) for key, value in kept.items()})

    def _reasons(self) -> str:
        return "; ".join(f"{count} with {reason}" for reason, count in self.left_out.items()) or "it is empty"


class _Function(str):
    pass


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Function, lambda dumper, value: dumper.represent_scalar("!function", str(value)))


def _dump(config: dict[str, Any]) -> str:
    return str(yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110))


def _restored(value: Any) -> Any:
    # The index spells `!function utils.f` as the absolute path of utils, a dot, and f.
    is_function = isinstance(value, str) and Path(value.rpartition(".")[0] + ".py").is_file()
    return _Function(value) if is_function else value


def _obstacle(config: dict[str, Any] | None) -> str | None:
    """Why a task cannot be wrapped, or None."""
    config = config or {}
    if "class" in config:
        return "the calibration metrics already" if "lm_eval_calib." in config["class"] else "a Python class"
    output_type = config.get("output_type", "generate_until")
    if output_type != "multiple_choice":
        return f"output_type {output_type}"
    if config.get("process_results") is not None:
        return "a process_results of its own"
    return None
