"""Tuning with label smoothing: a loss, a trainer for TRL, a command."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval_calib.train.loss import SmoothedLoss, label_smoothed_nll
    from lm_eval_calib.train.trainer import LabelSmoothedSFTTrainer

__all__ = ["LabelSmoothedSFTTrainer", "SmoothedLoss", "label_smoothed_nll"]

_HOMES = {"LabelSmoothedSFTTrainer": "trainer", "SmoothedLoss": "loss", "label_smoothed_nll": "loss"}


def __getattr__(name: str) -> Any:
    # The command line imports this package before it knows whether torch is needed.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
