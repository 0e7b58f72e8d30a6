"""Write the task files of every benchmark from its `benchmark.yml`: python -m lm_eval_calib.tasks.generate

A benchmark is a folder with a `benchmark.yml` (docs/add-a-benchmark.md lists its keys). From it come one small
YAML a language, and groups: all languages, and one a resource tier, nested in the first. `--check` writes nothing
and fails if a file on disk is not what would be written.
"""

from __future__ import annotations

import argparse
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lm_eval_calib.errors import CalibrationError, CalibrationValueError
from lm_eval_calib.languages import TIERS, Language, language

ROOT = Path(__file__).resolve().parent
HEADER = "# Written by lm_eval_calib.tasks.generate from benchmark.yml; edit that.\n"
TASK_CLASS = "lm_eval_calib.benchmarks.BenchmarkTask"
GROUP_METRICS = "lm_eval_calib.benchmarks.GROUP_METRICS"
KEYS = {"title", "about", "source", "task", "languages", "words", "overrides", "single", "groups"}


class Function(str):
    """The value of YAML's `!function`, kept as it is spelled."""


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


_Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))  # type: ignore[arg-type]
# Prompts on one line: YAML's quoted style folds newlines into blank lines.
_Dumper.add_representer(
    str,
    lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if "\n" in value else None),
)
_Dumper.add_representer(Function, lambda dumper, value: dumper.represent_scalar("!function", str(value)))


@dataclass(frozen=True)
class Benchmark:
    """What a `benchmark.yml` says.

    Attributes:
        name: Folder name; tasks are `calib_<name>_<suffix>`.
        title: Name for people.
        about: One line: what is asked, and who made it.
        source: Paper or data card.
        task: Keys of each task's YAML, with `$language` (the suffix), `$code` and the words to fill in.
        languages: Task suffix -> code of the language.
        words: Task suffix -> what else to fill in.
        overrides: Task suffix -> keys that replace those of `task`.
        single: One task without a suffix.
        groups: Further groups, name -> benchmarks.
    """

    name: str
    title: str
    about: str
    source: str
    task: dict[str, Any]
    languages: dict[str, str]
    words: dict[str, dict[str, Any]]
    overrides: dict[str, dict[str, Any]]
    single: bool
    groups: dict[str, list[str]]

    def task_name(self, suffix: str) -> str:
        """Name of the task of a language."""
        return f"calib_{self.name}" if self.single else f"calib_{self.name}_{suffix}"

    def language(self, suffix: str) -> Language:
        """Language of a task."""
        return language(self.languages[suffix])


def read_benchmark(folder: Path) -> Benchmark:
    """Read `benchmark.yml` of a folder.

    Raises:
        CalibrationValueError: A key is unknown or missing, or a language code is unknown.
    """
    path = folder / "benchmark.yml"
    config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    if unknown := set(config) - KEYS:
        raise CalibrationValueError(f"{path}: unknown key {sorted(unknown)}; known are {sorted(KEYS)}")
    if missing := {"title", "about", "source", "task", "languages"} - set(config):
        raise CalibrationValueError(f"{path}: missing key {sorted(missing)}")
    languages = config["languages"]
    if isinstance(languages, list):
        languages = {str(code): str(code) for code in languages}
    words = config.get("words", {})
    if words and set(words) != set(languages):
        raise CalibrationValueError(f"{path}: words and languages differ: {sorted(set(words) ^ set(languages))}")
    if unknown := set(config.get("overrides", {})) - set(languages):
        raise CalibrationValueError(f"{path}: overrides of {sorted(unknown)}, which 'languages' lacks")
    for code in languages.values():
        try:
            language(code)
        except CalibrationValueError as error:
            raise CalibrationValueError(f"{path}: {error}") from None
    return Benchmark(
        name=folder.name,
        title=config["title"],
        about=config["about"],
        source=config["source"],
        task=config["task"],
        languages=languages,
        words=words,
        overrides=config.get("overrides", {}),
        single=config.get("single", False),
        groups=config.get("groups", {}),
    )


def read_benchmarks(root: Path = ROOT) -> list[Benchmark]:
    """Read all benchmarks below a folder, by name."""
    return [read_benchmark(path.parent) for path in sorted(root.glob("*/benchmark.yml"))]


def _filled(value: Any, words: dict[str, Any]) -> Any:
    """Fill `$name` into every string; a string that is nothing but `$name` becomes the word itself."""
    if isinstance(value, dict):
        return {key: _filled(item, words) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, words) for item in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    if value[0] == "$" and value[1:] in words:
        return words[value[1:]]
    return type(value)(string.Template(value).substitute(words))


def _dump(config: dict[str, Any]) -> str:
    # Lists on one line too, but for the members of a group.
    text = yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    return HEADER + text


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
    for suffix, code in benchmark.languages.items():
        name = benchmark.task_name(suffix)
        words = {"language": suffix, "code": code, **benchmark.words.get(suffix, {})}
        # An explicit class, task or output type of the benchmark replaces ours.
        config = {"class": Function(TASK_CLASS), "task": name, "output_type": "multiple_choice"}
        config.update(_filled({**benchmark.task, **benchmark.overrides.get(suffix, {})}, words))
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
