"""Which benchmark, language and subject a task is, told from its name and its configuration.

lm-eval writes none of these into its logs. What cannot be told is None: an unknown language is not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from babel import Locale

from lm_eval_calib.errors import CalibrationError
from lm_eval_calib.languages import language

# A code with script or region (swh_Latn, acm_arab, pt_BR, AR-XY), or a bare one of two or three letters.
_CODE = r"[A-Za-z]{2,3}(?:[_-](?:[A-Z][a-z]{3}|[a-z]{4}|[A-Z]{2}))?"

# Families of released lm-eval whose language stands inside the name. The first pattern that matches, and
# whose language is one, decides.
_FAMILIES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<benchmark>global_mmlu_full|global_mmlu)_(?P<language>[a-z]{2,3})(?:_(?P<subject>.+))?",
        r"(?P<benchmark>mmlu_prox_lite|mmlu_prox)_(?P<language>[a-z]{2,3})(?:_(?P<subject>.+))?",
        r"(?P<benchmark>include_base_44)_(?P<language>north macedonian|[a-z]+)(?P<tail>_few_shot_[a-z]+)?"
        r"_(?P<subject>.+)",
        rf"(?P<benchmark>openai_mmlu_default)_(?P<language>{_CODE})(?:_(?P<subject>.+))?",
        rf"(?P<benchmark>afri[a-z]+(?:_(?:direct|translate|manual|native))*)_(?P<language>{_CODE})"
        r"(?P<tail>_prompt_\d+)?",
        r"(?P<benchmark>m_mmlu|arc|hellaswag|truthfulqa|xcopa|xstorycloze|xwinograd)_(?P<language>[a-z]{2})(?P<tail>_mc[12])?",
        r"(?P<benchmark>xnli|paws)_(?P<language>[a-z]{2})(?P<tail>_native|_mt)?",
        r"(?P<benchmark>multiblimp|xlsum|nollysenti|sib|masakhanews|indicxnli)_(?P<language>[a-z]{2,3})(?P<tail>_prompt_\d+)?",
    )
)
# Any other name: a code with a script, or two letters at the end that are hardly a word or an abbreviation.
_GENERIC = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<benchmark>.+?)_(?P<language>[a-z]{3}_[A-Za-z][a-z]{3})(?P<tail>_.+)?",
        r"(?P<benchmark>.+)_(?P<language>(?!an|as|ba|ch|co|in|la|li|ln|lo|mi|mt|my|nb|no|om|or|qu|sc|so|ss|st|te|to)[a-z]{2})(?P<tail>_prompt_\d+)?",
    )
)


@dataclass(frozen=True)
class TaskName:
    """What a task's name says; `benchmark` is the name itself where nothing else can be told."""

    benchmark: str
    language: str | None
    subject: str | None


@cache
def tier_of(code: str | None) -> str | None:
    """The resource tier of a language code, None for an unknown one."""
    try:
        return language(code).tier if code else None
    except CalibrationError:
        return None


@cache
def is_language(code: str) -> bool:
    """Whether languages.language knows the code or name."""
    try:
        language(code)
    except CalibrationError:
        return False
    return True


def _is_surely_language(code: str) -> bool:
    """`is_language` for words that may be anything: "wic" is Wichita, "arc_easy" has no script Easy."""
    head, _, tail = code.replace("-", "_").partition("_")
    if len(tail) == 4 and tail.title() not in Locale("en").scripts:
        return False
    if not head.islower() and not tail:
        return False
    return is_language(code) and (bool(tail) or language(code).family is not None)


def parse_task_name(task: str, config: Mapping[str, Any] | None = None) -> TaskName:
    """Read benchmark, language and subject off a task's name and its entry in the results file's `configs`.

    An explicit `metadata.language` wins (with `metadata.benchmark`, which our tasks have too), then a `dataset_name`
    that is a code which the task's name contains, then the name alone.
    """
    config = config or {}
    metadata = config.get("metadata")
    named = metadata.get("language") if isinstance(metadata, Mapping) else None
    told = (task.startswith("calib_") and _ours().get(task)) or _from_name(task)
    benchmark = metadata.get("benchmark") if isinstance(metadata, Mapping) else None
    if isinstance(benchmark, str) and isinstance(named, str) and is_language(named):
        return TaskName(benchmark, named, told.subject)
    if isinstance(named, str) and is_language(named):
        return TaskName(told.benchmark if told.language else _without(task, named), named, told.subject)
    code = config.get("dataset_name")
    if isinstance(code, str) and re.fullmatch(_CODE, code) and _is_surely_language(code):
        cut = _without(task, code)
        if cut != task and (told.language or "").lower() != code.lower():
            return TaskName(cut, code, None)
    return told


@cache
def _ours() -> dict[str, TaskName]:
    """The tasks of this package, which know their language."""
    from lm_eval_calib.tasks.generate import read_benchmarks

    return {
        benchmark.task_name(suffix): TaskName(f"calib_{benchmark.name}", code, None)
        for benchmark in read_benchmarks()
        for suffix, code in benchmark.languages.items()
    }


@cache
def _from_name(task: str) -> TaskName:
    if task.startswith("calib_"):  # a stock task that `lm-eval-calib wrap` wrapped, or a user's own
        rest = task.removeprefix("calib_")
        told = _from_name(rest)
        match = re.fullmatch(rf"(.+?)_({_CODE})", rest)
        # Names of our pattern end in a language, so that any known code counts.
        if told.language is None and match and _is_surely_language(match[2]):
            told = TaskName(match[1], match[2], None)
        return TaskName(f"calib_{told.benchmark}", told.language, told.subject)
    for patterns, accept in ((_FAMILIES, is_language), (_GENERIC, _is_surely_language)):
        for pattern in patterns:
            match = pattern.fullmatch(task)
            if match and accept(match["language"]):
                groups = match.groupdict()
                benchmark = groups["benchmark"] + (groups.get("tail") or "")
                return TaskName(benchmark, groups["language"], groups.get("subject"))
    return TaskName(task, None, None)


def _without(task: str, code: str) -> str:
    """The task's name less the code, if the code is one of its `_`-separated parts."""
    return re.sub(rf"(?i)_{re.escape(code)}(?=_|$)", "", task, count=1)
