"""`--model hf-calib` against `--model hf`: the harness's rules around the same model."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.scoring import SharedPrefixLM, model
from lm_eval_calib.scoring.encode import PairEncoder
from lm_eval_calib.scoring.tokens import LogLikelihood, with_token_counts

Pair = tuple[str, str]


def both(folder: Path, **options: Any) -> tuple[HFLM, SharedPrefixLM]:
    options = {"pretrained": str(folder), "device": "cpu", "dtype": "float32", **options}
    return HFLM(**options), SharedPrefixLM(**options)


def instances(pairs: list[Pair]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, i, ("task", i, 1)) for i, pair in enumerate(pairs)]


def assert_same(hf: HFLM, ours: SharedPrefixLM, pairs: list[Pair]) -> list[Any]:
    expected = hf.loglikelihood(instances(pairs), disable_tqdm=True)
    found = ours.loglikelihood(instances(pairs), disable_tqdm=True)
    np.testing.assert_allclose([a for a, _ in found], [a for a, _ in expected], atol=1e-4, rtol=0)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    return found


def few_shot_pairs(questions: int = 6) -> list[Pair]:
    shots = "".join(f"Swali: {i} na {i}?\nJibu: {2 * i}\n\n" for i in range(1, 6))
    pairs = [
        (f"{shots}Swali: {i} na 3?\nJibu:", f" {answer}") for i in range(questions) for answer in ("saba", "8", "9")
    ]
    return [*pairs, ("", "Habari ya asubuhi"), ("peke yake ", "hapa"), ("Ü ñ ", "漢字"), pairs[0]]


@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_equal_to_hf(tiny_model: Path, add_bos_token: bool | None) -> None:
    hf, ours = both(tiny_model, add_bos_token=add_bos_token)
    found = assert_same(hf, ours, few_shot_pairs())
    assert [likelihood.num_tokens for likelihood, _ in found[-4:-1]] == [17, 5, 7]  # bytes; the space moves over
    work = ours._engine.work
    assert work.run < 0.4 * work.asked


def test_truncation_is_that_of_hf(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    hf, ours = both(tiny_model, max_length=40)
    pairs = [*few_shot_pairs(), ("x" * 39, "y" * 2), ("x" * 39, "y" * 40), ("x" * 38, "y" * 2), ("ab", "y" * 38)]
    with caplog.at_level(logging.WARNING):
        assert_same(hf, ours, pairs)
    assert "are longer than max_length=40" in caplog.text


def test_windows_of_requests_give_the_same(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_WINDOW_REQUESTS", 4)
    hf, ours = both(tiny_model)
    assert_same(hf, ours, few_shot_pairs()[::-1])


def test_characters_bound_a_window_too() -> None:
    pairs = [("a" * (1 << 24), "b")] * 3
    assert [len(window) for window in model._windows(pairs)] == [1, 1, 1]
    assert list(model._windows([("c", "1"), ("a", "2")])) == [[0, 1]]
    assert list(model._windows([])) == []


texts = st.text(alphabet=st.sampled_from("aB 9?\n\té漢"), max_size=12)
with_bos = st.builds(lambda text, bos: ("<s>" if bos else "") + text, texts, st.booleans())


@settings(max_examples=150, deadline=None)
@given(
    pairs=st.lists(st.tuples(with_bos, texts.map("x".__add__)), min_size=1, max_size=6),
    bos=st.sampled_from([None, True, False]),
)
def test_pairs_become_the_tokens_of_hf(lms: tuple[HFLM, SharedPrefixLM], pairs: list[Pair], bos: bool | None) -> None:
    hf, ours = lms
    hf.add_bos_token = ours.add_bos_token = bos
    taken: list[Any] = []
    hf._loglikelihood_tokens = lambda requests, **_: taken.extend(requests)  # type: ignore[method-assign]
    hf.loglikelihood(instances(pairs), disable_tqdm=True)
    for (context, continuation), (_, expected_context, expected_continuation) in zip(
        PairEncoder(ours)(pairs), taken, strict=True
    ):
        assert context.tolist() == expected_context
        assert continuation.tolist() == expected_continuation


@pytest.fixture(scope="module", params=["bytes", "merges"])
def lms(request: pytest.FixtureRequest, tiny_model: Path) -> tuple[HFLM, SharedPrefixLM]:
    hf, ours = both(tiny_model)
    if request.param == "merges":  # A tokenizer whose tokens reach over the boundary of context and continuation.
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        tokenizer.train_from_iterator(["xa B9?aB xx \n\ta? x9"] * 4, trainer)
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
        hf.tokenizer = ours.tokenizer = fast
    return hf, ours


def test_a_tokenizer_whose_batches_differ_is_asked_one_by_one(tiny_model: Path) -> None:
    hf, ours = both(tiny_model)

    class Odd(transformers.PreTrainedTokenizerFast):
        def __call__(self, *args: Any, **_: Any) -> Any:
            return {"input_ids": [[5] for _ in args[0]]}

    odd = Odd.from_pretrained(tiny_model)
    ours.tokenizer = odd
    assert_same(hf, ours, few_shot_pairs(2))


def test_generation_and_rolling_are_those_of_hf(tiny_model: Path) -> None:
    hf, ours = both(tiny_model, batch_size=2)
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0, ("t", 0, 1)) for text in ("Habari", "ya leo" * 9)]
    assert ours.loglikelihood_rolling(rolling) == hf.loglikelihood_rolling(rolling)
    options = {"until": ["\n"], "max_gen_toks": 8}
    generate = [Instance("generate_until", {}, (text, options), 0, ("t", 0, 1)) for text in ("Moja, mbili,", "Tatu")]
    assert ours.generate_until(generate) == hf.generate_until(generate)
    # And scoring leaves nothing behind in the model.
    assert_same(hf, ours, few_shot_pairs(2))
    assert ours.generate_until(generate) == hf.generate_until(generate)
    assert not ours.model.lm_head._forward_pre_hooks


@pytest.mark.parametrize("kind", ["lora", "lora-on-head", "prompt-tuning"])
def test_adapters(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    if kind == "prompt-tuning":
        config: Any = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    else:
        targets = ["q_proj", "v_proj"] + ["lm_head"] * (kind == "lora-on-head")
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=targets, init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    hf, ours = both(tiny_model, peft=str(tmp_path / "adapter"))
    plain, _ = both(tiny_model)
    found = assert_same(hf, ours, few_shot_pairs(3))
    assert (ours._engine.plan is not None) == (kind != "prompt-tuning")
    without = plain.loglikelihood(instances(few_shot_pairs(3)), disable_tqdm=True)
    assert max(abs(a[0] - b[0]) for a, b in zip(found, without, strict=True)) > 0.01


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rope_that_changes_with_length(tiny_model: Path, kind: str, tmp_path: Path) -> None:
    rope: dict[str, Any] = {
        "rope_type": kind,
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 150,
    }
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    config = transformers.AutoConfig.from_pretrained(tiny_model)
    config.rope_parameters, config.max_position_embeddings = rope, 600
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    hf, ours = both(tmp_path)
    pairs = [
        pair for i in range(3) for pair in ((f"{'ab' * 80}{i}", "c"), (f"{'ab' * 80}{i}", "dd"), (f"short {i}", "c"))
    ]
    assert_same(hf, ours, pairs)


def test_the_cache_gets_plain_numbers_as_they_come(tiny_model: Path) -> None:
    ours = both(tiny_model)[1]
    hook = CacheHook(None)
    kept: dict[Any, Any] = {}
    hook.add_partial = lambda attribute, pair, answer: kept.update({(attribute, pair): answer})  # type: ignore[method-assign]
    ours.set_cache_hook(hook)
    pairs = few_shot_pairs(2)
    found = ours.loglikelihood(instances(pairs), disable_tqdm=True)
    assert kept == {("loglikelihood", pair): answer for pair, answer in zip(pairs, found, strict=True)}
    likelihood, greedy = pickle.loads(pickle.dumps(found[0]))
    assert type(likelihood) is float
    assert (likelihood, greedy) == found[0]
    assert str(found[0][0]) == repr(found[0][0]) == str(likelihood)


def test_replayed_responses_get_their_token_counts(tiny_model: Path) -> None:
    ours = both(tiny_model)[1]
    asked = instances(few_shot_pairs(2))
    answers = ours.loglikelihood(asked, disable_tqdm=True)
    for instance, (likelihood, greedy) in zip(asked, answers, strict=True):
        instance.resps = [(float(likelihood), greedy)]
    with_token_counts(asked)
    assert [x.resps[0][0].num_tokens for x in asked] == [likelihood.num_tokens for likelihood, _ in answers]
    assert [x.resps[0] for x in asked] == answers


@pytest.mark.parametrize("pair", [("context", ""), ("context", "y" * 41)])
def test_continuations_that_cannot_be_scored(tiny_model: Path, pair: Pair) -> None:
    ours = both(tiny_model, max_length=40)[1]
    with pytest.raises(
        CalibrationValueError, match=r"expected a context of at least one token and a continuation of 1"
    ):
        ours.loglikelihood(instances([("fine", " ok"), pair]), disable_tqdm=True)


def test_options_are_checked(tiny_model: Path) -> None:
    for option in ("batch_tokens", "row_tokens"):
        for value in (0, "many", -3):
            with pytest.raises(CalibrationValueError, match=option):
                SharedPrefixLM(pretrained=str(tiny_model), device="cpu", **{option: value})
    ours = SharedPrefixLM.create_from_arg_string(
        f"pretrained={tiny_model},batch_tokens=64,row_tokens=32,share_prefixes=False", {"device": "cpu"}
    )
    assert ours._engine.budget.limits.tokens == 64
    assert ours._engine.plan is None


YAML = """
class: !function lm_eval_calib.harness.CalibratedTask
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
fewshot_split: test
fewshot_config:
  sampler: first_n
num_fewshot: 3
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metadata:
  normalization: token
"""


@pytest.fixture
def sums(tmp_path: Path) -> TaskManager:
    rows = [{"question": f"{i}+{i}?", "choices": [str(2 * i), "none of these", "ab"], "gold": 0} for i in range(12)]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.yaml").write_text(YAML.format(data=data), encoding="utf-8")
    return TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)


def likelihoods(found: Any) -> list[list[float]]:
    samples = sorted(found["samples"]["sums"], key=lambda row: row["doc_id"])
    return [[float(response[0][0]) for response in row["resps"]] for row in samples]


def test_a_run_with_chat_template_limit_and_cache(tiny_model: Path, sums: TaskManager, tmp_path: Path) -> None:
    hf, ours = both(tiny_model)
    common = {"tasks": ["sums"], "task_manager": sums, "limit": 8, "bootstrap_iters": 0}
    common |= {"apply_chat_template": True, "fewshot_as_multiturn": True}
    stock = lm_eval.simple_evaluate(model=hf, **common, metadata={"normalization": "none"})
    cached = {**common, "use_cache": str(tmp_path / "cache")}
    first = lm_eval.simple_evaluate(model=ours, **cached)
    asked = ours._engine.work.asked
    replay = lm_eval.simple_evaluate(model=ours, **cached)
    assert ours._engine.work.asked == asked > 0  # Nothing was run again, not even to count tokens.
    np.testing.assert_allclose(likelihoods(first), likelihoods(stock), atol=1e-4)
    assert likelihoods(replay) == likelihoods(first)
    assert replay["results"] == first["results"]
    # The confidence is that of likelihoods per token, which here are bytes.
    confidence = []
    for row, values in zip(first["samples"]["sums"], likelihoods(first), strict=True):
        lengths = [len(argument[1].encode()) for argument in row["arguments"]]
        per_token = np.exp(np.array(values) / lengths)
        confidence.append(per_token.max() / per_token.sum())
    assert first["results"]["sums"]["confidence,none"] == pytest.approx(np.mean(confidence), abs=1e-9)


WORKER = """
import json, sys
import accelerate
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from lm_eval_calib.scoring import SharedPrefixLM
model, tasks, out = sys.argv[1:]
accelerator = accelerate.Accelerator(cpu=True)
lm = SharedPrefixLM(pretrained=model, device="cpu", dtype="float32")
# HFLM does this when there are several GPUs.
lm.accelerator = accelerator
lm._rank, lm._world_size = accelerator.process_index, accelerator.num_processes
assert lm._world_size == 2
tasks = TaskManager(include_path=tasks, include_defaults=False).load(["sums"])
found = evaluator.evaluate(lm, tasks, limit=7, bootstrap_iters=0)
if lm.rank == 0:
    json.dump({"results": found["results"], "samples": found["samples"]}, open(out, "w"), default=str)
"""


def test_two_processes_share_the_documents(tiny_model: Path, sums: TaskManager, tmp_path: Path) -> None:
    """As under `accelerate launch`, which starts its processes with torchrun too."""
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    inputs = [tmp_path / "worker.py", tiny_model, tmp_path / "tasks", tmp_path / "out.json"]
    done = subprocess.run([*launch, *map(str, inputs)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-9000:]
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    alone = lm_eval.simple_evaluate(
        model=both(tiny_model)[1], tasks=["sums"], task_manager=sums, limit=7, bootstrap_iters=0
    )
    assert len(likelihoods(found)) == 7
    np.testing.assert_allclose(likelihoods(found), likelihoods(alone), atol=1e-4)
    for metric in ("ece,none", "confidence,none"):  # By tokens, whose counts each process keeps for itself.
        assert found["results"]["sums"][metric] == pytest.approx(alone["results"]["sums"][metric], abs=1e-6)


def test_token_counts_survive_arithmetic_only_as_floats() -> None:
    likelihood = LogLikelihood(-2.5, 3)
    assert likelihood.num_tokens == 3
    assert likelihood == -2.5
    assert type(likelihood + 1) is float
    assert json.dumps({"a": likelihood}) == '{"a": -2.5}'
