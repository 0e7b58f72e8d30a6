"""Where a model's hidden states and its head meet: a forward pass that ends in the smoothed loss instead of
logits.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Partial
from transformers.utils import ModelOutput

from lm_eval_calib.errors import CalibrationError
from lm_eval_calib.train.kernels import Head
from lm_eval_calib.train.loss import fused_head

IGNORED = -100


class UnsupportedModelError(CalibrationError):
    """A model whose loss this trainer would get wrong."""


@dataclass(frozen=True)
class SmoothedHead:
    """What one forward pass is asked for: the sum of the losses times `factor` / `num_items`.

    Without `num_items` the tokens of the pass itself are counted.
    """

    label_smoothing: float
    num_items: float | None = None
    factor: float = 1.0


@dataclass
class SmoothedHeadOutput(ModelOutput):
    """`loss` and `nll` are scaled sums, `nll` without a gradient; the rest has the shape of the shifted
    labels.
    """

    # Optional to ModelOutput alone: all but aux_loss are always there.
    loss: Any = None
    nll: Any = None
    token_loss: Any = None
    token_nll: Any = None
    entropy: Any = None
    is_top1: Any = None
    label_mask: Any = None
    aux_loss: Any = None


def transform_of(model: nn.Module) -> Head:
    """Soft-cap and scale of a model's logits, from its configuration (`label_smoothing` is 0)."""
    config = model.config.get_text_config()
    # Cohere, Muse Glimmer and Falcon-H1 multiply; Granite and MiniCPM3 divide; HyperCLOVA X multiplies under
    # Granite's key.
    scale = 1.0
    for key in ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling"):
        value = getattr(config, key, None)
        if value is not None:
            divides = key == "logits_scaling" and config.model_type != "hyperclovax"
            scale = 1 / value if divides else value
            break
    return Head(0.0, getattr(config, "final_logit_softcapping", None), float(scale))


def linear_head(model: nn.Module) -> nn.Linear:
    """The model's head, if it is a plain linear map.

    Raises:
        UnsupportedModelError: there is none, or it is something else, such as an adapter.
    """
    head = model.get_output_embeddings()
    inner = head
    if type(head).__name__ == "ModulesToSaveWrapper":  # PEFT's trained copy of the whole head
        inner = head.modules_to_save[head.active_adapters[0]] if head.active_adapters else head.original_module
    if not isinstance(inner, nn.Linear) or hasattr(inner, "base_layer") or not inner.weight.is_floating_point():
        raise UnsupportedModelError(
            f"model: expected a head that is a plain linear layer, got {type(inner).__name__} in "
            f"{type(model).__name__}; "
            "the loss would miss what it adds. Take the head out of the adapters' target modules (or name "
            "it in lora_modules_to_save), or train with TRL's own SFTTrainer"
        )
    return inner


def install(model: nn.Module) -> None:
    """Give `model.forward` the keyword `smoothed_head`: with it, it returns a `SmoothedHeadOutput`.

    Without it the forward pass is the one that was there. `model` is the bare model, below PEFT and wrappers.
    """
    linear_head(model)
    transform = transform_of(model)
    config = model.config.get_text_config()
    without_loss = model.forward

    @functools.wraps(type(model).forward)  # `generate` and the Trainer read the signature
    def forward(
        self: Any,
        *args: Any,
        smoothed_head: SmoothedHead | None = None,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if smoothed_head is None or (labels is None and shift_labels is None):
            given = {"labels": labels, "shift_labels": shift_labels}
            return without_loss(*args, **kwargs, **{k: v for k, v in given.items() if v is not None})
        kwargs["use_cache"] = False
        if getattr(config, "output_router_logits", False):
            kwargs.setdefault("output_router_logits", True)
        # Looked up on each call: FSDP and PEFT put other modules in their place.
        backbone = self.base_model(*args, **kwargs)
        hidden = backbone.last_hidden_state
        if shift_labels is None:
            assert labels is not None
            hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
        output = _loss(self, hidden, shift_labels, smoothed_head, transform)
        if kwargs.get("output_router_logits"):
            output.aux_loss = _balancing_loss(backbone.router_logits, config, kwargs.get("attention_mask"))
        return output

    model.forward = types.MethodType(forward, model)


def _loss(
    model: Any, hidden: torch.Tensor, labels: torch.Tensor, call: SmoothedHead, transform: Head
) -> SmoothedHeadOutput:
    head = linear_head(model)
    weight, bias = _whole(head.weight), _whole(head.bias)
    hidden, labels = hidden.to(weight.device), labels.to(weight.device)
    mask = labels != IGNORED
    kept = hidden[mask]
    tokens = kept.shape[0]
    num_items = max(tokens if call.num_items is None else call.num_items, 1)
    scale = call.factor / num_items
    options = Head(call.label_smoothing, transform.softcap, transform.logit_scale)
    result = fused_head(kept, weight, bias, labels[mask], options, scale)

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    return SmoothedHeadOutput(
        loss=result.loss,
        nll=result.nll.sum() * scale,
        token_loss=spread(result.token_loss),
        token_nll=spread(result.nll),
        entropy=spread(result.entropy),
        is_top1=spread(result.is_top1),
        label_mask=mask,
    )


def _whole(parameter: torch.Tensor | None) -> Any:
    """A sharded parameter gathered; each rank's gradient is then one summand of the whole, as with FSDP's
    own.
    """
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        return parameter.full_tensor(grad_placements=[Partial("avg")] * mesh.ndim)
    return parameter


def _balancing_loss(router_logits: Any, config: Any, attention_mask: torch.Tensor | None) -> torch.Tensor:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    experts = getattr(config, "num_experts", None) or config.num_local_experts
    loss: torch.Tensor = load_balancing_loss_func(router_logits, experts, config.num_experts_per_tok, attention_mask)
    return loss


@torch.no_grad()
def check(model: nn.Module) -> None:
    """Compare a few tokens' logits with those that the head's weights and the configuration give.

    A model with a transformation that `transform_of` does not know fails here, instead of training on another
    loss.

    Raises:
        UnsupportedModelError: the logits differ by more than rounding.
    """
    weight = linear_head(model).weight
    if isinstance(weight, DTensor) or any(p.is_meta or not p.numel() for p in model.parameters()):
        return  # sharded or not loaded on this rank; another rank or run can tell
    was_training = model.training
    model.eval()
    try:
        ids = torch.arange(8, device=model.get_input_embeddings().weight.device)[None] % weight.shape[0]
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.to(weight)
        expected = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        model.train(was_training)
    head = linear_head(model)
    transform = transform_of(model)
    logits = nn.functional.linear(hidden, weight, head.bias).float() * transform.logit_scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    error = float(torch.linalg.vector_norm(logits - expected) / torch.linalg.vector_norm(expected).clamp(min=1e-6))
    limit = 1e-3 if weight.dtype in (torch.float32, torch.float64) else 2e-2
    if not error < limit:
        raise UnsupportedModelError(
            f"model: the logits of {type(model).__name__} are not what its head's weights, scale "
            f"({transform.logit_scale:g}) and soft-cap ({transform.softcap}) give (relative difference "
            f"{error:.1e}, expected below {limit:.0e}); its loss would be another one. Train it with TRL's "
            f"own SFTTrainer"
        )
