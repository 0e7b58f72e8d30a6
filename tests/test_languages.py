"""Languages: codes in the spellings of the benchmarks, and what is known of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from babel.localedata import locale_identifiers

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.languages import Language, language, tier
from lm_eval_calib.sources import read_benchmark
from lm_eval_calib.tasks.generate import ROOT, read_benchmarks


@pytest.mark.parametrize(
    ("code", "iso639_3", "name", "own_name", "script", "family", "resource_class", "tier"),
    [
        ("sw", "swa", "Swahili", "Kiswahili", "Latn", "Atlantic-Congo", 2, "low"),
        ("swh_Latn", "swh", "Swahili", "Kiswahili", "Latn", "Atlantic-Congo", 2, "low"),
        ("hin_Latn", "hin", "Hindi", "Hindi", "Latn", "Indo-European", 4, "high"),
        ("zho_Hant", "zho", "Chinese", "中文", "Hant", "Sino-Tibetan", 5, "high"),
        ("PT_BR", "por", "Portuguese", "português", "Latn", "Indo-European", 4, "high"),
        ("jp", "jpn", "Japanese", "日本語", "Jpan", "Japonic", 5, "high"),
        ("North Macedonian", "mkd", "Macedonian", "македонски", "Cyrl", "Indo-European", 1, "low"),
        ("tgl_Latn", "tgl", "Filipino", "Filipino", "Latn", "Austronesian", 3, "mid"),
        ("arz_Arab", "arz", "Egyptian Arabic", None, "Arab", "Afro-Asiatic", 3, "mid"),
        ("ary_Arab", "ary", "Moroccan Arabic", None, "Arab", "Afro-Asiatic", 0, "low"),
        ("eu", "eus", "Basque", "euskara", "Latn", "Basque", 4, "high"),
        # Not in the taxonomy: unknown, not low
        ("gsw", "gsw", "Swiss German", "Schwiizertüütsch", "Latn", "Indo-European", None, None),
    ],
)
def test_what_is_known(
    code: str,
    iso639_3: str,
    name: str,
    own_name: str | None,
    script: str,
    family: str,
    resource_class: int | None,
    tier: str | None,
) -> None:
    assert language(code) == Language(code, iso639_3, name, own_name, script, family, resource_class, tier)


@pytest.mark.parametrize("code", ["", "xx", "klingonish", "1", "s w", "qqq_Latn"])
def test_unknown_codes_are_errors(code: str) -> None:
    with pytest.raises(CalibrationValueError, match="unknown language code"):
        language(code)


def test_tiers() -> None:
    assert [tier(number) for number in range(6)] == ["low", "low", "low", "mid", "high", "high"]
    with pytest.raises(CalibrationValueError, match="expected 0 to 5"):
        tier(6)


def test_tiers_are_those_that_the_data_cards_state() -> None:
    counts = {
        name: Counter(language(code).tier for code in read_benchmark(ROOT / name).languages.values())
        for name in ("global_mmlu", "mmlu_prox")
    }
    assert counts["global_mmlu"] == {"high": 20, "mid": 9, "low": 13}
    assert counts["mmlu_prox"] == {"high": 16, "mid": 6, "low": 7}


def test_every_language_of_every_benchmark_is_complete() -> None:
    for benchmark in read_benchmarks():
        for suffix in benchmark.languages:
            its = benchmark.language(suffix)
            assert len(its.iso639_3) == 3, suffix
            assert its.script is not None, suffix
            assert its.family is not None, suffix
            # Without a class are languages of the embedded benchmark only
            assert its.tier is not None or benchmark.name == "cldr", suffix


def test_every_cldr_language_has_its_own_iso_code() -> None:
    codes = {identifier.split("_")[0] for identifier in locale_identifiers()}
    iso = Counter(language(code).iso639_3 for code in codes)
    assert len(codes) > 250
    assert all(len(code) == 3 for code in iso)
    assert [code for code, count in iso.items() if count > 1] == []


def test_classes_agree_with_the_shared_list(shared_data: Path) -> None:
    listed = json.loads((shared_data / "joshi_classes.json").read_text())
    differing = {}
    for code, resource_class in listed.items():
        try:
            ours = language(code).resource_class
        except CalibrationValueError:
            continue  # no language of ours
        if ours is not None and ours != resource_class:
            differing[code] = (resource_class, ours)
    # The list has class 0 for these individual languages and class 1 for what the taxonomy names (Albanian,
    # Oromo, Mongolian, Malagasy), whose standard forms they are.
    assert differing == {"als": (0, 1), "gaz": (0, 1), "khk": (0, 1), "plt": (0, 1)}
