"""Which rows of a data set are questions: the `rows:` key of a benchmark's tasks.

A row without its text, with an option missing or with an answer that is none of the options is no question; it is
left out and counted, never scored.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lm_eval_calib.errors import CalibrationValueError

# How data sets spell an option that is not there.
_UNUSED = frozenset({"", "N/A"})


@dataclass(frozen=True)
class Rows:
    """Where a benchmark's columns are; a dot leads into a nested one ("question.stem").

    Attributes:
        text: Columns that must hold text.
        choices: Columns of the options in order, or one column that holds their list.
        unused: Options at the end may be empty (questions with fewer options than columns).
        answer: Column of the answer.
        answers: The answer's value for each option in order, or the column that holds these.
        matches: Column -> regular expression that its whole value must match.
        only: Column -> value: other rows do not belong to the task, and are not counted as malformed.
        subject: Column of the subject; few-shot examples come from the question's own subject.
        subject_until: What follows this in the subject's value does not belong to it.
        select: Name of an option of `--metadata` -> column that it selects by. `subjects` is there of itself.
    """

    text: tuple[str, ...] = ()
    choices: tuple[str, ...] | str = ()
    unused: bool = False
    answer: str | None = None
    answers: tuple[Any, ...] | str = ()
    matches: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    subject: str | None = None
    subject_until: str | None = None
    select: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], task: object = None) -> Rows:
        """Read the `rows:` key of a task's YAML.

        Raises:
            CalibrationValueError: It has an unknown key.
        """
        known = {item.name for item in fields(cls)}
        if unknown := set(config) - known:
            raise CalibrationValueError(
                f"task {task}: unknown keys {sorted(unknown)} in 'rows'; expected {sorted(known)}"
            )
        values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in config.items()}
        return cls(**values)

    def columns(self) -> list[str]:
        """Names of the top-level columns that are read whatever is selected."""
        paths = [*self.text, *self.matches, *self.only]
        for paths_of in (self.choices, self.answers if isinstance(self.answers, str) else ()):
            paths += [paths_of] if isinstance(paths_of, str) else paths_of
        paths += [path for path in (self.answer, self.subject) if path]
        return list(dict.fromkeys(path.partition(".")[0] for path in paths))

    def subject_of(self, row: Mapping[str, Any]) -> str:
        """Subject of a row; the empty string where the benchmark has none."""
        if self.subject is None:
            return ""
        subject = str(value_at(row, self.subject))
        return subject.partition(self.subject_until)[0] if self.subject_until else subject

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Say why a row is no question, or None if it is one."""
        for path in self.text:
            if _blank(value_at(row, path)):
                return f"{path} is empty"
        for path, pattern in self.matches.items():
            if not re.fullmatch(pattern, str(value_at(row, path)), re.DOTALL):
                return f"{path} does not match {pattern!r}"
        if isinstance(self.choices, str):
            options = value_at(row, self.choices)
            options = _literal(options) if isinstance(options, str) else options
            if not isinstance(options, Sequence):
                return f"{self.choices} is no list"
        else:
            options = [value_at(row, path) for path in self.choices]
        used = len(options)
        while self.unused and used and _blank(options[used - 1]):
            used -= 1
        if any(_blank(option) for option in options[:used]):
            return "an option is empty"
        if self.choices and used < 2:
            return "fewer than two options"
        if self.answer is None:
            return None
        answer = _plain(value_at(row, self.answer))
        answers = value_at(row, self.answers) if isinstance(self.answers, str) else self.answers
        allowed = [_plain(item) for item in answers or ()]
        # Without columns of options (whole-sentence templates) every listed answer is one.
        if answer not in (allowed[:used] if self.choices else allowed):
            return f"the answer {answer!r} is none of the options"
        return None

    def selectable(self) -> dict[str, str]:
        """Name of an option of `--metadata` -> column that it selects by."""
        return {**({"subjects": self.subject} if self.subject else {}), **self.select}

    def selections(self, metadata: Mapping[str, Any], task: object) -> dict[str, set[str]]:
        """What `--metadata` asks for of this benchmark: column -> values.

        Raises:
            CalibrationValueError: A value is neither text nor a list of text.
        """
        wanted = {}
        for name, column in self.selectable().items():
            asked = metadata.get(name)
            if asked is None:
                continue
            values = [asked] if isinstance(asked, str) else asked
            if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
                raise CalibrationValueError(
                    f"task {task}: metadata {name!r} must be a value or a list of values of the column "
                    f"{column!r}, got {asked!r}"
                )
            wanted[column] = set(values)
        return wanted


@dataclass(frozen=True)
class Checked:
    """Outcome of `check`.

    Attributes:
        indices: Rows that are questions, in order.
        total: Rows that belong to the task and were asked for, malformed ones included.
        malformed: Reason -> number of rows left out for it.
        seen: Column -> its values, for the columns that were selected by.
    """

    indices: list[int]
    total: int
    malformed: dict[str, int]
    seen: dict[str, set[str]]


def check(rows: Iterable[Mapping[str, Any]], spec: Rows, wanted: Mapping[str, set[str]]) -> Checked:
    """Find the questions among the rows of a split.

    Args:
        rows: Rows with at least the columns of `spec`.
        spec: Where things are.
        wanted: Column -> values to keep, from `Rows.selections`.
    """
    indices, total = [], 0
    malformed: Counter[str] = Counter()
    seen: dict[str, set[str]] = {column: set() for column in wanted}
    for index, row in enumerate(rows):
        if any(value_at(row, path) != value for path, value in spec.only.items()):
            continue
        values = {
            column: spec.subject_of(row) if column == spec.subject else str(value_at(row, column)) for column in wanted
        }
        for column, value in values.items():
            seen[column].add(value)
        if any(value not in wanted[column] for column, value in values.items()):
            continue
        total += 1
        if (problem := spec.problem(row)) is None:
            indices.append(index)
        else:
            malformed[problem] += 1
    return Checked(indices, total, dict(malformed), seen)


def value_at(row: Any, path: str) -> Any:
    """Follow a dotted path; through a list it gives the list of the values, as data sets store either way."""
    for step in path.split("."):
        if isinstance(row, list):
            row = [item.get(step) if isinstance(item, Mapping) else None for item in row]
        else:
            row = row.get(step) if isinstance(row, Mapping) else None
    return row


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip() in _UNUSED)


def _plain(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return None
