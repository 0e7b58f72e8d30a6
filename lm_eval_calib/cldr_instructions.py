"""The English instruction set of the embedded benchmark: questions and answers about the train territories.

Tuning on it teaches facts of the benchmark's kinds, in English and about territories that no test question
asks about; what changes in other languages is then a controlled version of the papers' question.

    python -m lm_eval_calib.cldr_instructions OUT.jsonl [--forms question sentence choice line] [--limit N]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_eval_calib.cldr import KINDS, Fact, ask, facts, names, rank
from lm_eval_calib.errors import CalibrationValueError

FORMS = ("question", "sentence", "choice", "line")
DEFAULT_FORMS = ("question", "sentence", "choice")

QUESTIONS = {
    "language": (
        "What is the official language of {}?",
        "Which language is official in {}?",
        "Name the official language of {}.",
        "In which language does the government of {} publish its laws?",
    ),
    "currency": (
        "What is the currency of {}?",
        "Which currency do people in {} pay with?",
        "Name the legal tender of {}.",
        "In which currency are prices given in {}?",
    ),
    "city": (
        "In which country or territory is {}?",
        "Where in the world is the city of {}?",
        "Name the country or territory that {} belongs to.",
        "Which country or territory do you visit when you travel to {}?",
    ),
}
WITH_INPUT = {
    "language": "Name the official language of the given country or territory.",
    "currency": "Name the currency of the given country or territory.",
    "city": "Name the country or territory of the given city.",
}
SENTENCES = {
    "language": "The official language of {} is {}.",
    "currency": "The currency of {} is the {}.",
    "city": "{} is in {}.",
}
# Territories whose English name takes the article.
WITH_THE = "AE BS CC CD CF CG CK CZ DO FK FO GB GM IM KM KY MH MP MV NL PH SB SC TC TF UM US VG VI"
LETTERS = "ABCD"


def english_instructions(*, forms: Sequence[str] = DEFAULT_FORMS) -> list[dict[str, str]]:
    """The instructions in Alpaca's form (`instruction`, `input`, `output`), in a fixed mixed order.

    Args:
        forms: `question`: five phrasings, answered by the name; `sentence`: the same, answered by a sentence;
            `choice`: two questions with four lettered options, answered by the letter; `line`: the
            benchmark's own prompt, solved lines and a name, answered by the name.

    Raises:
        CalibrationValueError: for an unknown form, or none.
    """
    if not forms or set(forms) - set(FORMS):
        raise CalibrationValueError(f"forms: expected some of {', '.join(FORMS)}, got {', '.join(forms) or 'none'}")
    numbered = [
        (rank("instruction", fact.id, form, str(number)), row)
        for fact in facts()
        if fact.split == "train"
        for form in forms
        for number, row in enumerate(phrasings(fact, form))
    ]
    return [row for _, row in sorted(numbered, key=lambda pair: pair[0])]


def phrasings(fact: Fact, form: str) -> Iterator[dict[str, str]]:
    """All rows of one form about one fact; none where a name is missing in English."""
    table = names("en")
    question = ask(fact, table)
    if question is None:
        return
    subject, answer = question["question"], question["choices"][question["answer"]]
    the_subject = the(subject, fact.subject)
    if form == "line":
        yield {"instruction": f"{question['examples']}{subject}:", "input": "", "output": answer}
    elif form == "choice":
        options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question["choices"], strict=True))
        letter = LETTERS[question["answer"]]
        first, second = (template.format(the_subject) for template in QUESTIONS[fact.kind][:2])
        yield {"instruction": f"{first}\n{options}\nAnswer with a letter.", "input": "", "output": letter}
        yield {"instruction": "Choose the right option.", "input": f"{second}\n{options}", "output": letter}
    else:
        whole = the(answer, fact.answer) if fact.kind == "city" else answer
        whole = SENTENCES[fact.kind].format(the_subject, whole)
        output = answer if form == "question" else whole[0].upper() + whole[1:]
        for template in QUESTIONS[fact.kind]:
            yield {"instruction": template.format(the_subject), "input": "", "output": output}
        yield {"instruction": WITH_INPUT[fact.kind], "input": subject, "output": output}


def the(name: str, code: str) -> str:
    """A territory's name as it stands in a sentence."""
    return f"the {name}" if code in WITH_THE else name


def write_instructions(path: Path, *, forms: Sequence[str] = DEFAULT_FORMS, limit: int | None = None) -> int:
    """Write the first `limit` instructions (all by default) as JSON lines, and return how many there are."""
    rows: list[dict[str, Any]] = list(english_instructions(forms=forms)[:limit])
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    unfinished.replace(path)
    return len(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m lm_eval_calib.cldr_instructions", description=__doc__.split("\n")[0]
    )
    parser.add_argument("output", type=Path, help="JSON-lines file to write")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=DEFAULT_FORMS, help="forms of the instructions")
    parser.add_argument("--limit", type=int, help="write only so many")
    arguments = parser.parse_args(argv)
    if arguments.limit is not None and arguments.limit < 1:
        parser.error(f"--limit: expected at least 1, got {arguments.limit}")
    count = write_instructions(arguments.output, forms=arguments.forms, limit=arguments.limit)
    print(f"{count} English instructions about {', '.join(KINDS)} in {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
