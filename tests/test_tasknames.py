"""Benchmark, language and subject from the names of released lm-eval's tasks, and of ours."""

from __future__ import annotations

from typing import Any

import pytest

from lm_eval_calib.tasknames import TaskName, is_language, parse_task_name, tier_of

# Name of the task, dataset_name in its configuration; benchmark, language, subject.
NAMES: list[tuple[str, str | None, str, str | None, str | None]] = [
    ("calib_xnli_sw", None, "calib_xnli", "sw", None),
    ("calib_belebele_swh_Latn", None, "calib_belebele", "swh_Latn", None),
    ("calib_exams_albanian", None, "calib_exams", "Albanian", None),
    ("calib_mmlu_prox_lite_yo", None, "calib_mmlu_prox_lite", "yo", None),
    ("calib_arc_easy", None, "calib_arc_easy", "en", None),
    ("calib_simulated_fil", None, "calib_simulated", "fil", None),
    ("calib_global_mmlu_full_sw_anatomy", None, "calib_global_mmlu_full", "sw", "anatomy"),
    ("calib_mine_sw", None, "calib_mine", "sw", None),
    ("xnli_sw", "sw", "xnli", "sw", None),
    ("xnli_sw", None, "xnli", "sw", None),
    ("xnli_eu_native", "eu_native", "xnli_native", "eu", None),
    ("belebele_swh_Latn", "swh_Latn", "belebele", "swh_Latn", None),
    ("belebele_zho_Hans", None, "belebele", "zho_Hans", None),
    ("global_mmlu_full_sw_high_school_geography", None, "global_mmlu_full", "sw", "high_school_geography"),
    ("global_mmlu_fil_stem", None, "global_mmlu", "fil", "stem"),
    ("mmlu_prox_sw_computer_science", None, "mmlu_prox", "sw", "computer_science"),
    ("mmlu_prox_lite_wo_law", None, "mmlu_prox_lite", "wo", "law"),
    (
        "include_base_44_north macedonian_arts_humanities",
        None,
        "include_base_44",
        "north macedonian",
        "arts_humanities",
    ),
    ("include_base_44_greek_few_shot_en_stem", None, "include_base_44_few_shot_en", "greek", "stem"),
    ("afrixnli_amh_prompt_1", "amh", "afrixnli_prompt_1", "amh", None),
    ("afrimmlu_direct_swa_prompt_2", None, "afrimmlu_direct_prompt_2", "swa", None),
    ("global_piqa_parallel_cloze_vie_latn", "vie_latn", "global_piqa_parallel_cloze", "vie_latn", None),
    ("xcopa_et", None, "xcopa", "et", None),
    ("xstorycloze_te", None, "xstorycloze", "te", None),
    ("m_mmlu_kn", "kn", "m_mmlu", "kn", None),
    ("truthfulqa_zh_mc2", "zh", "truthfulqa_mc2", "zh", None),
    ("arc_challenge_mt_da", "da", "arc_challenge_mt", "da", None),
    ("multiblimp_abk", "abk", "multiblimp", "abk", None),
    # Unknown is unknown: subjects, abbreviations and English words are no languages.
    ("hellaswag", None, "hellaswag", None, None),
    ("mmlu_anatomy", "anatomy", "mmlu_anatomy", None, None),
    ("arc_easy", "ARC-Easy", "arc_easy", None, None),
    ("kobest_wic", "wic", "kobest_wic", None, None),
    ("polemo2_in", None, "polemo2_in", None, None),
    ("matreshka_yes_no", None, "matreshka_yes_no", None, None),
    ("mmlu_pro_math", None, "mmlu_pro_math", None, None),
    ("super_glue-cb", None, "super_glue-cb", None, None),
    ("mytask_mi", None, "mytask_mi", None, None),
]


@pytest.mark.parametrize(("task", "dataset_name", "benchmark", "language", "subject"), NAMES)
def test_names(task: str, dataset_name: str | None, benchmark: str, language: str | None, subject: str | None) -> None:
    config: dict[str, Any] = {"dataset_name": dataset_name} if dataset_name else {}
    assert parse_task_name(task, config) == TaskName(benchmark, language, subject)
    assert language is None or is_language(language)


def test_an_explicit_language_wins() -> None:
    told = parse_task_name("mytask_mi", {"metadata": {"language": "mi"}})
    assert told == TaskName("mytask", "mi", None)
    assert parse_task_name("facts", {"metadata": {"language": "sw"}}) == TaskName("facts", "sw", None)
    assert parse_task_name("facts", {"metadata": {"language": "nonsense"}}).language is None
    assert parse_task_name("facts", {"metadata": 3, "dataset_name": ["sw"]}).language is None


def test_tiers() -> None:
    assert [tier_of(code) for code in ("en", "bn", "swh_Latn", "nonsense", None)] == ["high", "mid", "low", None, None]
