"""A model that needs no weights and remembers what it was asked."""

from __future__ import annotations

import hashlib
from collections import Counter

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM


class HashModel(LM):
    """A model whose log-likelihoods are a hash of the request, and which remembers what it was asked, by task."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, Counter[tuple[str, str]]] = {}

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        answers = []
        for request in requests:
            context, continuation = request.args
            self.asked.setdefault(request.task_name, Counter())[context, continuation] += 1
            digest = hashlib.sha256(f"{context}\0{continuation}".encode()).digest()
            answers.append((-int.from_bytes(digest[:4], "big") / 2**29, False))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError
