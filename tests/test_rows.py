"""Rows that are no questions."""

from __future__ import annotations

from typing import Any

import pytest

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.rows import Rows, check, value_at

SENTENCES = {"text": ["p", "h"], "answer": "label", "answers": [0, 1, 2]}
LISTED = {"choices": "o", "answer": "key", "answers": [0, 1]}
LETTERED = {"text": ["q"], "choices": ["a", "b", "c"], "answer": "key", "answers": ["A", "B", "C"]}
GOOD = {"q": "Why?", "a": "x", "b": "y", "c": "z", "key": "B"}
NESTED = {"choices": "o.text", "answer": "key", "answers": "o.label"}


@pytest.mark.parametrize(
    ("spec", "row", "problem"),
    [
        (LETTERED, GOOD, None),
        (LETTERED, GOOD | {"key": " C "}, None),
        (LETTERED, GOOD | {"q": "\n"}, "q is empty"),
        (LETTERED, GOOD | {"b": None}, "an option is empty"),
        (LETTERED, GOOD | {"c": "N/A"}, "an option is empty"),
        (LETTERED, GOOD | {"key": "@"}, "the answer '@' is none of the options"),
        (LETTERED, GOOD | {"key": None}, "the answer None is none of the options"),
        (LETTERED | {"unused": True}, GOOD | {"c": None}, None),
        (LETTERED | {"unused": True}, GOOD | {"c": "N/A", "key": "C"}, "the answer 'C' is none of the options"),
        (LETTERED | {"unused": True}, GOOD | {"b": ""}, "an option is empty"),
        (LETTERED | {"unused": True}, GOOD | {"b": "", "c": None}, "fewer than two options"),
        (LETTERED | {"matches": {"q": "Wh.*"}}, GOOD | {"q": "How?"}, "q does not match 'Wh.*'"),
        # A column with the list of options, as a list, as a list's text, in two nested layouts
        (LISTED, {"o": ["x", "y"], "key": 1}, None),
        (LISTED, {"o": ["x", "y"], "key": 2}, "the answer 2 is none of the options"),
        (LISTED | {"answers": ["A", "B"]}, {"o": "['x', 'y']", "key": "A"}, None),
        (LISTED | {"answers": ["A", "B"]}, {"o": "['x', 'y'", "key": "A"}, "o is no list"),
        (NESTED, {"o": {"text": ["x", "y"], "label": ["1", "2"]}, "key": "2"}, None),
        (NESTED, {"o": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}], "key": "2"}, None),
        (NESTED, {"o": {"text": ["x", "y"], "label": ["1", "2"]}, "key": "3"}, "the answer '3' is none of the options"),
        (NESTED, {"o": None, "key": "3"}, "o.text is no list"),
        # Whole-sentence templates have an answer and no options
        (SENTENCES, {"p": "a", "h": "b", "label": 2}, None),
        (SENTENCES, {"p": "a", "h": "b", "label": -1}, "the answer -1 is none of the options"),
    ],
)  # fmt: skip
def test_problem(spec: dict[str, Any], row: dict[str, Any], problem: str | None) -> None:
    assert Rows.from_config(spec).problem(row) == problem


def test_check_counts_what_it_leaves_out() -> None:
    spec = Rows.from_config(LETTERED | {"only": {"info.lang": "x"}, "subject": "s", "subject_until": "_test"})
    rows = [
        GOOD | {"info": {"lang": "x"}, "s": "law"},
        GOOD | {"info": {"lang": "y"}, "s": "law", "q": ""},
        GOOD | {"info": {"lang": "x"}, "s": "law_test.csv", "key": "E"},
        GOOD | {"info": {"lang": "x"}, "s": "art"},
        GOOD | {"info": {"lang": "x"}, "s": "law", "key": "E"},
        GOOD | {"info": {"lang": "x"}, "s": "law", "q": " "},
    ]
    found = check(rows, spec, {})
    assert (found.indices, found.total) == ([0, 3], 5)
    assert found.malformed == {"the answer 'E' is none of the options": 2, "q is empty": 1}
    found = check(rows, spec, spec.selections({"subjects": "law"}, "t"))
    assert (found.indices, found.total, found.seen) == ([0], 4, {"s": {"law", "art"}})


def test_value_at() -> None:
    assert value_at({"a": {"b": [{"c": 1}, {"c": 2}, None]}}, "a.b.c") == [1, 2, None]
    assert value_at({"a": 3}, "a.b") is None
    assert value_at({}, "a.b") is None


def test_columns() -> None:
    spec = Rows.from_config(LETTERED | {"select": {"kind": "k"}, "subject": "info.subject", "matches": {"q": "x"}})
    assert spec.columns() == ["q", "a", "b", "c", "key", "info"]
    assert Rows.from_config(NESTED).columns() == ["o", "key"]


def test_unknown_keys_are_named() -> None:
    with pytest.raises(CalibrationValueError, match=r"task t: unknown keys \['colour'\] in 'rows'"):
        Rows.from_config({"colour": 1}, "t")
