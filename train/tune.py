"""One training run from data to checkpoint: finished runs are recognised, killed ones resumed."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoTokenizer
from trl import get_peft_config, get_quantization_config

from lm_eval_calib.errors import CalibrationError, CalibrationValueError
from lm_eval_calib.train.config import ModelConfig, TuneArguments, TuneConfig
from lm_eval_calib.train.data import Report
from lm_eval_calib.train.runs import (
    RESULT,
    STARTED,
    claim,
    differences,
    finished,
    identity_of,
    last_complete_checkpoint,
    plain,
    write_json,
)
from lm_eval_calib.train.tokens import prepare
from lm_eval_calib.train.trainer import LabelSmoothedSFTTrainer

DATA = ".training_data"


def tune(arguments: TuneArguments, config: TuneConfig, model_config: ModelConfig) -> dict[str, Any]:
    """Train, save, and return the content of `calibration_training.json`.

    Raises:
        CalibrationError: unusable data or arguments, a folder that holds another run, a model that cannot be
        loaded.
    """
    folder = Path(config.output_dir)
    state = PartialState()
    identity = identity_of(arguments, config, model_config)
    done = finished(folder, identity, overwrite=arguments.overwrite)
    if done is not None:
        print(f"{folder} holds this run already, finished {done['finished']}; nothing to do")
        return done
    tokenizer = _load("tokenizer", AutoTokenizer.from_pretrained, model_config, config)
    if config.chat_template_path and Path(config.chat_template_path).is_file():
        tokenizer.chat_template = Path(config.chat_template_path).read_text(encoding="utf-8")
        config.chat_template_path = None
    if config.eos_token is not None:
        tokenizer.eos_token = config.eos_token
    state.wait_for_everyone()
    if state.is_main_process:
        claim(folder, identity, overwrite=arguments.overwrite)
    with state.main_process_first():
        train_data, report = _data(arguments.train_data, arguments, tokenizer, config, folder / DATA / "train.arrow")
        eval_data = None
        if arguments.eval_data:
            every = dataclasses.replace(arguments, max_train_samples=None)
            eval_data, _ = _data(arguments.eval_data, every, tokenizer, config, folder / DATA / "eval.arrow")
            if config.eval_strategy == "no":
                config.eval_strategy = "epoch"
    if state.is_main_process:
        _describe(report)
    trainer = _trainer(config, model_config, tokenizer, train_data, eval_data)
    started = time.monotonic()
    checkpoint = last_complete_checkpoint(folder)
    if checkpoint is not None and state.is_main_process:
        print(f"resuming from {checkpoint.name}")
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        evaluation = trainer.evaluate() if eval_data is not None else {}
        _save(trainer, tokenizer, folder, arguments)
    except OSError as error:
        raise CalibrationError(
            f"output_dir: writing to {folder} failed ({error}); the last whole checkpoint is "
            f"{last_complete_checkpoint(folder) or 'none'}, and the same command goes on from there"
        ) from error
    result = {
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "identity": identity,
        "data_hash": report.hash,
        "arguments": plain({**vars(arguments), **differences(config), **vars(model_config)}),
        "data": {k: v for k, v in dataclasses.asdict(report).items() if k != "examples"},
        "versions": _versions(),
        "devices": state.num_processes,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "steps": trainer.state.global_step,
        "seconds": round(time.monotonic() - started, 1),
        "resumed": checkpoint is not None,
        "final": {**_last(trainer.state.log_history, ("loss", "nll")), **plain(evaluation)},
        "log": plain(trainer.state.log_history),
    }
    state.wait_for_everyone()
    if state.is_main_process:
        write_json(folder / RESULT, result)
        (folder / STARTED).unlink(missing_ok=True)
        shutil.rmtree(folder / DATA, ignore_errors=True)
        if not arguments.keep_checkpoints:
            for path in folder.glob("checkpoint-*"):
                shutil.rmtree(path, ignore_errors=True)
        print(f"saved to {folder}: lm_eval --model hf --model_args pretrained={folder}")
    return result


def _data(
    sources: list[str], arguments: TuneArguments, tokenizer: Any, config: TuneConfig, path: Path
) -> tuple[Dataset, Report]:
    """Tokenised by the first process of a machine, mapped into memory by all."""
    kept = path.with_suffix(".json")
    if PartialState().is_main_process:
        report = prepare(sources, arguments, tokenizer, config.max_length, config.seed, path)
        write_json(kept, dataclasses.asdict(report))
    report = Report(**json.loads(kept.read_text(encoding="utf-8")))
    return Dataset.from_file(str(path)), report


def _describe(report: Report) -> None:
    print(
        f"{report.used} of {report.rows} rows, {report.tokens} tokens, {report.answer_tokens} of them "
        f"answers; template: {report.template}; cut at max_length: {report.truncated}"
    )
    for reason, count in report.bad.items():
        print(f"dropped: {count} x {reason} (first: {report.examples[reason]})")


def _load(what: str, loader: Any, model_config: ModelConfig, config: TuneConfig) -> Any:
    try:
        return loader(
            model_config.model_name_or_path,
            revision=model_config.model_revision,
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError, KeyError) as error:
        raise CalibrationError(
            f"model_name_or_path: the {what} of {model_config.model_name_or_path} cannot be loaded: {error}"
        ) from error


def _trainer(
    config: TuneConfig, model_config: ModelConfig, tokenizer: Any, train_data: Dataset, eval_data: Dataset | None
) -> LabelSmoothedSFTTrainer:
    config.model_init_kwargs = {
        "revision": model_config.model_revision,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype,
        **(config.model_init_kwargs or {}),
    }
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        return LabelSmoothedSFTTrainer(
            model_config.model_name_or_path,
            config,
            train_dataset=train_data,
            eval_dataset=eval_data,
            processing_class=tokenizer,
            quantization_config=get_quantization_config(model_config),
            peft_config=get_peft_config(model_config),
        )
    except CalibrationError:
        raise
    except (OSError, ValueError) as error:
        raise CalibrationError(f"training cannot start: {error}") from error


def _save(trainer: LabelSmoothedSFTTrainer, tokenizer: Any, folder: Path, arguments: TuneArguments) -> None:
    """The final model, written into a folder beside and moved file by file once it is whole."""
    beside = folder / ".final"
    if trainer.accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    dtype = getattr(torch, arguments.save_dtype) if arguments.save_dtype else None
    if arguments.merge_adapters and hasattr(trainer.model, "merge_and_unload"):
        if trainer.is_fsdp_enabled:
            raise CalibrationValueError("merge_adapters: expected False under FSDP; merge the saved adapter afterwards")
        if trainer.accelerator.is_main_process:
            merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
            merged.to(dtype or merged.dtype).save_pretrained(beside)
    else:
        if dtype is not None and not trainer.is_fsdp_enabled:
            trainer.accelerator.unwrap_model(trainer.model).to(dtype)
        trainer.save_model(str(beside))
    if trainer.accelerator.is_main_process:
        tokenizer.save_pretrained(beside)
        (beside / "training_args.bin").unlink(missing_ok=True)  # a pickle, and RESULT says the same
        for path in beside.iterdir():
            path.replace(folder / path.name)
        beside.rmdir()


def _versions() -> dict[str, str]:
    names = ("lm-eval-calib", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "triton")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _last(history: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, float]:
    result = {}
    for name in names:
        values = [entry[name] for entry in history if name in entry]
        if values:
            result[name] = float(values[-1])
    return result
