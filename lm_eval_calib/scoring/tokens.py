"""Log-likelihoods that know how many tokens they are of, for per-token normalisation in a running evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# Counts the tokens of continuations, as the model that is being evaluated does; set when that model is made.
_counter: list[Callable[[Sequence[tuple[str, str]]], list[int]]] = []


class LogLikelihood(float):
    """A float with `num_tokens`: the number of tokens that the log-likelihood is the sum over.

    Everywhere but in `num_tokens` it is the plain float. It is pickled as one, so that lm-eval's response cache
    (`--use_cache`) can be read without this package; see `with_token_counts` for what comes out of that cache.
    """

    __slots__ = ("num_tokens",)
    num_tokens: int

    def __new__(cls, value: float, num_tokens: int) -> LogLikelihood:
        self = super().__new__(cls, value)
        self.num_tokens = num_tokens
        return self

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        return float, (float(self),)


def use_counter(counter: Callable[[Sequence[tuple[str, str]]], list[int]]) -> None:
    """Make `counter` the one that `with_token_counts` asks; it takes (context, continuation) pairs."""
    _counter[:] = [counter]


def with_token_counts(instances: Sequence[Any]) -> None:
    """Give the log-likelihoods in the `resps` of lm-eval's instances their `num_tokens` where they have none.

    Those of `--model hf-calib` have it, except when they were replayed from lm-eval's response cache; then the
    tokenizer of the running model counts again. Without such a model nothing is changed.
    """
    missing = [x for x in instances if any(not isinstance(response[0], LogLikelihood) for response in x.resps)]
    if not missing or not _counter:
        return
    for instance, count in zip(missing, _counter[0]([instance.args for instance in missing]), strict=True):
        instance.resps = [(LogLikelihood(response[0], count), *response[1:]) for response in instance.resps]
