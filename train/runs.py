"""Which run a folder holds: finished, begun, another one's, and how far it came."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.train.config import ModelConfig, TuneArguments, TuneConfig
from lm_eval_calib.train.data import digest

RESULT = "calibration_training.json"
STARTED = ".calibration_training.started.json"
# What does not change the result: where and how often it is written, shown or resumed, and the split of the
# same work.
INCIDENTAL = re.compile(
    r"output_dir|overwrite|keep_checkpoints|logging_|report_to|disable_tqdm|save_(?!dtype)|run_name|dataloader_|ddp_|"
    r"hub_|push_to_hub|log_|resume|project|trackio|local_rank|deepspeed|fsdp|accelerator_config|per_device_|"
    r"gradient_accumulation_steps|gradient_checkpointing|activation_|torch_empty_cache|use_cpu|eval_|dataset_num_proc"
)


def identity_of(arguments: TuneArguments, config: TuneConfig, model_config: ModelConfig) -> dict[str, Any]:
    every = {**vars(arguments), **differences(config), **vars(model_config)}
    kept = plain({name: value for name, value in every.items() if not INCIDENTAL.match(name)})
    kept["total_batch_size"] = config.total_batch_size
    kept["data"] = [digest(source) for source in [*arguments.train_data, *(arguments.eval_data or [])]]
    kept.pop("train_data")
    kept.pop("eval_data", None)
    text = json.dumps(kept, sort_keys=True)
    return {"arguments": hashlib.sha256(text.encode()).hexdigest(), "settings": kept}


def differences(config: TuneConfig) -> dict[str, Any]:
    """The settings of `config` that matter or differ from TRL's defaults."""
    always = {"label_smoothing_factor", "learning_rate", "num_train_epochs", "seed", "total_batch_size", "max_length"}
    result = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.init and (f.name in always or value != f.default) and not f.name.endswith("token"):
            result[f.name] = value
    return result


def finished(folder: Path, identity: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
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


def claim(folder: Path, identity: dict[str, Any], *, overwrite: bool) -> None:
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


def plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "value", str(value))
