"""The embedded benchmark: multiple-choice questions about CLDR facts in some two hundred languages.

`babel` ships CLDR: which language is official in a territory, which currency it uses, which city lies in it,
and how all of them are called in each language. A question is one fact and four choices, after a few solved lines
of the same kind in the same language; nothing is downloaded. Every draw is a SHA-256 rank of the names of what is
drawn, so questions, choices and order are the same on every machine and, as far as the names exist, in every language.

Territories are split in two: solved lines and `english_instructions` know the train part only, the questions ask
about the test part only. A model tuned on the English facts can so be tested, in all languages, on others.

    python -m lm_eval_calib.cldr instructions.jsonl     # writes the English instruction set
"""

from __future__ import annotations

import datetime
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from babel import Locale, localedata
from babel.core import get_global
from babel.numbers import get_territory_currencies

from lm_eval_calib.errors import CalibrationValueError

KINDS = ("language", "currency", "city")
CHOICES = 4
SOLVED_LINES = 3
QUESTIONS_PER_KIND = 100  # at most, a language
MIN_QUESTIONS = 100  # a language with fewer is left out
MAX_SHARED_NAMES = 0.95  # a language whose names are another's, to this share, is left out
TRAIN_SHARE = 0.5
CITIES_PER_TERRITORY = 2
CURRENCY_DATE = datetime.date(2025, 1, 1)  # not today: the questions must not change overnight
UNINHABITED = frozenset({"AQ", "BV", "GS", "HM", "IO", "TF", "UM"})
DEMO_LANGUAGES = ("en", "de", "zh", "ar", "hi", "th", "id", "bn", "sw", "am", "yo", "si")


def rank(*parts: str) -> int:
    """A 64-bit number that looks random and is the same everywhere; what is drawn has the smallest."""
    return int.from_bytes(hashlib.sha256("\x1f".join(("calib_cldr", *parts)).encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Fact:
    """One fact in codes: `subject` is a territory, or for `city` a time zone, and `answer` what goes with it."""

    kind: str
    subject: str
    answer: str
    territory: str
    also_true: frozenset[str]  # never a wrong choice

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.subject}"

    @property
    def split(self) -> str:
        return split_of(self.territory)


def split_of(territory: str) -> str:
    """The part, train or test, that a territory and all facts about it belong to."""
    return "train" if rank("split", territory) < TRAIN_SHARE * 2**64 else "test"


@functools.cache
def facts() -> tuple[Fact, ...]:
    """All facts, in code order of kind and subject."""
    zones: Mapping[str, list[str]] = get_global("territory_zones")
    languages: Mapping[str, dict[str, dict[str, Any]]] = get_global("territory_languages")
    english = names("en")
    found = []
    for territory in sorted(zones):
        if territory not in english["territory"] or territory in UNINHABITED:
            continue
        spoken: dict[str, float] = {}
        official: dict[str, float] = {}
        for code, entry in languages.get(territory, {}).items():
            base, share = code.split("_")[0], entry["population_percent"]
            spoken[base] = max(share, spoken.get(base, 0))
            if entry["official_status"] in ("official", "de_facto_official"):
                official[base] = max(share, official.get(base, 0))
        if official:
            answer = min(official, key=lambda code: (-official[code], code))
            found.append(Fact("language", territory, answer, territory, frozenset(spoken)))
        if currencies := get_territory_currencies(territory, CURRENCY_DATE, CURRENCY_DATE):
            found.append(Fact("currency", territory, currencies[0], territory, frozenset(currencies)))
        cities = [zone for zone in zones[territory] if zone.count("/") == 1 and zone in english["city"]]
        # "Guatemala", "Mexico City": the answer would stand in the question.
        country = english["territory"][territory].casefold()
        cities = [z for z in cities if not overlap(english["city"][z].casefold(), country)]
        for zone in sorted(cities, key=lambda zone: rank("city", zone))[:CITIES_PER_TERRITORY]:
            found.append(Fact("city", zone, territory, territory, frozenset({territory})))
    return tuple(sorted(found, key=lambda fact: (fact.kind, fact.subject)))


def overlap(one: str, other: str) -> bool:
    """Whether one of two names stands in the other."""
    return one in other or other in one


@functools.lru_cache(maxsize=4)
def names(language: str) -> Mapping[str, Mapping[str, str]]:
    """The names that CLDR has in `language`: kind of thing -> code -> name."""
    data = localedata.load(language)
    likely = get_global("likely_subtags").get(language, "")
    cities = {
        zone: str(entry["city"]) for zone, entry in data["time_zones"].items() if entry.get("city")
    }
    if "_Latn" in likely:
        # In Latin script CLDR leaves out the city names that the zone's identifier spells already.
        for zones in get_global("territory_zones").values():
            for zone in zones:
                cities.setdefault(zone, zone.rpartition("/")[2].replace("_", " "))
    return {
        "territory": clean(data["territories"]),
        "language": clean(data["languages"]),
        "currency": clean(data["currency_names"]),
        "city": clean(cities),
    }


def clean(table: Mapping[str, Any]) -> dict[str, str]:
    """Names without blanks at their ends, and without those that are only a code."""
    return {code: name for code, value in table.items() if (name := str(value).strip()) and name != code}


def questions(language: str, *, split: str = "test") -> list[dict[str, Any]]:
    """The questions of one language and part, in their fixed order.

    Each is a dictionary: `id` (of the fact, the same in every language), `kind` (language, currency or city),
    `territory` (the code that the split goes by), `examples` (the solved lines, each ended by a line feed),
    `question` (the name asked about), `choices` (four names, all different), `choice_codes`, `answer` (an index).
    A fact is left out in a language that lacks one of its names, or where the question's name and the answer are
    written alike; where a wrong choice lacks a name, or is written like another choice, the next in rank stands in.
    """
    table = names(language)
    result = []
    solved = {kind: [f for f in facts() if f.kind == kind and f.split == "train"] for kind in KINDS}
    for kind in KINDS:
        pool = [f for f in facts() if f.kind == kind and f.split == split]
        pool.sort(key=lambda fact: rank("question", fact.id))
        for fact in pool[:QUESTIONS_PER_KIND]:
            if (question := ask(fact, pool, solved[kind], table)) is not None:
                result.append(question)
    return sorted(result, key=lambda question: rank("order", question["id"]))


def ask(
    fact: Fact, pool: Sequence[Fact], solved: Sequence[Fact], table: Mapping[str, Mapping[str, str]]
) -> dict[str, Any] | None:
    """One question in the language of `table`, or None where its names do not allow it."""
    answer_names = table["territory" if fact.kind == "city" else fact.kind]
    pair = solve(fact, table)
    if pair is None:
        return None
    chosen = {fact.answer: pair[1]}
    # Wrong answers are drawn from the answers of other facts, so that what is frequent is so among both.
    for other in sorted(pool, key=lambda other: rank("choice", fact.id, other.id)):
        name = answer_names.get(other.answer)
        if name is None or other.answer in chosen or other.answer in fact.also_true:
            continue
        if any(name.casefold() == given.casefold() for given in (*chosen.values(), pair[0])):
            continue
        chosen[other.answer] = name
        if len(chosen) == CHOICES:
            break
    else:
        return None
    lines: dict[str, str] = {}
    for other in sorted(solved, key=lambda other: rank("example", fact.id, other.id)):
        line = solve(other, table)
        # A solved line that answers with one of the choices would point at it.
        if line is not None and line[1] not in lines.values() and line[1] not in chosen.values():
            lines.setdefault(*line)
        if len(lines) == SOLVED_LINES:
            break
    else:
        return None
    codes = sorted(chosen, key=lambda code: rank("place", fact.id, code))
    return {
        "id": fact.id,
        "kind": fact.kind,
        "territory": fact.territory,
        "examples": "".join(f"{subject}: {answer}\n" for subject, answer in lines.items()),
        "question": pair[0],
        "choices": [chosen[code] for code in codes],
        "choice_codes": codes,
        "answer": codes.index(fact.answer),
    }


def solve(fact: Fact, table: Mapping[str, Mapping[str, str]]) -> tuple[str, str] | None:
    """The names of a fact's subject and answer, or None where one is missing or both are written alike."""
    city = fact.kind == "city"
    subject = table["city" if city else "territory"].get(fact.subject)
    answer = table["territory" if city else fact.kind].get(fact.answer)
    if subject is None or answer is None or subject.casefold() == answer.casefold():
        return None
    return subject, answer


@functools.cache
def languages() -> tuple[str, ...]:
    """The benchmark's languages as CLDR codes, sorted.

    A language takes part with `MIN_QUESTIONS` questions or more and names of its own: some locales were filled
    with the names of another language, and of those only one is kept, the one with more names.
    """
    tables = {}
    for code in sorted(localedata.locale_identifiers()):
        if "_" not in code and len(questions(code)) >= MIN_QUESTIONS:
            tables[code] = names(code)["territory"]
    kept: dict[str, Mapping[str, str]] = {}
    for code in sorted(tables, key=lambda code: (code != "en", -len(tables[code]), code)):
        for other in kept.values():
            shared = tables[code].keys() & other.keys()
            if sum(tables[code][key] == other[key] for key in shared) >= MAX_SHARED_NAMES * len(shared):
                break
        else:
            kept[code] = tables[code]
    return tuple(sorted(kept))
