"""Which choice of a logged question is right: lm-eval logs it as an index, a list, a text, or not at all."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Metrics that lm-eval logs as [gold, ...].
_METRICS_WITH_GOLD = ("brier_score", "f1", "mcc", "likelihood")


class UnusableRow(Exception):  # noqa: N818 - not an error: the row is counted
    """A row that is counted under a reason (`logrows.REASONS`)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def gold_of(
    target: Any,
    choices: Sequence[str],
    likelihoods: Sequence[float],
    *,
    acc: Any,
    multiple_input: bool,
    config: Mapping[str, Any],
    row: Callable[[], Mapping[str, Any]],
) -> list[int]:
    """The set of right choices of a logged question, ascending.

    Args:
        target: as logged: an index, its digits, a list, or text.
        choices: texts without the delimiter.
        likelihoods: of the choices.
        acc: the logged accuracy of the question, or None; it decides where the target is ambiguous.
        multiple_input: whether the choices stand in the context, so that `target` is their continuation.
        config: the task's entry in `configs`.
        row: the whole row, decoded only if it is needed.

    Raises:
        UnusableRow: the log does not tell, or what it tells is no choice.
    """
    if not multiple_input:
        if type(target) is str and len(target) == 1 and target in "0123456789" and target not in choices:
            index = int(target)
            if index < len(choices):
                return [index]
            raise UnusableRow("gold_range")
        found = _from_target(target, choices, likelihoods, acc, config, row)
        if found is not None:
            return found
    return _from_elsewhere(choices, likelihoods, acc, multiple_input, config, row())


def _from_target(
    target: Any,
    choices: Sequence[str],
    likelihoods: Sequence[float],
    acc: Any,
    config: Mapping[str, Any],
    row: Callable[[], Mapping[str, Any]],
) -> list[int] | None:
    if isinstance(target, str):
        text = choices.index(target) if target in choices else None
        value = _literal(target)
        if isinstance(value, int):
            if text is None:
                return _in_range([value], choices)
            if not 0 <= value < len(choices) or value == text:
                return [text]
            # Digits that are an index and a choice at once: a column of strings is text, a template an index.
            column = config.get("doc_to_target")
            doc = row().get("doc")
            is_text = isinstance(column, str) and isinstance(doc, Mapping) and isinstance(doc.get(column), str)
            readings = [text, value] if is_text else [value, text]
            return [next((r for r in readings if _agrees(r, likelihoods, acc)), readings[0])]
        if text is not None:
            return [text]
        if value is None:
            stripped = [choice.strip() for choice in choices]
            return [stripped.index(target.strip())] if target.strip() in stripped else None
        target = value
    if isinstance(target, int):  # bool too, as in lm-eval
        return _in_range([int(target)], choices)
    if isinstance(target, list | tuple | set) and target:
        if all(isinstance(item, int) for item in target):
            return _in_range([int(item) for item in target], choices)
        if all(isinstance(item, str) and item in choices for item in target):
            return sorted({choices.index(item) for item in target})
    return None


@cache
def _literal(text: str) -> Any:
    """The integer, boolean or list that a string spells, or None."""
    if not (text.lstrip("-").isdigit() or text in ("True", "False") or text[:1] == "["):
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return int(text) if text.isdecimal() and len(text) < 19 else None
    return value if isinstance(value, int | list) else None


def _from_elsewhere(
    choices: Sequence[str],
    likelihoods: Sequence[float],
    acc: Any,
    multiple_input: bool,
    config: Mapping[str, Any],
    row: Mapping[str, Any],
) -> list[int]:
    """From the template with the gold of multiple-input tasks, from metrics, or from acc of two choices."""
    if multiple_input:
        index = _rendered(config.get("doc_to_text"), row.get("doc"))
        if index is not None:
            return _in_range([index], choices)
    for metric in _METRICS_WITH_GOLD:
        logged = row.get(metric)
        value = logged[0] if isinstance(logged, list) and logged else None
        if isinstance(value, str):
            value = _literal(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return _in_range([value], choices)
    if len(choices) == 2 and acc in (0, 1):
        best = int(likelihoods[1] > likelihoods[0])
        return [best if acc == 1 else 1 - best]
    raise UnusableRow("gold_unknown")


def _rendered(template: Any, doc: Any) -> int | None:
    """The index that a template or column gives; source code of functions is never run."""
    if isinstance(template, int):
        return template
    if not isinstance(template, str) or not isinstance(doc, Mapping):
        return None
    value = doc.get(template)
    if value is None and "{" in template:
        try:
            value = _compiled(template).render(**doc)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError):
            return None
    if isinstance(value, str):
        value = _literal(value.strip())
    return value if isinstance(value, int) else None


class _Sandbox(ImmutableSandboxedEnvironment):
    """No access to attributes that lead out, and no products: "x" * 10**10 would eat the memory."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002
        if not all(isinstance(value, int | float) and abs(value) < 2**31 for value in (left, right)):
            raise TypeError(operator)
        return left * right if operator == "*" else float(left) ** right


@cache
def _compiled(template: str) -> Template:
    return _Sandbox().from_string(template)


def _in_range(indices: list[int], choices: Sequence[str]) -> list[int]:
    if not all(0 <= index < len(choices) for index in indices):
        raise UnusableRow("gold_range")
    return sorted(set(indices))


def _agrees(index: int, likelihoods: Sequence[float], acc: Any) -> bool:
    best = max(range(len(likelihoods)), key=likelihoods.__getitem__)
    return acc not in (0, 1) or (best == index) == (acc == 1)
