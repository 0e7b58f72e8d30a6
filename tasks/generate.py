"""Write the task files of every benchmark from its `benchmark.yml`: python -m lm_eval_calib.tasks.generate

A benchmark is a folder with a `benchmark.yml` (docs/add-a-benchmark.md lists its keys). From it come one small
YAML a language, and groups: all languages, and one a resource tier, nested in the first. `--check` writes nothing
and fails if a file on disk is not what would be written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lm_eval_calib.errors import CalibrationError
from lm_eval_calib.languages import TIERS
from lm_eval_calib.sources import NAME, Benchmark, Function, read_benchmark

ROOT = Path(__file__).resolve().parent
HEADER = "# Written by lm_eval_calib.tasks.generate from benchmark.yml; edit that.\n"
TASK_CLASS = "lm_eval_calib.benchmarks.BenchmarkTask"
GROUP_METRICS = "lm_eval_calib.benchmarks.GROUP_METRICS"


class _Dumper(yaml.SafeDumper):
    pass


# Prompts on one line: YAML's quoted style folds newlines into blank lines.
_Dumper.add_representer(
    str,
    lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if "\n" in value else None),
)
_Dumper.add_representer(Function, lambda dumper, value: dumper.represent_scalar("!function", str(value)))


def read_benchmarks(root: Path = ROOT) -> list[Benchmark]:
    """Read all benchmarks below a folder, by name."""
    return [read_benchmark(path.parent) for path in sorted(root.glob(f"*/{NAME}"))]


def _dump(config: dict[str, Any]) -> str:
    text = HEADER
    for key, value in config.items():
        # A key a line, and lists on one line
        flow = None if isinstance(value, dict | list) else False
        text += yaml.dump({key: value}, Dumper=_Dumper, default_flow_style=flow, allow_unicode=True, width=110)
    return text


def _group(name: str, members: list[str]) -> str:
    return _dump(
        {
            "group": name,
            "task": members,
            "aggregate_metric_list": Function(GROUP_METRICS),
            "metadata": {"version": 1},
        }
    )


def files(benchmark: Benchmark) -> Iterator[tuple[str, str]]:
    """Name and content of each YAML of a benchmark."""
    members: dict[str | None, list[str]] = {}
    for suffix in benchmark.languages:
        name = benchmark.task_name(suffix)
        config = {"class": Function(TASK_CLASS), "task": name, "output_type": "multiple_choice"}
        # Our class reads the rest from benchmark.yml: lm-eval parses every task file at every start, so they are short.
        config.update(benchmark.config(suffix) if "class" in benchmark.task else {"language": suffix})
        yield f"{name}.yaml", _dump(config)
        members.setdefault(benchmark.language(suffix).tier, []).append(name)
    group = f"calib_{benchmark.name}"
    if not benchmark.single:
        tiers = [tier for tier in TIERS if tier in members]
        for tier in tiers:
            yield f"_{group}_{tier}.yaml", _group(f"{group}_{tier}", members[tier])
        # Leaf tasks are averaged, so nesting does not weight the tiers.
        yield (
            f"_{group}.yaml",
            _group(group, [*(f"{group}_{tier}" for tier in tiers), *members.get(None, [])]),
        )
    for name, benchmarks in benchmark.groups.items():
        yield f"_{name}.yaml", _group(name, [f"calib_{item}" for item in benchmarks])


def differences(root: Path = ROOT, *, write: bool) -> list[str]:
    """Names of files that are not what `benchmark.yml` says (missing, changed, left over); `write` mends them."""
    wrong = []
    for benchmark in read_benchmarks(root):
        folder = root / benchmark.name
        expected = dict(files(benchmark))
        for path in sorted({*folder.glob("*.yaml"), *(folder / name for name in expected)}):
            content = expected.get(path.name)
            if (path.read_text(encoding="utf-8") if path.exists() else None) == content:
                continue
            wrong.append(f"{benchmark.name}/{path.name}")
            if write and content is None:
                path.unlink()
            elif write and content is not None:
                path.write_text(content, encoding="utf-8")
    return wrong


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file would change")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the benchmark folders")
    arguments = parser.parse_args(argv)
    try:
        changed = differences(arguments.root, write=not arguments.check)
    except CalibrationError as error:
        print(f"generate: {error}", file=sys.stderr)
        return 2
    for name in changed:
        print("differs:" if arguments.check else "written:", name)
    return 1 if arguments.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
