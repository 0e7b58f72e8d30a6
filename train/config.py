"""The arguments of `lm-eval-calib train` and of `accelerate launch -m lm_eval_calib.train`.

    lm-eval-calib train CONFIG.yaml [--name value ...]
    lm-eval-calib train --model_name_or_path MODEL --train_data FILE_OR_HUB_ID [...] --output_dir DIR
        [--label_smoothing_factor 0.1] [--learning_rate 1e-5] [--seed 0] [--num_train_epochs 2]
        [--total_batch_size 128] [--per_device_train_batch_size 8] [--max_length 2048]
        [--use_peft --lora_r 16 --merge_adapters] [--dtype bfloat16] [--eval_data FILE_OR_HUB_ID ...]

Arguments are those of three dataclasses: `TuneArguments` (data), `TuneConfig` (everything of TRL's
`SFTConfig`, with the papers' hyperparameters as defaults) and TRL's `ModelConfig` (model, dtype, LoRA,
quantisation). CONFIG.yaml holds the same names as keys; the command line wins over the file. `DIR` ends up
holding a checkpoint that `lm_eval --model hf --model_args pretrained=DIR` loads, and
`calibration_training.json`, which is written last: a command whose folder holds it, with the same arguments
and data, returns at once; one that was killed resumes from its last whole checkpoint. Exit status 0:
finished; 2: a mistake in arguments or data, told in one line.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from trl import ModelConfig, SFTConfig

from lm_eval_calib.errors import CalibrationValueError

DATA_FORMATS = ("auto", "alpaca", "sharegpt", "messages", "prompt_completion", "text")
PROMPT_TEMPLATES = ("auto", "chat", "plain")


@dataclass
class TuneArguments:
    """What to train on, and what becomes of the result."""

    train_data: list[str] = field(
        metadata={
            "help": "JSON, JSON-lines or Parquet files, or Hub data sets as `owner/name`, `owner/name:config` or "
            "`owner/name:config:split`; several are concatenated."
        }
    )
    eval_data: list[str] | None = field(
        default=None, metadata={"help": "Held-out data in the same forms; its plain NLL is `eval_loss`."}
    )
    data_format: str = field(
        default="auto",
        metadata={
            "help": "Form of the rows: `alpaca` (instruction, input, output), `sharegpt` (conversations of from and "
            "value: OpenHermes), `messages` (of role and content: Tulu 3, TRL), `prompt_completion` (TRL), "
            "`text`; `auto` reads it off each row's keys.",
            "choices": list(DATA_FORMATS),
        },
    )
    prompt_template: str = field(
        default="auto",
        metadata={
            "help": "`chat`: the tokenizer's chat template; `plain`: a plain instruction template for base models; "
            "`auto`: the chat template if the tokenizer has one.",
            "choices": list(PROMPT_TEMPLATES),
        },
    )
    train_on_prompt: bool = field(
        default=False, metadata={"help": "Take the loss on the prompt's tokens too, not on answers alone."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on a seeded sample of so many rows."})
    max_bad_rows: float = field(
        default=0.01,
        metadata={
            "help": "Refuse the data when more than this share of the rows is unusable (empty answer, wrong keys, no "
            "assistant turn, no answer token within max_length); up to it they are dropped and counted."
        },
    )
    merge_adapters: bool = field(default=False, metadata={"help": "Merge LoRA adapters into the saved model."})
    save_dtype: str | None = field(
        default=None,
        metadata={
            "help": "Precision of the saved model; by default that of training. bfloat16 halves the folder "
            "and rounds away part of a small learning rate's work.",
            "choices": ["bfloat16", "float16", "float32"],
        },
    )
    keep_checkpoints: bool = field(
        default=False, metadata={"help": "Keep checkpoint-* folders after the run has finished."}
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "Start anew where the output folder holds a run of other arguments or data."},
    )

    def __post_init__(self) -> None:
        # A YAML file may name a single source.
        for name in ("train_data", "eval_data"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        if not 0 <= self.max_bad_rows < 1:
            raise CalibrationValueError(
                f"max_bad_rows: expected a share from 0 to below 1, got {self.max_bad_rows}; 0 refuses any bad row"
            )
        if self.max_train_samples is not None and self.max_train_samples < 1:
            raise CalibrationValueError(
                f"max_train_samples: expected at least 1, got {self.max_train_samples}; leave it out to use every row"
            )


@dataclass
class TuneConfig(SFTConfig):
    """TRL's `SFTConfig` with the papers' hyperparameters as defaults.

    AdamW without weight decay, a linear schedule after 2 % of warm-up, 2 epochs, batches of 128 sequences,
    learning rate 1e-5 (the papers try 5e-6 to 1e-4), smoothing 0.1 (they try 0, 0.1 and 0.2); arXiv
    2601.01362 and 2508.00264. `total_batch_size` is over all devices: gradient accumulation is worked out
    from it. `gradient_accumulation_steps` above 1 is taken as it is, and `total_batch_size` then follows from
    it.
    """

    # Declared for the type checker; their defaults are TRL's.
    bf16: bool | None = field(default=None, metadata={"help": "bf16 autocast; by default on wherever there is a GPU."})
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Sequences that a device takes at once, at most."}
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Worked out from total_batch_size unless given."}
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate; the papers: 5e-6 to 1e-4."})
    label_smoothing_factor: float = field(
        default=0.1, metadata={"help": "Share of the target's probability spread over the vocabulary, 0 to below 1."}
    )
    num_train_epochs: float = field(default=2.0, metadata={"help": "Passes over the data."})
    warmup_steps: float = field(
        default=0.02, metadata={"help": "Linear warm-up: steps, or a share of all steps when below 1."}
    )
    max_length: int | None = field(
        default=2048, metadata={"help": "Longest sequence in tokens; the sister paper uses 4096."}
    )
    total_batch_size: int = field(
        default=128, metadata={"help": "Sequences of one optimizer step, over all devices and accumulation steps."}
    )
    save_steps: float = field(
        default=0.2, metadata={"help": "A checkpoint each so many steps, or this share of all steps when below 1."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints to keep."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  (transformers parses the first member)
        default="none", metadata={"help": "Trackers to log to, such as tensorboard or wandb."}
    )

    def __post_init__(self) -> None:
        self._check()
        if self.bf16 is None and not torch.accelerator.is_available():
            self.bf16 = False  # TRL's default of bf16 is meant for GPUs
        super().__post_init__()
        self._share_out_the_batch()

    def _check(self) -> None:
        if not 0 <= self.label_smoothing_factor < 1:
            raise CalibrationValueError(
                "label_smoothing_factor: expected 0 to below 1, got "
                f"{self.label_smoothing_factor}; 0.1 is the papers' value"
            )
        for name, least in (("seed", 0), ("total_batch_size", 1), ("per_device_train_batch_size", 1)):
            if getattr(self, name) < least:
                raise CalibrationValueError(
                    f"{name}: expected an integer of at least {least}, got {getattr(self, name)}"
                )

    def _share_out_the_batch(self) -> None:
        devices: int = self.world_size
        if self.gradient_accumulation_steps > 1:
            per_step = self.per_device_train_batch_size * devices
            self.total_batch_size = per_step * self.gradient_accumulation_steps
            return
        if self.total_batch_size % devices:
            raise CalibrationValueError(
                f"total_batch_size: expected a multiple of the {devices} devices, got {self.total_batch_size}"
            )
        share = self.total_batch_size // devices
        # The largest micro-batch that fits the wish and divides the share, so that every step has the same size.
        fitting = range(1, min(self.per_device_train_batch_size, share) + 1)
        self.per_device_train_batch_size = max(n for n in fitting if share % n == 0)
        self.gradient_accumulation_steps = share // self.per_device_train_batch_size


__all__ = ["DATA_FORMATS", "PROMPT_TEMPLATES", "ModelConfig", "TuneArguments", "TuneConfig"]
