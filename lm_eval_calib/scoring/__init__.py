"""`--model hf-calib`: the fast scoring backend.

`SharedPrefixLM` takes the `model_args` of lm-eval's `hf` and returns its log-likelihoods; see docs/scoring.md.
Importing this package imports neither torch nor lm_eval; its class does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval_calib.scoring.model import SharedPrefixLM

__all__ = ["SharedPrefixLM"]


def __getattr__(name: str) -> Any:
    if name == "SharedPrefixLM":
        from lm_eval_calib.scoring.model import SharedPrefixLM

        return SharedPrefixLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
