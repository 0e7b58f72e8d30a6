"""`lm-eval-calib train` as users run it: finished, repeated, changed, killed, out of disk, and evaluated by lm_eval."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
import tiny_model  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from lm_eval_calib.errors import CalibrationError, CalibrationValueError  # noqa: E402
from lm_eval_calib.train import command, runs  # noqa: E402

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def setting(tmp_path: Path) -> list[str]:
    """Arguments of a run of eight steps."""
    tiny_model.save(tmp_path / "model")
    rows = [{"instruction": f"What is {i}?", "input": "", "output": f"It is {i}."} for i in range(32)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *("--model_name_or_path", str(tmp_path / "model")),
        *("--train_data", str(tmp_path / "rows.jsonl")),
        *("--output_dir", str(tmp_path / "out")),
        *("--total_batch_size", "8", "--per_device_train_batch_size", "4"),
        *("--learning_rate", "1e-2", "--logging_steps", "1", "--disable_tqdm", "true", "--use_cpu", "true"),
    ]


def result(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "calibration_training.json").read_text())


def losses(found: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in found["log"] if "loss" in entry]


def test_a_run_from_start_to_finish(setting, tmp_path, capsys):
    assert command.main([*setting, "--eval_data", str(tmp_path / "rows.jsonl")]) == 0
    found = result(tmp_path)
    assert found["steps"] == 8
    assert len(losses(found)) == 8
    assert found["final"]["loss"] == losses(found)[-1] < losses(found)[0]
    assert 0 < found["final"]["nll"] != found["final"]["loss"]
    assert found["final"]["eval_loss"] < found["final"]["eval_smoothed_loss"]
    assert found["arguments"]["label_smoothing_factor"] == 0.1
    assert found["data"]["used"] == 32
    assert found["data"]["template"] == "plain"
    assert len(found["data_hash"]) == 64
    assert {"torch", "trl", "transformers", "lm-eval-calib"} <= set(found["versions"])
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= left
    assert not [name for name in left if name.startswith((".", "checkpoint")) or name.endswith(".bin")]
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (before.lm_head.weight - after.lm_head.weight).abs().max() > 1e-3

    capsys.readouterr()
    stamp = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    # How the work is split and shown does not make another run of it.
    again = [*setting, "--eval_data", str(tmp_path / "rows.jsonl"), "--logging_steps", "3"]
    assert command.main([*again, "--per_device_train_batch_size", "2"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == stamp


def test_another_run_in_the_same_folder_is_refused(setting, tmp_path):
    command.main([*setting, "--max_steps", "1"])
    with pytest.raises(CalibrationValueError, match=r"^output_dir: .*learning_rate 0\.01 -> 0\.02.*--overwrite"):
        command.main([*setting, "--max_steps", "1", "--learning_rate", "2e-2"])
    with open(tmp_path / "rows.jsonl", "a") as file:  # noqa: PTH123
        file.write('{"instruction": "More?", "output": "More."}\n')
    with pytest.raises(CalibrationValueError, match=r"^output_dir: .*data"):
        command.main([*setting, "--max_steps", "1"])
    command.main([*setting, "--max_steps", "1", "--learning_rate", "2e-2", "--overwrite", "true"])
    assert result(tmp_path)["arguments"]["learning_rate"] == 0.02


def test_killed_and_resumed_equals_an_uninterrupted_run(setting, tmp_path):
    many = [*setting, "--num_train_epochs", "100", "--save_steps", "10"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lm_eval_calib.train", *many],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while runs.last_complete_checkpoint(tmp_path / "out") is None:
        assert process.poll() is None, "finished before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "calibration_training.json").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    whole = runs.last_complete_checkpoint(tmp_path / "out")
    assert whole is not None
    # What a kill in the middle of a checkpoint leaves: files, but no state, or half of one.
    for number, content in ((9998, None), (9999, '{"global_step": 99')):
        broken = tmp_path / "out" / f"checkpoint-{number}"
        broken.mkdir()
        (broken / "model.safetensors").write_bytes(b"half")
        if content:
            (broken / "trainer_state.json").write_text(content)
    assert runs.last_complete_checkpoint(tmp_path / "out") == whole

    command.main(many)
    resumed = result(tmp_path)
    assert resumed["resumed"]
    assert resumed["steps"] == 400
    other = ["--output_dir", str(tmp_path / "other")]
    command.main([*many, *other])
    straight = json.loads((tmp_path / "other" / "calibration_training.json").read_text())
    assert losses(resumed) == pytest.approx(losses(straight), rel=1e-5)
    assert resumed["data_hash"] == straight["data_hash"]


def test_a_full_disk_leaves_the_last_checkpoint_whole(setting, tmp_path, monkeypatch):
    save, calls = torch.save, []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) > 4:  # optimizer, schedule and random state are three a checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CalibrationError, match="No space left on device"):
        command.main([*setting, "--save_steps", "2"])
    assert len(calls) > 4
    checkpoint = runs.last_complete_checkpoint(tmp_path / "out")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"
    monkeypatch.setattr(torch, "save", save)
    command.main([*setting, "--save_steps", "2"])
    assert result(tmp_path)["resumed"]
    assert result(tmp_path)["steps"] == 8


def test_lora_merged_or_not(setting, tmp_path):
    lora = ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj", "--max_steps", "3"]
    command.main([*setting, *lora])
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    command.main([*setting, *lora, "--merge_adapters", "true", "--output_dir", str(tmp_path / "merged")])
    from peft import AutoPeftModelForCausalLM

    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[1, 8, 9, 10]])
    torch.testing.assert_close(adapted(input_ids=ids).logits, merged(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert (merged(input_ids=ids).logits - base(input_ids=ids).logits).abs().max() > 1e-2


def test_a_configuration_file_and_the_command_line_over_it(setting, tmp_path):
    import yaml

    settings = dict(zip([name.removeprefix("--") for name in setting[::2]], setting[1::2], strict=True))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**settings, "label_smoothing_factor": 0.2, "save_dtype": "bfloat16"}))
    assert command.main([str(file), "--max_steps", "2", "--learning_rate", "3e-3"]) == 0
    found = result(tmp_path)
    assert found["arguments"]["label_smoothing_factor"] == 0.2
    assert found["arguments"]["learning_rate"] == 3e-3
    assert found["steps"] == 2
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    file.write_text(yaml.safe_dump({**settings, "learning_rte": 1}))
    with pytest.raises(CalibrationValueError, match="learning_rte"):
        command.main([str(file)])


def test_the_papers_hyperparameters_are_the_defaults(tmp_path):
    data, config, model = command.parse(
        ["--model_name_or_path", "m", "--train_data", "d", "--output_dir", str(tmp_path), "--use_cpu", "true"]
    )
    assert data.train_data == ["d"]
    assert config.optim == "adamw_torch_fused"
    assert (config.weight_decay, config.lr_scheduler_type, config.warmup_steps) == (0.0, "linear", 0.02)
    assert (config.num_train_epochs, config.label_smoothing_factor, config.learning_rate) == (2, 0.1, 1e-5)
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 128
    assert not config.trust_remote_code
    assert model.dtype == "float32"


def test_two_processes_train_as_one(setting, tmp_path):
    """The batch is shared out, the data prepared once, the result the same."""
    other = ["--output_dir", str(tmp_path / "two")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "lm_eval_calib.train", *setting, *other],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    command.main(setting)
    alone, together = result(tmp_path), json.loads((tmp_path / "two" / "calibration_training.json").read_text())
    assert together["devices"] == 2
    assert alone["arguments"]["gradient_accumulation_steps"] == 2
    assert "gradient_accumulation_steps" not in together["arguments"]  # 1, which is the default
    assert losses(together) == pytest.approx(losses(alone), rel=1e-4)
    assert together["identity"] == alone["identity"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--label_smoothing_factor", "1"], "label_smoothing_factor: expected 0 to below 1"),
        (["--total_batch_size", "0"], "total_batch_size: expected an integer of at least 1"),
        (["--max_bad_rows", "1"], "max_bad_rows: expected a share"),
        (["--train_data", "none.jsonl"], "train_data: expected a file, got none.jsonl"),
        (["--model_name_or_path", "no/model"], "model_name_or_path: the tokenizer of no/model cannot be loaded"),
        (["--model_name_or_path", "no/model/here"], "there is no folder no/model/here"),
        (["--model_name_or_path", "./model"], "there is no folder ./model"),
        (["--model_name_or_path", ""], "model_name_or_path: expected a folder or a Hub id, got nothing"),
        (["--unheard_of", "1"], "unheard_of"),
        (["--config", "none.yaml"], "config: expected a YAML file, got none.yaml"),
    ],
)
def test_mistakes_are_told_in_one_line(setting, change, message):
    with pytest.raises(CalibrationError) as caught:
        command.main([*setting, *change])
    assert message in str(caught.value)


def test_exit_status_of_the_command(setting):
    for module, prefix in (("lm_eval_calib.train", []), ("lm_eval_calib", ["train"])):
        done = subprocess.run(
            [sys.executable, "-m", module, *prefix, *setting, "--seed", "-1"],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "seed: expected an integer of at least 0, got -1" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_tuned_two_ways_and_evaluated_by_lm_eval(tmp_path):
    """The whole way: the embedded English instructions, smoothing 0 and 0.1, the stock harness, one table."""
    from lm_eval_calib.cldr_instructions import write_instructions

    tiny_model.save(
        tmp_path / "model", hidden_size=64, intermediate_size=128, head_dim=32, max_position_embeddings=1024
    )
    write_instructions(tmp_path / "facts.jsonl", limit=600)
    tuned = {}
    for b in ("0", "0.1"):
        out = tmp_path / f"smoothing-{b}"
        arguments = ["--model_name_or_path", str(tmp_path / "model"), "--train_data", str(tmp_path / "facts.jsonl")]
        arguments += ["--label_smoothing_factor", b, "--output_dir", str(out), "--learning_rate", "1e-3"]
        arguments += ["--total_batch_size", "32", "--per_device_train_batch_size", "16", "--disable_tqdm", "true"]
        assert command.main([*arguments, "--use_cpu", "true", "--max_length", "256"]) == 0
        found = json.loads((out / "calibration_training.json").read_text())
        assert losses(found)[-1] < losses(found)[0]
        tuned[f"smoothing-{b}"] = out
    for name, folder in tuned.items():
        done = subprocess.run(
            [
                *(sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={folder}"),
                *("--tasks", "calib_cldr_en", "--limit", "30", "--batch_size", "16", "--device", "cpu"),
                *("--log_samples", "--output_path", str(tmp_path / "eval" / name)),
            ],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    table = tmp_path / "table.csv"
    sources = [f"{name}={tmp_path / 'eval' / name}" for name in tuned]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval_calib", "score", *sources, "--output", str(table), "--resamples", "100"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with table.open(encoding="utf-8") as file:
        read = {row["run"]: row for row in csv.DictReader(file)}
    assert set(read) == set(tuned)
    for row in read.values():
        assert row["n"] == "30"
        assert 0 <= float(row["ece"]) <= 1
    assert read["smoothing-0"]["nll"] != read["smoothing-0.1"]["nll"]
