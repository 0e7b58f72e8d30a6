"""Tree attention behind shared prefixes, in terms that transformers' models already understand.

A model is handed a 4D mask (or one for each kind of layer), explicit positions, and a cache whose layers put a
prefix's recorded keys and values in front of the new ones. Nothing of the model is replaced, and nothing is copied
but what one layer's attention reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

from lm_eval_calib.scoring.batches import Batch


class Span(NamedTuple):
    """What one kind of layer sees of the past: the last `window` tokens, those in the same `chunk`, or all."""

    window: int | None = None
    chunk: int | None = None

    def columns(self, prefix_length: int) -> int:
        """How many of a prefix's last tokens can matter to what follows it."""
        return prefix_length if self.window is None else min(prefix_length, self.window - 1)

    def sees(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | bool:
        """Whether the position `query` may look at the earlier position `key`."""
        if self.window is not None:
            return query - key < self.window
        return True if self.chunk is None else query // self.chunk == key // self.chunk


class AttentionPlan(NamedTuple):
    """The span of each kind of layer, the kind of each layer, and whether the model takes a mask for each kind."""

    spans: Mapping[str, Span]
    layers: tuple[str, ...]
    mask_by_kind: bool


def attention_plans(config: PretrainedConfig) -> list[AttentionPlan]:
    """The ways in which a model of this configuration may take its masks, likeliest first; none if it has others.

    Follows `transformers.masking_utils.create_masks_for_generate`: `layer_types` name the kinds; without them every
    layer has the window or the chunk that the configuration names, or sees everything.
    """
    config = config.get_text_config(decoder=True)
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    known = {
        "full_attention": Span(),
        "sliding_attention": Span(window=window),
        "chunked_attention": Span(chunk=chunk),
    }
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kind = "sliding_attention" if window else "chunked_attention" if chunk else "full_attention"
        return [AttentionPlan({kind: known[kind]}, (kind,) * config.num_hidden_layers, False)]
    if not set(kinds) <= known.keys():
        return []
    spans = {kind: known[kind] for kind in sorted(set(kinds))}
    plans = [AttentionPlan(spans, tuple(kinds), True)]
    return plans if len(spans) > 1 else [*plans, plans[0]._replace(mask_by_kind=False)]


def safe_columns(columns: int, prefix_length: int, plan: AttentionPlan | None) -> int:
    """`columns`, or a few more, such that the keys of no layer number one more than a multiple of 32.

    There, with a mask and keys that all heads share, torch's memory-efficient attention on CUDA mishandles the last key
    (github.com/pytorch/pytorch/issues/191937; seen with torch 2.11): what was scored at the last column was off by
    up to 15 nats.
    """
    spans = plan.spans.values() if plan is not None else ()
    before = {0, *(span.columns(prefix_length) for span in spans)}
    while any((count + columns) % 32 == 1 for count in before):
        columns += 1
    return columns


class PrefixColumns:
    """Which of the recorded prefixes' tokens each row of a batch is given, for layers of one span.

    Prefixes end where the row's own tokens begin: column j of C stands for position `prefix_length - C + j`, and
    positions below 0 are padding.
    """

    def __init__(self, batch: Batch, span: Span, device: torch.device) -> None:
        self.count = span.columns(int(batch.prefix_length.max()))
        positions = batch.prefix_length[:, None] - self.count + np.arange(self.count)
        self.positions = torch.from_numpy(positions).to(device)
        same = self.count > 0 and bool((batch.prefix == batch.prefix[0]).all())
        self._slice = (int(batch.prefix[0]), int(positions[0, 0]), int(positions[0, -1]) + 1) if same else None
        self._rows = torch.from_numpy(np.maximum(batch.prefix, 0)[:, None]).to(device)
        self._columns = self.positions.clamp(min=0)

    def take(self, recorded: torch.Tensor) -> torch.Tensor:
        """From [prefixes, heads, tokens, width] to [rows, heads, columns, width]."""
        if self._slice is not None:
            prefix, start, stop = self._slice
            return recorded[prefix : prefix + 1, :, start:stop].expand(len(self._rows), -1, -1, -1)
        rows, columns = self._rows.to(recorded.device), self._columns.to(recorded.device)
        return recorded[rows, :, columns].transpose(1, 2)


class _PrefixedLayer(DynamicLayer):
    """A cache layer that keeps nothing new: it answers each update with the rows' prefixes put in front."""

    def __init__(self, recorded: DynamicLayer, columns: PrefixColumns) -> None:
        super().__init__()
        self.keys, self.values, self.columns = recorded.keys, recorded.values, columns
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: object, **_kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.cat([self.columns.take(self.keys), key_states], dim=-2),
            torch.cat([self.columns.take(self.values), value_states], dim=-2),
        )

    def get_seq_length(self) -> int:
        return self.columns.count


def tree_arguments(
    plan: AttentionPlan, batch: Batch, recorded: DynamicCache | None, *, device: torch.device, dtype: torch.dtype
) -> dict[str, object]:
    """`attention_mask`, `position_ids` and `past_key_values` for a pass over the batch's trees.

    The masks are additive, [rows, 1, columns, prefix columns + columns] in the dtype of the queries: the finite
    minimum rather than -inf, since eager attention of a padding token must not become NaN.
    """
    positions = torch.from_numpy(batch.positions).to(device)
    ends = torch.from_numpy(batch.ends).to(device)
    own = torch.arange(positions.shape[1], device=device)
    tree = (own <= own[:, None]) & (own[:, None] < ends[:, None, :])
    query, key = positions[:, :, None], positions[:, None, :]
    has_prefix = torch.from_numpy(batch.prefix >= 0).to(device)[:, None]
    columns, masks = {}, {}
    for kind, span in plan.spans.items():
        columns[kind] = prefix = PrefixColumns(batch, span, device)
        before = prefix.positions[:, None, :]
        allowed = torch.cat(
            [
                ((before >= 0) & has_prefix[:, :, None] & span.sees(query, before)).expand(-1, len(own), -1),
                tree & span.sees(query, key),
            ],
            dim=-1,
        )
        # Memory-efficient attention wants rows that start at multiples of eight; otherwise it copies the mask in
        # every layer.
        rows, _, width = allowed.shape
        shape = (rows, 1, len(own), -(-width // 8) * 8)
        mask = torch.full(shape, torch.finfo(dtype).min, device=device, dtype=dtype)
        masks[kind] = mask[..., :width].masked_fill_(allowed[:, None], 0)
    arguments: dict[str, object] = {
        "position_ids": positions,
        "attention_mask": masks if plan.mask_by_kind else next(iter(masks.values())),
        "use_cache": False,
    }
    if recorded is not None and any(prefix.count for prefix in columns.values()):
        layers = [_PrefixedLayer(layer, columns[plan.layers[i]]) for i, layer in enumerate(recorded.layers)]
        arguments |= {"past_key_values": Cache(layers=layers), "use_cache": True}
    return arguments
