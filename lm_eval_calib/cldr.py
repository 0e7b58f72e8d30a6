"""The embedded benchmark: multiple-choice questions about CLDR facts in some two hundred languages.

`babel` ships CLDR: which language is official in a territory, which currency it uses, which city lies in it,
and how all of them are called in each language. A question is one fact and four choices, after a few solved
lines of the same kind in the same language; nothing is downloaded. Every draw takes what has the smallest
SHA-256, so questions, choices and order are the same on every machine and, as far as the names exist, in
every language.

Territories are split in two: solved lines and the English instruction set
(`lm_eval_calib.cldr_instructions`) know the train part only, the questions ask about the test part only. A
model tuned on the English facts can so be tested, in all languages, on others.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import babel
from babel import localedata
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
# What find_languages() finds, which takes seconds.
CODES = """
ab af agq ak am an ar as asa ast az bas be bew bez bg blo bm bn br brx bs ca ccp ce ceb chr ckb cs cv
cy da dav de dsb dyo dz ee el en eo es et eu ewo fa ff fi fil fo fr frr fur fy ga gaa gd gl gsw gu ha
he hi hr hsb hu hy ia id ie ig is it ja jv ka kab kam kde kea kgp khq ki kk kl kln km kn ko kok ks ksb
ksf ksh ku kxv ky la lag lb lg lij lld ln lo lt lu luo lv mai mer mfe mg mi mk ml mn mr ms mt mua my
mzn naq nb nd nds ne nl nmg nn nqo nyn oc om or pa pap pcm pl ps pt qu rif rm rn ro ru sat sbp sc scn
sd se seh sg si sk sl smn sn so sq sr sv sw syr szl ta te tg th ti tk to tok tr trw tt tzm ug uk ur uz
vai vec vi wae wo xh xnr xog yav yo yrl yue za zgh zh zu
"""
LANGUAGES = tuple(CODES.split())
MADE_WITH = "2.18"  # the babel whose questions the tests pin

logger = logging.getLogger(__name__)


def rank(*parts: str) -> int:
    """A 64-bit number that looks random and is the same everywhere; what is drawn has the smallest."""
    return int.from_bytes(hashlib.sha256("\x1f".join(("calib_cldr", *parts)).encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Fact:
    """One fact in codes: `subject` is a territory, or for `city` a time zone; `answer` goes with it."""

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


@functools.cache
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
    cities = {zone: str(entry["city"]) for zone, entry in data["time_zones"].items() if entry.get("city")}
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


def questions(language: str, *, split: str = "test", kinds: Sequence[str] = KINDS) -> list[dict[str, Any]]:
    """The questions of one language and part, in their fixed order.

    Each is a dictionary: `id` (of the fact, the same in every language), `kind` (language, currency or city),
    `territory` (the code that the split goes by), `examples` (the solved lines, each ended by a line feed),
    `question` (the name asked about), `choices` (four different names), `choice_codes`, `answer` (an index).

    A fact is left out in a language that lacks one of its names, or where the question's name and the answer
    are written alike; where a wrong choice lacks a name, or is written like another, the next in rank stands
    in.
    """
    table = names(language)
    asked = (ask(fact, table) for kind in kinds for fact in drawn(kind, split))
    return sorted((row for row in asked if row is not None), key=lambda row: rank("order", row["id"]))


@functools.cache
def drawn(kind: str, split: str) -> tuple[Fact, ...]:
    """The facts that questions ask about, the same in every language."""
    pool = (fact for fact in facts() if (fact.kind, fact.split) == (kind, split))
    return tuple(sorted(pool, key=lambda fact: rank("question", fact.id))[:QUESTIONS_PER_KIND])


def ask(fact: Fact, table: Mapping[str, Mapping[str, str]]) -> dict[str, Any] | None:
    """One question in the language of `table`, or None where its names do not allow it."""
    answers = table["territory" if fact.kind == "city" else fact.kind]
    if (pair := solve(fact, table)) is None:
        return None
    chosen = {fact.answer: pair[1]}
    for other in wrong_answers(fact):
        name = answers.get(other)
        if name is None or any(name.casefold() == given.casefold() for given in (*chosen.values(), pair[0])):
            continue
        chosen[other] = name
        if len(chosen) == CHOICES:
            break
    else:
        return None
    lines: dict[str, str] = {}
    for example in examples(fact):
        line = solve(example, table)
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


@functools.cache
def wrong_answers(fact: Fact) -> tuple[str, ...]:
    """Codes of what is not true of the fact's subject, in the order in which a question takes them.

    They are drawn from the answers of other facts, so that what is often right is often offered wrongly too,
    and the most frequent answer is a poor guess.
    """
    others = (f for f in facts() if (f.kind, f.split) == (fact.kind, fact.split) and f.answer not in fact.also_true)
    ranked = sorted(others, key=lambda other: rank("choice", fact.id, other.id))
    return tuple(dict.fromkeys(other.answer for other in ranked))


@functools.cache
def examples(fact: Fact) -> tuple[Fact, ...]:
    """Facts of the train part for the solved lines above a question, in the order in which it takes them."""
    known = (f for f in facts() if (f.kind, f.split) == (fact.kind, "train") and f.territory != fact.territory)
    return tuple(sorted(known, key=lambda example: rank("example", fact.id, example.id)))


def solve(fact: Fact, table: Mapping[str, Mapping[str, str]]) -> tuple[str, str] | None:
    """The names of a fact's subject and answer, or None where one is missing or both are written alike."""
    city = fact.kind == "city"
    subject = table["city" if city else "territory"].get(fact.subject)
    answer = table["territory" if city else fact.kind].get(fact.answer)
    if subject is None or answer is None or subject.casefold() == answer.casefold():
        return None
    return subject, answer


def find_languages() -> tuple[str, ...]:
    """The languages that CLDR suffices for, as its codes, sorted: what `LANGUAGES` lists.

    A language takes part with `MIN_QUESTIONS` questions or more and names of its own: some locales were
    filled with the names of another language, and of those only one is kept, the one with more names.
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


def dataset(*, language: str, kinds: Sequence[str] = KINDS, **metadata: Any) -> Any:
    """What lm-eval's `custom_dataset` asks for: a `datasets.DatasetDict` of the parts test and train.

    Args:
        language: CLDR code, one of those that have a task.
        kinds: Which questions: language, currency, city; `--metadata '{"kinds": ["city"]}'` selects.
        metadata: Other metadata of the task, which lm-eval passes too.
    """
    from datasets import Dataset, DatasetDict

    del metadata
    if language not in LANGUAGES:
        raise CalibrationValueError(
            f"language: expected a code such as 'sw', got {language!r}; `lm-eval-calib tasks cldr` lists them"
        )
    unknown = set(kinds) - set(KINDS)
    if unknown or not kinds:
        raise CalibrationValueError(
            f"kinds: expected some of {', '.join(KINDS)}, got {', '.join(sorted(unknown)) or 'none'}"
        )
    if not babel.__version__.startswith(MADE_WITH):
        say_other_version(babel.__version__)
    parts = {split: questions(language, split=split, kinds=kinds) for split in ("test", "train")}
    if not parts["test"]:
        raise CalibrationValueError(f"kinds: CLDR has no names for {', '.join(kinds)} in language {language!r}")
    return DatasetDict({split: Dataset.from_list(rows) for split, rows in parts.items()})


@functools.cache
def say_other_version(version: str) -> None:
    """Warn once: other CLDR data give other questions."""
    logger.warning(
        "calib_cldr's published questions are those of babel %s; with babel %s some differ, so compare "
        "models within one version only",
        MADE_WITH,
        version,
    )
