"""Run by test_train_distributed.py in two processes (gloo): what each finds is written to a file for the test
to judge.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tiny_model
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from datasets import Dataset
from test_trainer import ROWS, TOKENIZER, arguments
from torch.distributed.fsdp import fully_shard

from lm_eval_calib.train import head as heads
from lm_eval_calib.train.trainer import LabelSmoothedSFTTrainer

IDS = torch.randint(3, 300, (4, 12), generator=torch.Generator().manual_seed(0))
LABELS = IDS.clone()
LABELS[:, :4] = -100
LABELS[1, :7] = -100  # ranks hold different numbers of tokens


def ddp(folder: Path) -> dict[str, Any]:
    trainer = LabelSmoothedSFTTrainer(
        tiny_model.model(),
        arguments(
            folder, per_device_train_batch_size=2, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=3
        ),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS[:7]),
        processing_class=TOKENIZER,
    )
    trainer.train()
    state = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    return {"log": trainer.state.log_history, "weights": state, "processes": trainer.accelerator.num_processes}


def fsdp2(head_apart: bool) -> dict[str, torch.Tensor]:
    """Gradients of half the batch a rank under FSDP2, averaged over the ranks as FSDP does."""
    model = tiny_model.model()
    heads.install(model)
    for layer in model.model.layers:
        fully_shard(layer)
    if head_apart:
        fully_shard(model.lm_head)
    fully_shard(model)
    rank = dist.get_rank()
    mine = slice(2 * rank, 2 * rank + 2)
    total = int((LABELS[:, 1:] != -100).sum())
    call = heads.SmoothedHead(0.1, total, factor=dist.get_world_size())
    output = model(input_ids=IDS[mine], labels=LABELS[mine], smoothed_head=call)
    output.loss.backward()
    return {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}


def single() -> dict[str, torch.Tensor]:
    model = tiny_model.model()
    logits = model(input_ids=IDS).logits[:, :-1].flatten(0, 1)
    F.cross_entropy(logits, LABELS[:, 1:].flatten(), label_smoothing=0.1).backward()
    return {name: p.grad for name, p in model.named_parameters()}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    found = {"ddp": ddp(target), "single": single()}
    for apart in (False, True):
        found[f"fsdp2 {apart}"] = fsdp2(apart)
    if dist.get_rank() == 0:
        torch.save(found, target / "found.pt")
    dist.barrier()
    dist.destroy_process_group()
