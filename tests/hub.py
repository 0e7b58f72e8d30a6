"""Data sets in the layout of the hub, as folders that `datasets.load_dataset` finds by their id, and a model for them."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

Rows = list[dict[str, Any]]


def write_dataset(root: Path, name: str, configs: dict[str, dict[str, Rows]]) -> None:
    """Write a data set: config -> split -> rows, as Parquet with the front matter that names the files."""
    folder = root / name
    listed = []
    for config, splits in configs.items():
        (folder / config).mkdir(parents=True, exist_ok=True)
        files = []
        for split, rows in splits.items():
            Dataset.from_list(rows).to_parquet(folder / config / f"{split}.parquet")
            files.append({"split": split, "path": f"{config}/{split}.parquet"})
        listed.append({"config_name": config, "data_files": files})
    folder.joinpath("README.md").write_text("---\n" + yaml.safe_dump({"configs": listed}) + "---\n")


class HashModel(LM):
    """A model whose log-likelihoods are a hash of the request, and which remembers what it was asked, by task."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, Counter[tuple[str, str]]] = {}

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:  # noqa: ARG002
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
