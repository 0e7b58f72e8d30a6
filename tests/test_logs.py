"""Real logs of lm-eval 0.4.2 to 0.4.13 (tests/logs), and broken ones."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm_eval_calib.errors import CalibrationError, CalibrationValueError
from lm_eval_calib.logfiles import sources
from lm_eval_calib.logs import load_predictions
from lm_eval_calib.predictions import Predictions

LOGS = Path(__file__).parent / "logs"
RELEASES = ("0.4.2", "0.4.3", "0.4.5", "0.4.7", "0.4.9.2", "0.4.12", "0.4.13")
QUESTIONS = {
    "localxnli_sw": 8,
    "ragged": 7,
    "ragged_mutual": 7,
    "multigold": 6,
    "wino": 4,
    "localbelebele_swh_Latn": 6,
}


def hashed(context: str, continuation: str) -> float:
    """The log-likelihood that the logs' model gives (see tests/logs/README.md)."""
    digest = hashlib.sha256(f"{context}\0{continuation}".encode()).digest()
    return -(int.from_bytes(digest[:6], "big") / 2**48) * 9 - 0.01


def rows(predictions: Predictions) -> list[dict[str, Any]]:
    dropped = {"source", "line", "run", "model"}
    table = predictions.table.drop_columns(sorted(dropped)).to_pylist()
    return sorted(table, key=lambda row: (row["task"], row["doc_id"]))


@pytest.fixture(scope="module")
def newest() -> Predictions:
    return load_predictions(LOGS / "0.4.13", progress=False)


def samples(release: str, task: str) -> Path:
    return next((LOGS / release).rglob(f"*_{task}*.jsonl"))


@pytest.mark.parametrize("release", RELEASES)
def test_releases_read_alike(release: str, newest: Predictions) -> None:
    told = load_predictions(LOGS / release, progress=False)
    assert rows(told) == rows(newest)
    assert {task.task: task.questions for task in told.tasks} == {**QUESTIONS, "gen_free": 0}
    unusable = {problem.task: problem.count for problem in told.problems}
    assert unusable["gen_free"] == 7
    # Before 0.4.7 rows do not name their filter, so that the second filter's are repetitions.
    if release in ("0.4.2", "0.4.3", "0.4.5"):
        assert unusable == {"gen_free": 7, "localbelebele_swh_Latn": 6}
    else:
        assert unusable == {"gen_free": 7}
        assert any("6 rows of other filters" in note for note in told.notes)


def test_the_table_holds_what_the_documents_say(newest: Predictions) -> None:
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in newest.table.to_pylist():
        by_task.setdefault(row["task"], []).append(row)
    for task, count in QUESTIONS.items():
        logged = {entry["doc_id"]: entry for entry in map(json.loads, samples("0.4.13", task).open(encoding="utf-8"))}
        assert len(by_task[task]) == count
        for row in by_task[task]:
            entry = logged[row["doc_id"]]
            doc, arguments = entry["doc"], list(entry["arguments"].values())
            gold = {
                "localxnli_sw": lambda d: [d["label"]],
                "ragged": lambda d: [d["options"].index(d["answer"])],
                "ragged_mutual": lambda d: [d["options"].index(d["answer"])],
                "multigold": lambda d: d["gold"],
                "wino": lambda d: [int(d["answer"]) - 1],
                "localbelebele_swh_Latn": lambda d: [int(d["num"]) - 1],
            }[task](doc)
            assert row["gold"] == gold
            choices = doc.get("options") or doc.get("choices") or arguments
            conditional = arguments[: len(choices)]
            assert row["log_likelihoods"] == [hashed(a["arg_0"], a["arg_1"]) for a in conditional]
            if task == "wino":
                assert row["choice_chars"] is None
            else:
                texts = [a["arg_1"][1:] for a in conditional]
                assert row["choice_chars"] == [len(text) for text in texts]
                assert row["choice_bytes"] == [len(text.encode()) for text in texts]
            assert row["subject"] == doc.get("subject")
            assert row["doc_hash"] == entry["doc_hash"]
    assert {row["language"] for row in by_task["localxnli_sw"]} == {"sw"}
    assert {row["tier"] for row in by_task["localbelebele_swh_Latn"]} == {"low"}
    assert {row["language"] for row in by_task["ragged"]} == {None}
    assert {task.task: (task.version, task.num_fewshot) for task in newest.tasks}["ragged"] == ("2.0", 0)
    assert all(task.disagreements == 0 for task in newest.tasks)


def test_hashes_of_0_4_2_are_those_of_later_releases(newest: Predictions) -> None:
    assert "doc_hash" not in samples("0.4.2", "ragged").read_text(encoding="utf-8")
    old = load_predictions(LOGS / "0.4.2", progress=False)
    for name in ("doc_hash", "prompt_hash", "target_hash"):
        assert sorted(old.column(name)) == sorted(newest.column(name))
        assert all(len(value) == 64 for value in old.column(name))


def test_chat_template_has_no_delimiter() -> None:
    chat = load_predictions(LOGS / "chat", progress=False)
    by_task = {row["task"]: row for row in chat.table.to_pylist() if row["doc_id"] == 0}
    assert by_task["ragged"]["choice_chars"] == [len("seventeen"), len("six teen")]
    assert by_task["wino"]["gold"] == [0]
    (task,) = [task for task in chat.tasks if task.task == "ragged"]
    assert (task.num_fewshot, task.model) == (2, "org/hashed")


def test_probabilities_by_normalization(newest: Predictions) -> None:
    xnli = newest.select(newest.column("task") == "localxnli_sw")
    likelihoods, lengths = xnli.table["log_likelihoods"].to_pylist(), xnli.table["choice_bytes"].to_pylist()
    for normalization, divisors in (("none", [[1] * 3] * 8), ("byte", lengths)):
        scores = np.array(likelihoods) / np.array(divisors)
        expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(xnli.probabilities(normalization=normalization), expected, rtol=1e-12)
    with pytest.raises(CalibrationValueError, match="--tokenizer"):
        xnli.probabilities(normalization="token")
    wino = newest.select(newest.column("task") == "wino")
    with pytest.raises(CalibrationValueError, match=r"4 questions.*task wino.*normalization none"):
        wino.probabilities(normalization="char")
    with pytest.raises(CalibrationValueError, match="none, char, byte, token"):
        wino.probabilities(normalization="length")


def test_parquet_pandas_polars(newest: Predictions, tmp_path: Path) -> None:
    path = newest.write_parquet(tmp_path / "deep" / "predictions.parquet")
    again = load_predictions(path)
    assert again.table.schema.equals(newest.table.schema)
    assert again.table.to_pylist() == newest.table.to_pylist()
    assert (again.tasks, again.problems, again.notes) == (newest.tasks, newest.problems, newest.notes)
    assert load_predictions({"base": path}).runs == ("base",)
    assert len(newest.to_pandas()) == len(newest.to_polars()) == len(newest) == sum(QUESTIONS.values())
    assert list(newest.to_polars()["gold"][0]) == list(newest.to_pandas()["gold"][0])
    assert [p.name for p in path.parent.iterdir()] == ["predictions.parquet"]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CalibrationValueError, match="expected a predictions table"):
        load_predictions(path)


def test_what_may_be_given(tmp_path: Path) -> None:
    folder = LOGS / "0.4.13" / "org__hashed"
    results = next(folder.glob("results*.json"))
    assert rows(load_predictions(results)) == rows(load_predictions(folder)) == rows(load_predictions([folder]))
    one = load_predictions(samples("0.4.13", "ragged"))
    assert len(one) == 7
    assert one.runs == ("org__hashed",)
    two = load_predictions({"old": LOGS / "0.4.3", "new": LOGS / "0.4.13"})
    assert two.runs == ("old", "new")
    assert load_predictions([LOGS / "0.4.3", LOGS / "0.4.13"]).runs == (
        "0.4.3/org__hashed",
        "0.4.13/org__hashed",
    )
    packed = tmp_path / (samples("0.4.13", "ragged").name + ".gz")
    packed.write_bytes(gzip.compress(samples("0.4.13", "ragged").read_bytes()))
    assert rows(load_predictions(packed)) == rows(one)
    assert load_predictions(samples("0.4.13", "ragged"), languages={"rag*": "fr"}).column("tier")[0] == "high"
    with pytest.raises(CalibrationValueError, match="'qqq'"):
        load_predictions(folder, languages={"ragged": "qqq"})
    assert sources(["a=b", "c=d", "c=e"]) == {"a": ["b"], "c": ["d", "e"]}
    assert sources(["x", "./a=b"]) == ["x", "./a=b"]
    with pytest.raises(CalibrationValueError, match="a name"):
        sources(["a=b", "d"])


def test_the_latest_log_of_a_task_counts(tmp_path: Path) -> None:
    source = samples("0.4.13", "ragged")
    shutil.copy(source, tmp_path / "samples_ragged_2026-11-24T01-49-44.346944.jsonl")
    older = source.read_text(encoding="utf-8").splitlines()[:2]
    (tmp_path / "samples_ragged_2025-01-01T00-00-00.jsonl").write_text("\n".join(older), encoding="utf-8")
    told = load_predictions(tmp_path)
    assert len(told) == 7
    assert told.notes == (f"{tmp_path.name}: 1 older sample log of the same tasks passed over",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "no such file"),
        ("empty", {}, "found no sample logs"),
        ("other.json", "{}", "expected a sample log"),
        ("results_2026-01-01T00-00-00.json", "{}", "found no sample logs of this evaluation"),
        ("a.jsonl", "\ufeff{}".encode("utf-16"), "UTF-16"),
        ("b.jsonl", '[{"doc_id": 0', "not valid JSON"),
    ],
)
def test_what_is_no_log_is_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, dict):
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CalibrationValueError, match=message) as error:
        load_predictions(path)
    assert str(path) in str(error.value)


def edited(**changes: Any) -> str:
    """The first row of a real log with some keys changed; `...` removes one."""
    row = json.loads(samples("0.4.13", "ragged").open(encoding="utf-8").readline())
    row.update(changes)
    if "filtered_resps" in changes and "resps" not in changes:
        row.pop("resps")
    return json.dumps({key: value for key, value in row.items() if value is not ...}, ensure_ascii=False)


NO, YES = ["-1", "False"], ["-2", "True"]
ALONE = {"gen_args_0": {"arg_0": "", "arg_1": "a"}}
BROKEN = {
    "corrupt": ["{", "", edited()[:-30], '{"doc_id": 0}}', "\x00\x00", "[" * 100_000],
    "malformed": [
        *("3", "null", "[]", '{"doc_id": 0}'),
        *(edited(doc_id=value) for value in ("one", -1, 1e300, ..., None)),
        *(edited(filtered_resps=value) for value in ({}, [[None, "False"], NO], [["-1"], ["-2"]])),
        *(edited(filtered_resps=[[value, "False"], NO]) for value in ("tensor(-1.)", "-1e999", True)),
        *(edited(target=...), edited(doc_hash=3), edited(doc_hash="12"), edited(arguments=3)),
        edited(filter=["none"]),
    ],
    "generation": [
        edited(filtered_resps=["x"]),
        edited(arguments={"gen_args_0": {"arg_0": "a", "arg_1": {"until": []}}}),
    ],
    "mismatch": [
        edited(filtered_resps=[NO]),
        edited(filtered_resps=[NO, NO, NO], acc_mutual_info=1.0),
        edited(acc_mutual_info=1.0),
    ],
    "one_choice": [edited(filtered_resps=[NO], arguments=ALONE)],
    "non_finite": [
        *(edited(filtered_resps=[[value, "False"], NO]) for value in ("-inf", "nan", float("-inf"), "inf")),
        edited(filtered_resps=[["nan", "False"], NO], resps=[[["nan", "False"]], [NO]]),
    ],
    "gold_unknown": [edited(target=value, target_hash=..., acc=...) for value in ("eighteen", {}, "", "[1")],
    "gold_range": [edited(target=value, target_hash=...) for value in ("7", "-1", 2, "[0, 5]", "-100")],
    "damaged": [
        *(edited(target="six teen"), edited(target="0")),
        *(edited(resps=value) for value in ([[NO], [YES]], [], [[], []])),
        edited(filtered_resps=[["-8.9", "False"], NO], resps=json.loads(edited())["resps"]),
    ],
}


@pytest.mark.parametrize(("reason", "line"), [(reason, line) for reason in BROKEN for line in BROKEN[reason]])
def test_broken_rows_are_counted_where_they_stand(tmp_path: Path, reason: str, line: str) -> None:
    from lm_eval_calib.logrows import REASONS

    good = samples("0.4.13", "ragged").read_text(encoding="utf-8").splitlines()
    path = tmp_path / "samples_ragged_2026-01-01T00-00-00.jsonl"
    path.write_text("\n".join([good[0], good[1], line, *good[2:]]) + "\n", encoding="utf-8")
    if not line:
        assert len(load_predictions(path)) == 7
        assert not load_predictions(path).problems
        return
    told = load_predictions(path)
    (problem,) = told.problems
    assert (problem.count, problem.lines, problem.reason) == (1, (3,), REASONS[reason])
    assert f"{path}:3: 1 row not used" in str(problem)
    assert len(told) == 7
    with pytest.raises(CalibrationValueError, match=f"{path.name}:3"):
        load_predictions(path, strict=True)


def damaged(text: bytes, rng: random.Random) -> Iterator[bytes]:
    for _ in range(60):
        data = bytearray(text)
        for _ in range(rng.randint(1, 6)):
            kind, at = rng.randrange(5), rng.randrange(len(data))
            if kind == 0:
                data = data[:at]
            elif kind == 1:
                data[at] = rng.randrange(256)
            elif kind == 2:
                data[at:at] = rng.choice([b"NaN", b"1e999", b"\n", b'"', b"{", b"9" * 400, b"\xff\xfe", b"null"])
            elif kind == 3:
                lines = data.splitlines(keepends=True)
                rng.shuffle(lines)
                data = bytearray(b"".join(lines))
            else:
                del data[at : at + rng.randint(1, 200)]
            if not data:
                break
        yield bytes(data)


@pytest.mark.parametrize("task", ["ragged", "ragged_mutual", "multigold", "wino", "localbelebele_swh_Latn"])
@pytest.mark.parametrize("release", ["0.4.2", "0.4.13"])
def test_damaged_logs_give_rows_of_the_original_or_counts(
    tmp_path: Path, release: str, task: str, newest: Predictions
) -> None:
    original = samples(release, task).read_bytes()
    path = tmp_path / samples(release, task).name
    for results in samples(release, task).parent.glob("results*.json"):
        shutil.copy(results, tmp_path)
    known = {tuple(row["log_likelihoods"]): row["gold"] for row in rows(newest) if row["task"] == task}
    sound = 0
    for data in damaged(original, random.Random(f"{release} {task}")):
        path.write_bytes(data)
        try:
            told = load_predictions(path)
        except CalibrationError as error:
            assert path.name in str(error)  # noqa: PT017
            continue
        counts = told.problems and sum(problem.count for problem in told.problems)
        sound += not counts and len(told) == len(known)
        for row in rows(told):
            # Not one changed digit: the log holds every response twice, and the target's hash.
            gold = known[tuple(row["log_likelihoods"])]
            if release != "0.4.2" or not told.tasks[0].disagreements:
                assert row["gold"] == gold
    assert sound < 40  # most of the damage was seen, the rest was in texts or in the order


def test_subjects_of_a_group_are_one_benchmark(tmp_path: Path) -> None:
    date = "2026-01-01T00-00-00"
    for task in ("mmlu_anatomy", "mmlu_law", "arc_easy", "mmlu_pro_math"):
        shutil.copy(samples("0.4.13", "multigold"), tmp_path / f"samples_{task}_{date}.jsonl")
    groups = {
        "leaderboard": ["mmlu", "arc_easy", "leaderboard"],
        "mmlu": ["mmlu_stem", "mmlu_law"],
        "mmlu_stem": ["mmlu_anatomy"],
        "broken": 3,
    }
    (tmp_path / f"results_{date}.json").write_text(json.dumps({"group_subtasks": groups}))
    told = load_predictions(tmp_path)
    names = dict(
        zip(told.column("task"), zip(told.column("benchmark"), told.column("subject"), strict=True), strict=True)
    )
    assert names == {
        "mmlu_anatomy": ("mmlu", "anatomy"),
        "mmlu_law": ("mmlu", "law"),
        "arc_easy": ("arc_easy", None),
        "mmlu_pro_math": ("mmlu_pro_math", None),
    }


def test_tokens_are_counted_as_the_harness_splits_them(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    log = samples("0.4.13", "ragged")
    texts = log.read_text(encoding="utf-8")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator([texts], trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    told = load_predictions(log, tokenizer=str(tmp_path / "tokenizer"))
    for row in told.table.to_pylist():
        arguments = json.loads(texts.splitlines()[row["line"] - 1])["arguments"].values()
        # lm-eval's _encode_pair: the whole, less the context.
        whole = [len(tokenizer.encode(a["arg_0"] + a["arg_1"])) - len(tokenizer.encode(a["arg_0"])) for a in arguments]
        assert row["choice_tokens"] == whole
    assert told.probabilities(normalization="token").shape == (7, 5)
    with pytest.raises(CalibrationValueError, match="tokenizer: cannot load"):
        load_predictions(log, tokenizer=str(tmp_path / "nothing"))
