"""A training step with label smoothing against TRL's step without it, and against TRL's own smoothing.

    python benchmarks/training.py --model FOLDER [--lengths 512 2048 8192] [--dtypes float32 bfloat16]

One CUDA GPU, full tuning with AdamW and bf16 arithmetic; `float32` keeps the weights in float32 under
autocast (TRL's default), `bfloat16` keeps them in bf16. Each step sees the same number of tokens, whatever
their length. The trainers' losses on the same batches are compared first. Then: the median time of a step
between synchronisations, tokens a second, and the peak of allocated memory. TRL's defaults otherwise,
gradient checkpointing among them.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gc
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from lm_eval_calib.train import LabelSmoothedSFTTrainer

TRAINERS: dict[str, tuple[Any, bool]] = {
    "TRL, no smoothing": (SFTTrainer, False),
    "TRL, its own smoothing": (SFTTrainer, True),
    "ours, no smoothing": (LabelSmoothedSFTTrainer, False),
    "ours, smoothing": (LabelSmoothedSFTTrainer, True),
}


class Clock(TrainerCallback):
    """Times whole optimizer steps."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        torch.cuda.synchronize()
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        torch.cuda.synchronize()
        self.times.append(time.perf_counter() - self.start)


def run(
    kind: Any, smoothing: float, model: Any, tokenizer: Any, length: int, arguments: argparse.Namespace
) -> tuple[float, float, list[float]]:
    """(median seconds a step, peak GiB, losses)"""
    rows = arguments.tokens // length
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, model.config.vocab_size - 10, (rows * arguments.steps, length), generator=generator)
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = SFTConfig(
            folder,
            label_smoothing_factor=smoothing,
            max_steps=arguments.steps,
            per_device_train_batch_size=rows,
            max_length=None,
            learning_rate=1e-6,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=not arguments.no_gradient_checkpointing,
            dataset_kwargs={"skip_prepare_dataset": True},
            dataloader_num_workers=2,
        )
        trainer = kind(copy.deepcopy(model), config, train_dataset=data, processing_class=tokenizer, callbacks=[clock])
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
    peak = torch.cuda.max_memory_allocated() / 2**30
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    del trainer
    gc.collect()
    torch.cuda.empty_cache()
    return statistics.median(clock.times[3:]), peak, losses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a causal language model")
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048, 8192])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=8192, help="in a step")
    parser.add_argument("--steps", type=int, default=13, help="of which the first three do not count")
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--no-gradient-checkpointing", action="store_true")
    parser.add_argument("--output", type=Path, help="write the table here, too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/training.py: needs a CUDA GPU", file=sys.stderr)
        return 2
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {datetime.date.today()}; "
        f"{Path(arguments.model).name}, {arguments.tokens:,} tokens a step, smoothing "
        f"{arguments.smoothing}, gradient checkpointing "
        f"{'off' if arguments.no_gradient_checkpointing else 'on'}.",
        "",
        "| weights | length | trainer | ms a step | of TRL's | tokens/s | peak GiB | loss differs from TRL's by |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for dtype in arguments.dtypes:
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, dtype))
        for length in arguments.lengths:
            seen: dict[bool, list[float]] = {}
            base = 0.0
            for name, (kind, smooths) in TRAINERS.items():
                b = arguments.smoothing if smooths else 0.0
                try:
                    seconds, peak, losses = run(kind, b, model, tokenizer, length, arguments)
                except torch.cuda.OutOfMemoryError:
                    line = f"| {dtype} | {length} | {name} | out of memory | | | | |"
                else:
                    wanted = seen.setdefault(smooths, losses)
                    difference = max(abs(x / y - 1) for x, y in zip(losses, wanted, strict=True))
                    base = base or seconds
                    line = (
                        f"| {dtype} | {length} | {name} | {seconds * 1e3:.1f} | {seconds / base:.3f} | "
                        f"{arguments.tokens / seconds:,.0f} | {peak:.2f} | "
                        f"{'' if wanted is losses else f'{difference:.1e}'} |"
                    )
                print(line, flush=True)
                lines.append(line)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
