"""From the code of a language, in any benchmark's spelling, to its name, script, family and resource tier.

Names, scripts and the equivalence of codes come from CLDR (through babel). Resource classes are those of
Joshi et al. 2020, "The State and Fate of Linguistic Diversity and Inclusion in the NLP World" (ACL, section 2),
families the top-level families of Glottolog 5. What those sources do not say is `None`: an unknown language is
not a low-resource one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from babel import Locale
from babel.core import get_global
from babel.localedata import exists, normalize_locale

from lm_eval_calib.errors import CalibrationValueError

TIERS = ("high", "mid", "low")

# Keys of all tables are CLDR language codes: `swa`, `swh` and `sw` are one entry, "sw".
_CLASSES = {
    5: "ar de en es fr ja zh",
    4: "ca cs eu fa fi hi hr hu it ko nl pl pt ru sr sv tr vi",
    3: "af arz be bg bn bs ceb da el et fil gl he id ka kk la lt lv ms ro sk sl ta th uk ur uz",
    2: "am ga ha is kok lo mr mt pa sa sw ti tn wo xh yo zu",
    1: """ak an as ast ay az ba bho bjn bm bo br bug ce chr ckb cv cy crh dz ee eo fj fo fur gd gn gu ht hy ia
    ig ilo jv kab kg ki kl km kn ks ku ky lb lg lij lmo ln ltg mai mg mi min mk ml mn mni my nb ne nn no nv ny
    oc om or pag pap qu rn rw sat sc scn sd sg sm sn so sq ss su szl te tg tk tpi ts tt tum ug vec vo yi""",
    0: """acm apc ars ary awa ban bem din dyu fon fuv fy hne kac kam kbp kea kmb li lua luo lus mag mos nqo nso
    nus pbt quy shn si st umb vmw war""",
}
_FAMILIES = {
    "Abkhaz-Adyge": "ab",
    "Afro-Asiatic": "aa acm am apc ar ars ary arz byn cop gez ha he kab mt om rif shi sid so ssy syr ti tig tzm zgh",
    "Algic": "csw mic",
    "Araucanian": "arn",
    "Artificial language": "eo ia ie io jbo tok vo",
    "Athabaskan-Eyak-Tlingit": "nv",
    "Atlantic-Congo": """agq ak ann asa bas bem bez blo bss cch cgg dav dua dyo ebu ee ewo ff fon fuv gaa guz ig jgo jmc
    kaj kam kbp kcg kde ken kg ki kkj kmb ksb ksf lag lg ln lu lua luy mer mgh mgo mos mua nd nmg nnh nr nso ny
    nyn rn rof rw rwk sbp seh sg sn ss st sw tn ts tum umb ve vmw vun wo xh xog yav yo zu""",
    "Austroasiatic": "km sat vi",
    "Austronesian": "ban bew bjn bug ceb fil fj haw id ilo jv mg mi min ms pag sm su to trv ty war",
    "Aymaran": "ay",
    "Basque": "eu",
    "Caddoan": "cad",
    "Dravidian": "kn kxv ml ta te",
    "Eskimo-Aleut": "iu kl",
    "Hmong-Mien": "hnj",
    "Indo-European": """af an as ast awa bal be bg bgc bgn bho bn br bs ca ccp ckb co cs cu cy da de doi dsb dv el
    en es fa fo fr frr fur fy ga gd gl gsw gu gv hi hne hr hsb ht hy is it kea kok ks ksh ku kw la lb li lij lld
    lmo lrc lt ltg lv mag mai mfe mhn mk mr mzn nb nds ne nl nn no oc or os pa pap pbt pcm pis pl prg ps pt raj
    rhg rm ro ru sa sc scn sd sdh si sk skr sl sq sr sv szl tg tpi trw uk ur vec wa wae xnr yi""",
    "Iroquoian": "chr moh",
    "Japonic": "ja",
    "Kartvelian": "ka",
    "Khoe-Kwadi": "naq",
    "Koreanic": "ko",
    "Mande": "bm dyu kpe nqo vai",
    "Mayan": "quc",
    "Mongolic-Khitan": "mn",
    "Muskogean": "cho cic mus",
    "Nakh-Daghestanian": "ce",
    "Nilotic": "din kln luo mas nus saq teo",
    "Nuclear-Macro-Je": "kgp",
    "Pama-Nyungan": "wbp",
    "Quechuan": "qu quy",
    "Sino-Tibetan": "bo brx dz ii kac lus mni my yue zh",
    "Siouan": "lkt osa",
    "Songhay": "dje khq ses twq",
    "Tai-Kadai": "blt lo shn th za",
    "Tupian": "gn yrl",
    "Turkic": "az ba crh cv kaa kk ky sah tk tr tt tyv ug uz",
    "Uralic": "et fi hu mdf myv se sma smj smn sms",
}
_CLASS_OF = {code: number for number, codes in _CLASSES.items() for code in codes.split()}
_FAMILY_OF = {code: family for family, codes in _FAMILIES.items() for code in codes.split()}

# Names that CLDR lacks, and the spellings of benchmarks that are neither a code nor CLDR's English name.
_NAMES = {
    "acm": "Mesopotamian Arabic",
    "apc": "Levantine Arabic",
    "fuv": "Nigerian Fulfulde",
    "lld": "Ladin",
    "mhn": "Mòcheno",
    "pbt": "Southern Pashto",
    "quy": "Ayacucho Quechua",
    "skr": "Saraiki",
}
_SPELLINGS = {
    "jp": "ja",
    "bengali": "bn",
    "indonesia": "id",
    "north macedonian": "mk",
    "tagalog": "fil",
    "odia": "or",
}
# Bibliographic and retired codes that CLDR maps to a language beside its ISO 639-3 code.
_NOT_ISO639_3 = frozenset(
    {
        "alb",
        "arm",
        "baq",
        "bur",
        "chi",
        "cze",
        "dut",
        "fre",
        "geo",
        "ger",
        "gre",
        "ice",
        "mac",
        "mao",
        "may",
        "mol",
        "per",
        "prp",
        "rum",
        "scc",
        "scr",
        "slo",
        "tib",
        "twi",
        "wel",
        "adp",
        "bih",
        "cls",
        "drh",
        "fat",
    }
)


@dataclass(frozen=True)
class Language:
    """A language as a benchmark names it.

    Attributes:
        code: The code that was asked for, unchanged ("sw", "swh_Latn", "PT_BR").
        iso639_3: ISO 639-3 code: the one given, or the one of the given two-letter code ("swa").
        name: English name.
        own_name: Name in the language itself, as CLDR spells it, or None.
        script: ISO 15924 code: the one given, or CLDR's likeliest for the language, or None.
        family: Top-level family in Glottolog, or None.
        resource_class: 0 (nothing) to 5 (most), Joshi et al. 2020, or None where they say nothing.
        tier: "high" (class 4, 5), "mid" (3), "low" (0 to 2), or None with no class.
    """

    code: str
    iso639_3: str
    name: str
    own_name: str | None
    script: str | None
    family: str | None
    resource_class: int | None
    tier: str | None


@cache
def _aliases() -> dict[str, str]:
    """Two- or three-letter code -> CLDR's code, of languages only."""
    table: dict[str, str] = get_global("language_aliases")
    return {code: target for code, target in table.items() if len(code) <= 3 and target.isalpha()}


@cache
def _iso639_3_of() -> dict[str, str]:
    """CLDR's two-letter code -> ISO 639-3; of an individual and a macrolanguage code (swh, swa) the latter."""
    # The alias table lists individual languages before the macrolanguage.
    return {target: code for code, target in _aliases().items() if len(code) == 3 and code not in _NOT_ISO639_3}


@cache
def _code_of_name() -> dict[str, str]:
    names: dict[str, str] = dict(Locale("en").languages)
    # Reversed, so that of two codes with one name the first, shorter one wins.
    return {name.lower(): code for code, name in reversed(names.items()) if "_" not in code}


@cache
def language(code: str) -> Language:
    """Look up the language of a code.

    Args:
        code: A two- or three-letter code, alone or with script and region ("sw", "swh_Latn", "zh-Hant", "AR_XY",
            "pt_br"), or CLDR's English name ("Albanian"), in any case.

    Raises:
        CalibrationValueError: The code names no language that CLDR or our tables know.
    """
    first, *rest = code.replace("-", "_").split("_")
    word = code.lower().replace("_", " ") if len(first) > 3 or first.lower() in _SPELLINGS else first.lower()
    word = _SPELLINGS.get(word, word)
    if len(word) > 3:
        word = _code_of_name().get(word, word)
    key = _aliases().get(word, word)
    english = _NAMES.get(key) or Locale("en").languages.get(key)
    if english is None or not word.isalpha():
        raise CalibrationValueError(
            f"unknown language code {code!r}: expected an ISO 639 code, alone or with script and region "
            "('sw', 'swh_Latn', 'pt_br'), or an English name ('Albanian')"
        )
    likely = get_global("likely_subtags").get(key, "")
    script = next((part.title() for part in rest if len(part) == 4), None)
    locale_name = normalize_locale(f"{key}_{script}") if script else None
    if locale_name is None and exists(key):
        locale_name = key
    own_name = Locale.parse(locale_name).languages.get(key) if locale_name else None
    iso639_3 = word if len(word) == 3 and word not in _NOT_ISO639_3 - {"twi"} else _iso639_3_of().get(key, key)
    resource_class = _CLASS_OF.get(key)
    return Language(
        code=code,
        iso639_3=iso639_3,
        name=english,
        own_name=own_name,
        script=script or (likely.split("_")[1] if likely.count("_") else None),
        family=_FAMILY_OF.get(key),
        resource_class=resource_class,
        tier=None if resource_class is None else tier(resource_class),
    )


def tier(resource_class: int) -> str:
    """The resource tier of a class of Joshi et al. 2020: "high" (4, 5), "mid" (3) or "low" (0 to 2)."""
    if resource_class not in _CLASSES:
        raise CalibrationValueError(f"resource_class: expected 0 to 5, got {resource_class!r}")
    return "high" if resource_class >= 4 else "mid" if resource_class == 3 else "low"
