"""Log-likelihoods of the scoring engine against each sequence run alone, over architectures and ways of batching."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional
from transformers import PreTrainedModel

from lm_eval_calib.scoring.budget import Budget
from lm_eval_calib.scoring.engine import Engine
from lm_eval_calib.scoring.probe import find_plan, steady_length
from lm_eval_calib.scoring.trie import Request

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # so that attention matters to the logits
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "initializer_range": 0.3}
BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.3}
HALF_SLIDING = ["sliding_attention", "full_attention"] * 2
# name -> (configuration, whether it takes trees). Windows and chunks are shorter than the prefixes.
ARCHITECTURES: dict[str, tuple[Callable[[], Any], bool]] = {
    "llama": (lambda: transformers.LlamaConfig(**SHAPE), True),
    "qwen2": (lambda: transformers.Qwen2Config(**SHAPE), True),
    "qwen2-window": (
        lambda: transformers.Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=10, max_window_layers=2),
        True,
    ),
    "qwen3": (lambda: transformers.Qwen3Config(**SHAPE), True),
    "gemma2": (
        lambda: transformers.Gemma2Config(
            **SHAPE, sliding_window=12, final_logit_softcapping=3.0, attn_logit_softcapping=2.0, query_pre_attn_scalar=8
        ),
        True,
    ),
    "gemma3": (
        lambda: transformers.Gemma3TextConfig(
            **SHAPE, sliding_window=12, layer_types=HALF_SLIDING, query_pre_attn_scalar=8
        ),
        True,
    ),
    "gemma3-window-2": (
        lambda: transformers.Gemma3TextConfig(**SHAPE, sliding_window=2, layer_types=HALF_SLIDING),
        True,
    ),
    "mistral-window": (lambda: transformers.MistralConfig(**SHAPE, sliding_window=9), True),
    "mistral": (lambda: transformers.MistralConfig(**SHAPE, sliding_window=None), True),
    "gpt2": (lambda: transformers.GPT2Config(**GPT2), True),
    "cohere-logit-scale": (lambda: transformers.CohereConfig(**SHAPE, logit_scale=0.3), True),
    "granite-logit-scaling": (lambda: transformers.GraniteConfig(**SHAPE, logits_scaling=2.0), True),
    "llama4-chunks": (
        lambda: transformers.Llama4TextConfig(
            **SHAPE, attention_chunk_size=16, num_local_experts=2, intermediate_size_mlp=32
        ),
        True,
    ),
    "bloom-alibi": (lambda: transformers.BloomConfig(**BLOOM), False),
    "mamba": (lambda: transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2), False),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def build(name: str, device: str = "cpu", implementation: str | None = None) -> PreTrainedModel:
    torch.manual_seed(0)
    config = ARCHITECTURES[name][0]()
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    return model.eval().to(device)


def make_engine(model: PreTrainedModel, *, row_tokens: int, batch_tokens: int, share: bool = True) -> Engine:
    budget = Budget(
        model.device, vocabulary=VOCABULARY, logit_bytes=4, row_tokens=row_tokens, batch_tokens=batch_tokens
    )
    engine = Engine(model, device=model.device, autocast=nullcontext, budget=budget)
    if share:
        engine.plan, engine.dtype, _ = find_plan(engine)
    return engine


def draw_requests(seed: int, *, longest_shots: int = 80) -> list[Request]:
    """Few-shot blocks with questions with choices, some sequences of their own, a prefix of another, a repetition."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(draw.randrange(low, high))]

    requests = []
    for _ in range(3):
        shots = tokens(5, longest_shots)
        for _ in range(draw.randrange(1, 6)):
            question = tokens(1, 14)
            for _ in range(draw.randrange(1, 5)):
                choice = tokens(1, 6)
                requests.append(Request(np.array(shots + question + choice, np.int32), len(choice)))
    for _ in range(4):
        alone = tokens(2, 30)
        requests.append(Request(np.array(alone, np.int32), draw.randrange(1, len(alone))))
    requests.append(Request(requests[0].tokens[:5], 3))
    requests.append(requests[0])
    draw.shuffle(requests)
    return requests


def one_by_one(model: PreTrainedModel, requests: list[Request]) -> tuple[np.ndarray, np.ndarray]:
    """The reference: full logits of each sequence, log-softmax, gather."""
    values, greedy = [], []
    for request in requests:
        tokens = torch.from_numpy(request.tokens.astype(np.int64)).to(model.device)
        with torch.no_grad():
            logits = model(tokens[None, :-1]).logits[0, -request.scored :].float()
        targets = tokens[-request.scored :]
        log_probabilities = functional.log_softmax(logits, -1)
        values.append(float(log_probabilities.gather(1, targets[:, None]).double().sum()))
        greedy.append(bool((log_probabilities.argmax(-1) == targets).all()))
    return np.array(values), np.array(greedy)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_scores_as_one_sequence_at_a_time(name: str, device: str) -> None:
    model = build(name, device)
    requests = draw_requests(1)
    # Some targets are what the model itself would say, so that greedy flags of both kinds occur.
    for i in range(0, len(requests), 3):
        tokens = torch.from_numpy(requests[i].tokens.astype(np.int64)).to(device)
        with torch.no_grad():
            tokens[-1] = model(tokens[None, :-1]).logits[0, -1].argmax()
        requests[i] = Request(tokens.cpu().numpy().astype(np.int32), 1)
    expected, expected_greedy = one_by_one(model, requests)
    assert 0 < expected_greedy.sum() < len(requests)
    engine = make_engine(model, row_tokens=40, batch_tokens=200)
    assert (engine.plan is not None) == ARCHITECTURES[name][1]
    values, greedy = engine.score(requests)
    np.testing.assert_allclose(values, expected, atol=1e-4, rtol=0)
    assert greedy.tolist() == expected_greedy.tolist()
    if engine.plan is not None:
        assert engine.work.run < 0.7 * engine.work.asked


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral-window", "gpt2"])
@pytest.mark.parametrize(("row_tokens", "batch_tokens"), [(1, 1), (1, 64), (16, 50), (64, 64), (512, 4096)])
def test_no_budget_changes_a_value(name: str, row_tokens: int, batch_tokens: int) -> None:
    model = build(name)
    for seed in (2, 3):
        requests = draw_requests(seed)
        expected, expected_greedy = one_by_one(model, requests)
        values, greedy = make_engine(model, row_tokens=row_tokens, batch_tokens=batch_tokens).score(requests)
        np.testing.assert_allclose(values, expected, atol=1e-4, rtol=0)
        assert greedy.tolist() == expected_greedy.tolist()


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma3-window-2", "bloom-alibi"])
def test_no_layer_gets_one_key_more_than_a_multiple_of_32(name: str) -> None:
    """On CUDA, torch's memory-efficient attention is wrong there (github.com/pytorch/pytorch/issues/191937)."""
    model = build(name)
    keys: list[int] = []

    def look(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keys.append(args[0].shape[1])
        masks = kwargs.get("attention_mask")
        keys.extend(
            mask.shape[-1] for mask in (masks.values() if isinstance(masks, dict) else [masks]) if mask is not None
        )

    model.register_forward_pre_hook(look, with_kwargs=True)
    random_tokens = np.random.default_rng(0).integers(VOCABULARY, size=200).astype(np.int32)
    for shared in (0, 16, 33, 65):
        engine = make_engine(model, row_tokens=shared + 70, batch_tokens=4096)
        for own in range(2, 70):
            # Behind a prefix of `shared` tokens: two choices, which part at the first token.
            requests = [Request(np.append(random_tokens[:shared], random_tokens[at : at + own]), 1) for at in (70, 130)]
            engine.score(requests)
    assert len(keys) >= 4 * 68
    assert not [count for count in keys if count % 32 == 1]


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2-window"])
def test_eager_attention_takes_the_same_masks(name: str) -> None:
    model = build(name, implementation="eager")
    requests = draw_requests(4)
    engine = make_engine(model, row_tokens=40, batch_tokens=200)
    assert engine.plan is not None
    np.testing.assert_allclose(engine.score(requests)[0], one_by_one(model, requests)[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rounding_is_no_reason_to_share_nothing(name: str) -> None:
    assert find_plan(make_engine(build(name).bfloat16(), row_tokens=40, batch_tokens=200))[0] is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_ignores_the_mask_is_found_out(dtype: torch.dtype) -> None:
    model = build("llama").to(dtype)
    inner = model.model.forward
    model.model.forward = lambda *args, **kwargs: inner(*args, **{**kwargs, "attention_mask": None})
    engine = make_engine(model, row_tokens=40, batch_tokens=200)
    plan, _, reason = find_plan(engine)
    assert plan is None
    assert "logits would change" in reason
    requests = draw_requests(5)
    allowed = 1e-4 if dtype == torch.float32 else 0.1
    np.testing.assert_allclose(engine.score(requests)[0], one_by_one(model, requests)[0], atol=allowed, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_ignores_positions_is_found_out(dtype: torch.dtype) -> None:
    model = build("gpt2").to(dtype)
    inner = model.transformer.forward
    model.transformer.forward = lambda *args, **kwargs: inner(*args, **{**kwargs, "position_ids": None})
    assert find_plan(make_engine(model, row_tokens=40, batch_tokens=200))[0] is None


def test_flash_attention_is_left_alone() -> None:
    model = build("llama")
    model.config._attn_implementation = "flash_attention_2"
    engine = make_engine(model, row_tokens=40, batch_tokens=200, share=False)
    plan, _, reason = find_plan(engine)
    assert plan is None
    assert "flash_attention_2" in reason


class _OutOfMemory:
    """Fails like CUDA does for passes of more than `most` tokens."""

    def __init__(self, model: PreTrainedModel, most: int) -> None:
        self.forward, self.most, self.failures = model.forward, most, 0

    def __call__(self, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if tokens.numel() > self.most:
            self.failures += 1
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.forward(tokens, *args, **kwargs)


def test_out_of_memory_halves_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    model = build("gemma3")
    requests = draw_requests(6)
    expected, expected_greedy = one_by_one(model, requests)
    engine = make_engine(model, row_tokens=128, batch_tokens=1024)
    model.forward = short = _OutOfMemory(model, 130)
    finished: list[int] = []
    values, greedy = engine.score(requests, lambda index, *_: finished.append(index))
    np.testing.assert_allclose(values, expected, atol=1e-4, rtol=0)
    assert greedy.tolist() == expected_greedy.tolist()
    assert short.failures >= 2
    assert engine.budget.limits.tokens <= 128
    assert sorted(finished) == list(range(len(requests)))  # each once
    assert "out of memory" in caplog.text


def test_when_nothing_fits_the_user_is_told() -> None:
    model = build("llama")
    engine = make_engine(model, row_tokens=64, batch_tokens=256)
    model.forward = _OutOfMemory(model, 0)
    with pytest.raises(Exception, match="memory runs out even for 32 tokens at a time"):
        engine.score(draw_requests(7))


def test_other_errors_are_not_swallowed() -> None:
    model = build("llama")
    engine = make_engine(model, row_tokens=64, batch_tokens=256)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("device-side assert")

    model.forward = broken
    with pytest.raises(RuntimeError, match="device-side assert"):
        engine.score(draw_requests(7))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_length_dependent_rope_is_known(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 128}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    assert steady_length(transformers.LlamaConfig(**SHAPE, rope_parameters=rope)) == 128
    assert steady_length(transformers.LlamaConfig(**SHAPE)) == float("inf")
