"""One training run from data to checkpoint: finished runs are recognised, killed ones resumed."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoTokenizer
from transformers.trainer import TRAINER_STATE_NAME
from trl import get_peft_config, get_quantization_config

from lm_eval_calib.errors import CalibrationError, CalibrationValueError
from lm_eval_calib.train.config import ModelConfig, TuneArguments, TuneConfig
from lm_eval_calib.train.data import Report, digest
from lm_eval_calib.train.tokens import prepare
from lm_eval_calib.train.trainer import LabelSmoothedSFTTrainer

RESULT = "calibration_training.json"
STARTED = ".calibration_training.started.json"
DATA = ".training_data"
# What does not change the result: where and how often it is written, shown or resumed, and the split of the
# same work.
INCIDENTAL = re.compile(
    r"output_dir|overwrite|keep_checkpoints|logging_|report_to|disable_tqdm|save_(?!dtype)|run_name|dataloader_|ddp_|"
    r"hub_|push_to_hub|log_|resume|project|trackio|local_rank|deepspeed|fsdp|accelerator_config|per_device_|"
    r"gradient_accumulation_steps|gradient_checkpointing|activation_|torch_empty_cache|use_cpu|eval_|dataset_num_proc"
)


def tune(arguments: TuneArguments, config: TuneConfig, model_config: ModelConfig) -> dict[str, Any]:
    """Train, save, and return the content of `calibration_training.json`.

    Raises:
        CalibrationError: unusable data or arguments, a folder that holds another run, a model that cannot be
        loaded.
    """
    folder = Path(config.output_dir)
    state = PartialState()
    identity = _identity(arguments, config, model_config)
    finished = _finished(folder, identity, overwrite=arguments.overwrite)
    if finished is not None:
        print(f"{folder} holds this run already, finished {finished['finished']}; nothing to do")
        return finished
    tokenizer = _load("tokenizer", AutoTokenizer.from_pretrained, model_config, config)
    if config.chat_template_path and Path(config.chat_template_path).is_file():
        tokenizer.chat_template = Path(config.chat_template_path).read_text(encoding="utf-8")
        config.chat_template_path = None
    if config.eos_token is not None:
        tokenizer.eos_token = config.eos_token
    state.wait_for_everyone()
    if state.is_main_process:
        _claim(folder, identity, overwrite=arguments.overwrite)
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
        "arguments": _plain({**vars(arguments), **_differences(config), **vars(model_config)}),
        "data": {k: v for k, v in dataclasses.asdict(report).items() if k != "examples"},
        "versions": _versions(),
        "devices": state.num_processes,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "steps": trainer.state.global_step,
        "seconds": round(time.monotonic() - started, 1),
        "resumed": checkpoint is not None,
        "final": {**_last(trainer.state.log_history, ("loss", "nll")), **_plain(evaluation)},
        "log": _plain(trainer.state.log_history),
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


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end.

    The Trainer writes its state file last, so a folder whose state is missing, cut off or of another step is
    what a kill or a full disk left behind.
    """
    steps = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            if state["global_step"] == int(path.name.removeprefix("checkpoint-")):
                steps.append((state["global_step"], path))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(steps)[1] if steps else None


def write_json(path: Path, content: Any) -> None:
    """Written beside and renamed, so that there is a whole file or none."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(path)


def _identity(arguments: TuneArguments, config: TuneConfig, model_config: ModelConfig) -> dict[str, Any]:
    every = {**vars(arguments), **_differences(config), **vars(model_config)}
    kept = _plain({name: value for name, value in every.items() if not INCIDENTAL.match(name)})
    kept["total_batch_size"] = config.total_batch_size
    kept["data"] = [digest(source) for source in [*arguments.train_data, *(arguments.eval_data or [])]]
    kept.pop("train_data")
    kept.pop("eval_data", None)
    text = json.dumps(kept, sort_keys=True)
    return {"arguments": hashlib.sha256(text.encode()).hexdigest(), "settings": kept}


def _differences(config: TuneConfig) -> dict[str, Any]:
    """The settings of `config` that matter or differ from TRL's defaults."""
    always = {"label_smoothing_factor", "learning_rate", "num_train_epochs", "seed", "total_batch_size", "max_length"}
    result = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.init and (f.name in always or value != f.default) and not f.name.endswith("token"):
            result[f.name] = value
    return result


def _finished(folder: Path, identity: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        result = {}
    if result.get("identity", {}).get("arguments") == identity["arguments"]:
        return dict(result)
    if overwrite:
        return None
    raise CalibrationValueError(_other_run(folder, result.get("identity", {}), identity, "finished"))


def _other_run(folder: Path, old: dict[str, Any], new: dict[str, Any], what: str) -> str:
    before, now = old.get("settings", {}), new["settings"]
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    listing = ", ".join(f"{name} {before.get(name)!r} -> {now.get(name)!r}" for name in changed[:4])
    return (
        f"output_dir: {folder} holds a {what} run with other settings ({listing}); choose another folder, "
        "or pass --overwrite true to start anew"
    )


def _claim(folder: Path, identity: dict[str, Any], *, overwrite: bool) -> None:
    """Mark the folder as this run's; clear what an overwritten run left."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / STARTED
    try:
        old = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        old = None
    if old is not None and old.get("arguments") != identity["arguments"] and not overwrite:
        raise CalibrationValueError(_other_run(folder, old, identity, "started"))
    if old is None or old.get("arguments") != identity["arguments"]:
        if any(folder.glob("checkpoint-*")) and not overwrite:
            raise CalibrationValueError(
                f"output_dir: {folder} holds checkpoints of an unknown run; choose another folder, or pass "
                "--overwrite true to remove them"
            )
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path)
        (folder / RESULT).unlink(missing_ok=True)
    write_json(marker, identity)
    whole = last_complete_checkpoint(folder)
    for path in folder.glob("checkpoint-*"):
        if not (path / TRAINER_STATE_NAME).exists() and path != whole:
            shutil.rmtree(path)


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


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "value", str(value))
