"""Whether a model's answers stay the same when it is given trees behind recorded prefixes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend
from transformers import DynamicCache

from lm_eval_calib.scoring.attention import AttentionPlan, attention_plans
from lm_eval_calib.scoring.batches import Limits
from lm_eval_calib.scoring.engine import Engine
from lm_eval_calib.scoring.trie import Request

# The relative error of logits that the dtype's own rounding may cause, in a deep model.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}


# Rows this short cut the made-up trie at its prefixes, and put two trees in a row.
_ROW_TOKENS = 24


def find_plan(engine: Engine) -> tuple[AttentionPlan | None, torch.dtype, str]:
    """The first plan under which the model computes what it computes for each sequence alone.

    Returns (plan, dtype of the model's queries, reason); where there is no plan, the reason says why. Compared are
    the logits on a small made-up trie of two prefixes, by ||difference|| / ||logits - mean||. Random tokens make a
    model of 16 bits amplify its rounding: what is allowed is three times the difference that the model itself shows
    between batched and single sequences, and between the attention kernels that they and trees are given. (Gemma 3
    270M in bfloat16: 0.18 by rounding, 2.6 and more where a mask or positions are ignored.)
    """
    config = engine.model.config
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in ("sdpa", "eager"):
        return None, engine.dtype, f"attn_implementation={implementation} takes no tree masks (sdpa and eager do)"
    plans = attention_plans(config)
    if not plans:
        return None, engine.dtype, f"layer types {sorted(set(config.get_text_config(decoder=True).layer_types))}"
    requests = _made_up_requests(config.get_text_config(decoder=True).vocab_size)
    alone = _logits(engine, requests, tokens=1)
    scale = (alone - alone.mean(-1, keepdim=True)).norm()

    def change(**how: Any) -> float:
        return float((_logits(engine, requests, **how) - alone).norm() / scale)

    rounding: tuple[dict[str, Any], ...] = ({"tokens": 1024}, {"tokens": 1, "kernels": [SDPBackend.MATH]})
    reason = ""
    for plan in plans:
        try:
            dtype = _query_dtype(engine, requests)
            difference = change(tokens=1024, plan=plan, dtype=dtype)
        except Exception as error:  # Models have their own ways to fail at what they do not support.
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        # What rounding does takes as long to find out as all the rest, and in float32 it need not be known.
        if difference <= _TOLERANCE.get(dtype, 1e-3) or any(difference <= 3 * change(**how) for how in rounding):
            return plan, dtype, ""
        reason = f"its logits would change by {difference:.1g} of their size"
    return None, engine.dtype, reason


def steady_length(config: Any) -> float:
    """How long a sequence may be without changing the rotary embedding of all its positions.

    Dynamic NTK and LongRoPE scale by the length of the longest sequence of a pass: past this length a sequence has
    to be run alone, and no prefix of it can be shared. Infinite for all other models.
    """
    config = config.get_text_config(decoder=True)
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters] if "rope_type" in parameters else [kind for kind in parameters.values() if kind]
    lengths = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(lengths, default=math.inf)


def _made_up_requests(vocabulary: int) -> list[Request]:
    """Two prefixes, two questions behind each, three choices of one to three tokens for each question."""
    random = np.random.default_rng(0)
    requests = []
    for length in (48, 41):
        prefix = random.integers(vocabulary, size=length)
        for _ in range(2):
            question = random.integers(vocabulary, size=5)
            for scored in (1, 2, 3):
                choice = random.integers(vocabulary, size=scored)
                tokens = np.concatenate([prefix, question, choice]).astype(np.int32)
                requests.append(Request(tokens, scored))
    return requests


def _query_dtype(engine: Engine, requests: list[Request]) -> torch.dtype:
    """The dtype that the model's attention works in, which under autocast or quantisation is not its weights'."""
    recorded = DynamicCache()
    tokens = torch.from_numpy(requests[0].tokens[None, :4].astype(np.int64)).to(engine.device)
    with torch.no_grad(), engine.autocast():
        engine.model(tokens, past_key_values=recorded, use_cache=True)
    dtype: torch.dtype = recorded.layers[0].keys.dtype
    return dtype


def _logits(
    engine: Engine,
    requests: list[Request],
    *,
    tokens: int,
    plan: AttentionPlan | None = None,
    dtype: torch.dtype = torch.float32,
    kernels: Sequence[SDPBackend] = (),
) -> torch.Tensor:
    """The logits [scored tokens, vocabulary] that the requests ask for, in the order of requests and positions."""
    budget = copy.copy(engine.budget)
    budget.limits, budget.row_tokens = Limits(tokens, 1024), _ROW_TOKENS
    trial = Engine(engine.model, device=engine.device, autocast=engine.autocast, budget=budget, plan=plan, dtype=dtype)
    trial.kernels = kernels or trial.kernels
    found: dict[tuple[int, int], torch.Tensor] = {}
    for batch, arguments in trial.passes(requests):
        logits = trial.logits(batch, arguments, torch.from_numpy(np.append(batch.at, 0)).to(engine.device))
        positions = batch.positions.flat[batch.at]
        for request, position, row in zip(batch.request, positions, logits[:-1].float(), strict=True):
            found[int(request), int(position)] = row.cpu()
    return torch.stack([found[key] for key in sorted(found)])
