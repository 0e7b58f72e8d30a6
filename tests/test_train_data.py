"""Rows to tokens and labels: each form, each fault, both templates."""

from __future__ import annotations

import gzip
import json
import os

import pytest

pytest.importorskip("trl")
import tiny_model
from datasets import Dataset

from lm_eval_calib.train.config import TuneArguments
from lm_eval_calib.train.data import BadRowError, DataError, Report, parse, read_rows
from lm_eval_calib.train.tokens import Tokens, choose_template, prepare

TOKENIZER = tiny_model.tokenizer()
CHAT = tiny_model.tokenizer(chat=True)
QA = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"instruction": "Q?", "input": "", "output": "A."}, QA),
        ({"instruction": "Q?", "output": "A."}, QA),
        ({"instruction": "Q?", "input": "X", "response": "A."}, [{"role": "user", "content": "Q?\n\nX"}, QA[1]]),
        ({"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]}, QA),
        (
            {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}], "system_prompt": "S"},
            [{"role": "system", "content": "S"}, *QA],
        ),
        ({"messages": QA, "source": "tulu"}, QA),
        ({"prompt": QA[:1], "completion": QA[1:]}, QA),
    ],
)
def test_forms_of_a_conversation(row, messages):
    assert parse(row).messages == messages


def test_forms_that_stand_as_they_are():
    example = parse({"prompt": "2+2=", "completion": "4"})
    assert (example.text, example.spans) == ("2+2=4", ((4, 5),))
    example = parse({"text": "Once upon a time."})
    assert (example.text, example.spans) == ("Once upon a time.", ((0, 17),))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1], "not an object"),
        ({"question": "Q?", "answer": "A."}, "wrong keys: answer, question"),
        ({"instruction": "Q?", "output": " "}, "empty answer"),
        ({"instruction": "", "output": "A."}, "empty prompt"),
        ({"instruction": "Q?", "output": None}, "a turn that is not text"),
        ({"messages": QA[:1]}, "no assistant turn"),
        ({"messages": QA[1:]}, "an answer without a prompt"),
        ({"messages": [{"role": "wizard", "content": "Q?"}]}, "unknown role 'wizard'"),
        ({"messages": [{"from": "human", "value": "Q?"}]}, "wrong keys for messages"),
        ({"messages": None}, "wrong keys for messages"),
        ({"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": ""}]}, "empty answer"),
        ({"prompt": "2+2=", "completion": ""}, "empty answer"),
        ({"text": ""}, "empty answer"),
    ],
)
def test_faults_have_names(row, reason):
    with pytest.raises(BadRowError) as caught:
        parse(row)
    assert str(caught.value) == reason


def encode(row, tokenizer=TOKENIZER, template="plain", max_length=200, train_on_prompt=False):
    report = Report()
    pairs = list(Tokens(tokenizer, template, max_length, train_on_prompt).encode([("here", parse(row))], report))
    return pairs, report


def learned(pair):
    ids, labels = pair
    assert len(ids) == len(labels)
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    return [label for label in labels if label != -100]


def test_plain_template():
    row = {"messages": [{"role": "system", "content": "Be brief."}, *QA, *QA]}
    (pair,), report = encode(row)
    question = "### Instruction:\nQ?\n\n### Response:\nA.</s>"
    assert TOKENIZER.decode(pair[0]) == f"Be brief.\n\n{question}\n\n{question}"
    assert TOKENIZER.decode(learned(pair)) == "A.</s>A.</s>"
    assert (report.used, report.tokens, report.answer_tokens) == (1, len(pair[0]), len(learned(pair)))


def test_chat_template():
    (pair,), _ = encode({"messages": [*QA, *QA]}, CHAT, "chat")
    assert CHAT.decode(pair[0]) == "<|user|>Q?</s><|assistant|>A.</s>" * 2
    assert CHAT.decode(learned(pair)) == "A.</s>A.</s>"
    expected = CHAT.apply_chat_template([*QA, *QA], return_dict=True, return_assistant_tokens_mask=True)
    assert pair[0] == expected["input_ids"]
    assert [int(label != -100) for label in pair[1]] == expected["assistant_masks"]


def test_chat_template_without_markers_or_with_a_rewritten_past():
    plain = tiny_model.tokenizer(chat=True)
    plain.chat_template = plain.chat_template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    (pair,), _ = encode({"messages": [*QA, *QA]}, plain, "chat")
    assert plain.decode(learned(pair)) == "A.</s>A.</s>"
    # Shows the last turn alone, as templates do that drop the reasoning of earlier ones.
    plain.chat_template = "{{ messages[-1]['content'] }}"
    pairs, report = encode({"messages": [*QA, *QA]}, plain, "chat")
    assert pairs == []
    assert report.bad == {"the chat template rewrites earlier turns": 1}
    plain.chat_template = "{{ raise_exception('roles must alternate') }}"
    _, report = encode({"messages": QA}, plain, "chat")
    assert report.bad == {"refused by the chat template: roles must alternate": 1}


def test_verbatim_forms():
    (pair,), _ = encode({"prompt": "What is it?", "completion": " It is"})
    assert TOKENIZER.decode(pair[0]) == "What is it? It is</s>"
    assert TOKENIZER.decode(learned(pair)) == " It is</s>"
    (pair,), _ = encode({"text": "It is"})
    assert TOKENIZER.decode(learned(pair)) == "It is</s>"
    (pair,), _ = encode({"prompt": "What is it?", "completion": " It is"}, train_on_prompt=True)
    assert TOKENIZER.decode(learned(pair)) == "What is it? It is</s>"


def test_token_over_the_border_belongs_to_the_answer():
    word = max((w for w in TOKENIZER.get_vocab() if w.isascii() and w.isalpha()), key=len)
    assert len(word) > 2
    assert len(TOKENIZER(word)["input_ids"]) == 1
    (pair,), _ = encode({"prompt": f"?{word[:2]}", "completion": word[2:]})
    assert TOKENIZER.decode(learned(pair)) == f"{word}</s>"


def test_a_tokenizer_that_adds_special_tokens():
    from tokenizers.processors import TemplateProcessing

    made = tiny_model.tokenizer()
    made._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", made.bos_token_id), ("</s>", made.eos_token_id)]
    )
    (pair,), _ = encode({"text": "It is"}, made)
    assert made.decode(pair[0]) == "<s>It is</s>"
    assert pair[1][0] == -100


def test_other_scripts_keep_their_places():
    (pair,), _ = encode({"prompt": "日本の首都は", "completion": "東京 🗼 é"})
    assert TOKENIZER.decode(learned(pair)) == "東京 🗼 é</s>"


def test_too_long():
    row = {"prompt": "What is the capital " * 10, "completion": " It is"}
    (pair,), report = encode(row, max_length=None)
    whole, answer = len(pair[0]), len(learned(pair))
    (pair,), report = encode(row, max_length=whole - answer + 1)
    assert len(learned(pair)) == 1
    assert report.truncated == 1
    pairs, report = encode(row, max_length=whole - answer)
    assert pairs == []
    assert report.bad == {"no answer token within max_length": 1}
    assert report.used == 0


def write(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


GOOD = [{"instruction": f"What is {i}?", "output": f"It is {i}."} for i in range(20)]


def test_prepare_counts_and_maps(tmp_path):
    source = write(tmp_path / "a.jsonl", [*GOOD, "not json\n", {"instruction": "Q?", "output": ""}])
    arguments = TuneArguments(train_data=[source], max_bad_rows=0.1)
    report = prepare([source], arguments, TOKENIZER, 64, 0, tmp_path / "x.arrow")
    data = Dataset.from_file(str(tmp_path / "x.arrow"))
    assert (report.rows, report.used, len(data)) == (22, 20, 20)
    assert report.bad == {"not JSON": 1, "empty answer": 1}
    assert report.examples == {"not JSON": "a.jsonl line 21", "empty answer": "a.jsonl line 22"}
    assert TOKENIZER.decode(data[3]["input_ids"]).endswith("### Response:\nIt is 3.</s>")
    assert sum(len(row["input_ids"]) for row in data) == report.tokens
    assert len(report.sources[0]["sha256"]) == 64
    assert not list(tmp_path.glob("*.partial"))
    again = prepare([source], arguments, TOKENIZER, 64, 0, tmp_path / "y.arrow")
    assert again.hash == report.hash
    other = prepare([write(tmp_path / "b.jsonl", GOOD[:-1])], arguments, TOKENIZER, 64, 0, tmp_path / "z.arrow")
    assert other.hash != report.hash


def test_too_many_bad_rows_are_refused_by_name(tmp_path):
    source = write(tmp_path / "a.jsonl", [*GOOD, "not json\n", {"instruction": "Q?", "output": ""}])
    arguments = TuneArguments(train_data=[source])
    with pytest.raises(DataError) as caught:
        prepare([source], arguments, TOKENIZER, 64, 0, tmp_path / "x.arrow")
    for part in ("2 of 22", "1 x not JSON (first: a.jsonl line 21)", "1 x empty answer", "max_bad_rows"):
        assert part in str(caught.value)
    assert not (tmp_path / "x.arrow").exists()
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match="got none"):
        prepare([empty], arguments, TOKENIZER, 64, 0, tmp_path / "x.arrow")


def test_a_seeded_sample(tmp_path):
    source = write(tmp_path / "a.jsonl", GOOD)
    arguments = TuneArguments(train_data=[source], max_train_samples=5)
    hashes = [prepare([source], arguments, TOKENIZER, 64, seed, tmp_path / "x.arrow").hash for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert prepare([source], arguments, TOKENIZER, 64, 0, tmp_path / "x.arrow").rows == 5


def test_file_kinds(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = write(tmp_path / "a.jsonl", GOOD)
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write((tmp_path / "a.jsonl").read_text())
    (tmp_path / "bom.jsonl").write_text((tmp_path / "a.jsonl").read_text(), encoding="utf-8-sig")
    pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "a.parquet")
    expected = [row for _, row in read_rows(lines)]
    assert expected == GOOD
    for name in ("a.json", "a.jsonl.gz", "bom.jsonl", "a.parquet"):
        assert [row for _, row in read_rows(str(tmp_path / name))] == GOOD, name
    (tmp_path / "cut.json").write_text('[{"instruction": ')
    for name, words in (("cut.json", "cannot be read"), ("none.jsonl", "does not exist")):
        with pytest.raises(DataError, match=words):
            list(read_rows(str(tmp_path / name)))


def test_a_folder_as_on_the_hub(tmp_path, monkeypatch):
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    write(folder / "rows.jsonl", GOOD)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n  - split: train\n    path: rows.jsonl\n---\n"
    )
    monkeypatch.chdir(tmp_path)
    for source in ("owner/name", "owner/name:small", "owner/name:small:train"):
        if source == "owner/name" or not os.path.isdir(source):  # noqa: PTH112
            assert [row for _, row in read_rows(source)] == GOOD
    with pytest.raises(DataError, match="nobody/nothing is no local file and could not be loaded"):
        list(read_rows("nobody/nothing"))


def test_templates_are_chosen_or_refused():
    assert choose_template("auto", TOKENIZER) == "plain"
    assert choose_template("auto", CHAT) == "chat"
    assert choose_template("plain", CHAT) == "plain"
    with pytest.raises(DataError, match="chat_template_path"):
        choose_template("chat", TOKENIZER)


def test_shared_instruction_data(shared_data, tmp_path):
    """The real files: every row has a form, and next to none is unusable."""
    for name, rows in (("alpaca_en_999", 999), ("gpteacher_roleplay_3146", 3146), ("gsm8k_train", 7473)):
        source = str(shared_data / "sft" / f"{name}.jsonl")
        report = prepare([source], TuneArguments(train_data=[source]), TOKENIZER, 2048, 0, tmp_path / "x.arrow")
        assert report.rows == rows
        assert report.used >= 0.99 * rows
