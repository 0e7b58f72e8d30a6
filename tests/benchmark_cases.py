"""Rows in the layout of each benchmark's data set, good and malformed, and the stock tasks to compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Case:
    """A benchmark on made-up data.

    Attributes:
        dataset: Id on the hub.
        config: Name of the data set's config of a task's language.
        row: Number and language of a question -> its row.
        splits: Split -> number of rows; the first one is evaluated.
        bad: Changes that turn a good row into a malformed one.
        languages: Task suffixes to try.
        folder: Folder of the stock tasks in lm-eval's, `{}` is the suffix.
        stock: Names of the stock tasks whose questions, together, are ours.
        shots: Few-shot examples to compare with, 0 where the stock task's may be the question itself.
    """

    dataset: str
    row: Callable[[int, str], Row]
    splits: dict[str, int]
    bad: list[Row]
    languages: list[str]
    folder: str = ""
    stock: list[str] = field(default_factory=list)
    config: Callable[[str], str] = str
    shots: int = 2


def _nli(i: int, language: str) -> Row:
    return {"premise": f"{language} premise {i}", "hypothesis": f"hypothesis {i}", "label": i % 3}


def _belebele(i: int, language: str) -> Row:
    row = {"flores_passage": f"{language} passage {i // 2}", "question": f" Question {i}? ", "link": "x"}
    row |= {f"mc_answer{k}": f"answer {k} of {i}" for k in range(1, 5)}
    return row | {"correct_answer_num": str(i % 4 + 1)}


MMLU_SUBJECTS = ["anatomy", "college_mathematics", "us_foreign_policy"]


def _options(i: int) -> Row:
    return {f"option_{letter}": f"option {letter} of {i}" for letter in "abcd"}


def _global_mmlu(i: int, language: str) -> Row:
    subject = MMLU_SUBJECTS[i % 3]
    row = {"sample_id": f"{subject}/{i}", "subject": subject, "question": f" {language} question {i}\n"}
    row |= {"subject_category": "STEM" if subject != "us_foreign_policy" else "Social Sciences"}
    return row | _options(i) | {"answer": LETTERS[i * 7 % 4], "cultural_sensitivity_label": "CS" if i % 2 else "CA"}


def _mmlu(i: int, _: str) -> Row:
    options = [f"choice {k} of {i}" for k in range(4)]
    return {
        "question": f"question {i} ",
        "subject": MMLU_SUBJECTS[i // 4 % 3],
        "choices": options,
        "answer": i * 7 % 4,
    }


def _mmmlu(i: int, language: str) -> Row:
    subject = MMLU_SUBJECTS[i % 3]
    subject = f"{subject}_test.csv_sw-KE.csv" if i % 4 == 0 else subject
    row = {"Question": f"{language} question {i}", "Answer": LETTERS[i * 7 % 4], "Subject": subject}
    return row | {letter: f"option {letter} of {i}" for letter in "ABCD"}


def _include(i: int, language: str) -> Row:
    domain = ["Arts & Humanities", "STEM" if language == "albanian" else "Driving License"][i % 2]
    return {"domain": domain, "question": f"{language} question {i}", "answer": i % 4} | _options(i)


def _prox(i: int, language: str) -> Row:
    number = 10 - i % 4
    row: Row = {"question_id": i, "question": f"{language} question {i}", "category": ["law", "math"][i % 2]}
    for k in range(10):
        row[f"option_{k}"] = f"option {k} of {i}" if k < number else [None, "N/A", ""][i % 3]
    return row | {"answer": LETTERS[i % number], "answer_index": i % number, "cot_content": "x"}


def _xcopa(i: int, language: str) -> Row:
    row = {"premise": f"{language} premise {i}.", "choice1": f"First {i}.", "choice2": f"Second {i}."}
    return row | {"question": ["cause", "effect"][i % 2], "label": i % 2, "idx": i}


def _xstorycloze(i: int, language: str) -> Row:
    row: Row = {f"input_sentence_{k}": f"{language} sentence {k} of {i}." for k in range(1, 5)}
    return row | {
        "sentence_quiz1": f"End {i}.",
        "sentence_quiz2": f"Close {i}.",
        "answer_right_ending": i % 2 + 1,
    }


def _xwinograd(i: int, language: str) -> Row:
    return {
        "sentence": f"{language} {i}: _ fell.",
        "option1": "The cat",
        "option2": "The cup",
        "answer": str(i % 2 + 1),
    }


def _paws(i: int, language: str) -> Row:
    return {"id": i, "sentence1": f"{language} one , {i} .", "sentence2": f"The other {i} .", "label": i % 2}


def _arc_multilingual(i: int, language: str) -> Row:
    row: Row = {"id": str(i), "instruction": f"{language} question {i} [x]"} | _options(i)
    return row | {"option_e": f"option e of {i}" if i % 4 == 0 else None, "answer": "ABCD"[i % 4]}


def _hellaswag(i: int, language: str) -> Row:
    row: Row = {
        "ind": i,
        "activity_label": "Cooking",
        "ctx_a": f"{language} scene {i}.",
        "ctx_b": "then she" if i % 2 else "",
    }
    return row | {"endings": [f"ending {k} of {i}." for k in range(4)], "label": str(i % 4)}


def _mmlu_multilingual(i: int, language: str) -> Row:
    return {"id": f"anatomy/{i}", "instruction": f"{language} question {i}"} | _options(i) | {"answer": LETTERS[i % 4]}


def _afrimmlu(i: int, language: str) -> Row:
    choices = str([f"choice {k} of {i}" for k in range(4)])
    subject = ["global_facts", "elementary_mathematics"][i % 2]
    return {
        "subject": subject,
        "question": f"{language} question {i}",
        "choices": choices,
        "answer": LETTERS[i % 4],
    }


def _arc_easy(i: int, _: str) -> Row:
    number = 3 + i % 3
    labels = [str(k + 1) for k in range(number)] if i % 5 == 0 else list(LETTERS[:number])
    texts = [f"choice {k} of {i}" for k in range(number)]
    return {
        "id": str(i),
        "question": f"Question {i}?",
        "choices": {"text": texts, "label": labels},
        "answerKey": labels[i % 3],
    }


def _exams(i: int, _: str) -> Row:
    number = 3 + i % 3
    # As Parquet has it; the layout with a list of options is that of the real data.
    choices = {"text": [f" option {k} of {i}" for k in range(number)], "label": list(LETTERS[:number])}
    info = {"grade": 9, "subject": "Biology", "language": "North Macedonian"}
    return {"id": str(i), "question": {"stem": f"Question {i} ", "choices": choices}, "answerKey": "B", "info": info}


_BAD_LETTERED: list[Row] = [{"question": "  "}, {"option_c": None}, {"answer": "E"}, {"answer": None}]

CASES = {
    "xnli": Case(
        "facebook/xnli",
        _nli,
        {"validation": 12, "train": 8},
        [{"premise": None}, {"hypothesis": ""}, {"label": -1}],
        ["sw", "zh"],
        "xnli",
        ["xnli_{}"],
    ),
    "afrixnli": Case(
        "masakhane/afrixnli",
        _nli,
        {"test": 12, "validation": 8},
        [{"premise": " "}, {"label": 3}],
        ["swa", "twi"],
        "afrixnli/anli prompt/native-direct",
        ["afrixnli_native_direct_{}"],
    ),
    "belebele": Case(
        "facebook/belebele",
        _belebele,
        {"test": 12},
        [{"flores_passage": ""}, {"mc_answer2": None}, {"correct_answer_num": "5"}],
        ["swh_Latn", "zho_Hant"],
        "belebele",
        ["belebele_{}"],
    ),
    "global_mmlu": Case(
        "CohereForAI/Global-MMLU",
        _global_mmlu,
        {"test": 18, "dev": 9},
        _BAD_LETTERED,
        ["sw", "en"],
        "global_mmlu/full/{}",
        [f"global_mmlu_full_{{}}_{subject}" for subject in MMLU_SUBJECTS],
    ),
    "global_mmlu_lite": Case(
        "CohereLabs/Global-MMLU-Lite",
        _global_mmlu,
        {"test": 18, "dev": 12},
        _BAD_LETTERED,
        ["ar"],
        "global_mmlu/default/{}",
        ["global_mmlu_{}_stem", "global_mmlu_{}_social_sciences"],
    ),
    "mmlu_prox": Case(
        "li-lab/MMLU-ProX",
        _prox,
        {"test": 12, "validation": 12},
        [{"question": "  "}, {"option_1": ""}, {"answer": "J", "option_9": None}, {"answer": "?"}],
        ["sw", "ja"],
    ),
    "mmlu_prox_lite": Case("li-lab/MMLU-ProX-Lite", _prox, {"test": 12, "validation": 12}, [{"answer": None}], ["fr"]),
    "openai_mmmlu": Case(
        "openai/MMMLU",
        _mmmlu,
        {"test": 18},
        [{"Question": None}, {"B": ""}, {"Answer": "X"}],
        ["sw_ke", "zh_cn"],
        "openai-mmmlu/default",
        [f"mmmlu_{{}}_{subject}" for subject in MMLU_SUBJECTS],
        str.upper,
    ),
    "include": Case(
        "CohereForAI/include-base-44",
        _include,
        {"test": 12},
        [{"question": ""}, {"option_a": None}, {"answer": 4}],
        ["albanian", "hebrew"],
        "include/default/{}",
        [
            "include_base_44_{}_arts_humanities",
            "include_base_44_{}_stem",
            "include_base_44_{}_driving_license",
        ],
        str.title,
        shots=0,
    ),
    "exams": Case(
        "mhardalov/exams",
        _exams,
        {"test": 12, "validation": 8},
        [
            {"answerKey": "@"},
            {"answerKey": "F"},
            {"question": {"stem": " ", "choices": {"text": ["a"], "label": ["A"]}}},
        ],
        ["macedonian"],
        config=lambda _: "multilingual",
    ),
    "xcopa": Case(
        "cambridgeltl/xcopa",
        _xcopa,
        {"test": 12, "validation": 8},
        [{"premise": None}, {"choice2": ""}, {"label": -1}, {"question": "why"}],
        ["sw", "qu"],
        "xcopa",
        ["xcopa_{}"],
    ),
    "xstorycloze": Case(
        "juletxara/xstory_cloze",
        _xstorycloze,
        {"eval": 12, "train": 8},
        [{"input_sentence_3": ""}, {"sentence_quiz1": None}, {"answer_right_ending": 0}],
        ["sw", "eu"],
        "xstorycloze",
        ["xstorycloze_{}"],
    ),
    "xwinograd": Case(
        "Muennighoff/xwinograd",
        _xwinograd,
        {"test": 12},
        [{"sentence": "no gap"}, {"option1": None}, {"answer": "3"}],
        ["jp", "fr"],
        "xwinograd",
        ["xwinograd_{}"],
        shots=0,
    ),
    "paws_x": Case(
        "google-research-datasets/paws-x",
        _paws,
        {"test": 12, "validation": 8, "train": 8},
        [{"sentence1": ""}, {"sentence2": None}, {"label": 2}],
        ["de", "ko"],
        "paws-x",
        ["paws_{}"],
    ),
    "arc_multilingual": Case(
        "alexandrainst/m_arc",
        _arc_multilingual,
        {"test": 12, "train": 8},
        [{"instruction": None}, {"option_b": ""}, {"answer": "E", "option_e": None}, {"answer": "1"}],
        ["bn", "zh"],
        "okapi/arc_multilingual",
        ["arc_{}"],
    ),
    "hellaswag_multilingual": Case(
        "alexandrainst/m_hellaswag",
        _hellaswag,
        {"val": 12},
        [{"ctx_a": None}, {"endings": ["a", "b", "", "d"]}, {"label": ""}],
        ["te", "fr"],
        "okapi/hellaswag_multilingual",
        ["hellaswag_{}"],
        shots=0,
    ),
    "mmlu_multilingual": Case(
        "alexandrainst/m_mmlu",
        _mmlu_multilingual,
        {"test": 12, "train": 8},
        [{"instruction": None}, {"option_d": ""}, {"answer": "E"}],
        ["sr", "is"],
        "okapi/mmlu_multilingual",
        ["m_mmlu_{}"],
    ),
    "afrimmlu": Case(
        "masakhane/afrimmlu",
        _afrimmlu,
        {"test": 12, "validation": 8},
        [{"question": None}, {"choices": "['a', '', 'c', 'd']"}, {"choices": "['a', 'b'"}, {"answer": "E"}],
        ["swa", "ewe"],
        "afrimmlu/direct/prompt_1",
        ["afrimmlu_direct_{}_prompt_1"],
    ),
    "mmlu": Case(
        "cais/mmlu",
        _mmlu,
        {"test": 24, "dev": 24},
        [{"question": ""}, {"choices": ["a", "b", "", "d"]}, {"answer": -1}],
        ["en"],
        "mmlu/default",
        [f"mmlu_{subject}" for subject in MMLU_SUBJECTS],
        lambda _: "all",
    ),
    "hellaswag": Case(
        "Rowan/hellaswag",
        _hellaswag,
        {"validation": 12, "train": 8},
        [{"label": ""}],
        ["en"],
        "hellaswag",
        ["hellaswag"],
        lambda _: "default",
    ),
    "arc_easy": Case(
        "allenai/ai2_arc",
        _arc_easy,
        {"test": 12, "validation": 8, "train": 8},
        [{"question": None}, {"answerKey": "F"}, {"choices": {"text": ["a"], "label": ["A"]}}],
        ["en"],
        "arc",
        ["arc_easy"],
        lambda _: "ARC-Easy",
    ),
}
