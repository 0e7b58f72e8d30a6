"""A study's file and its stages: what is refused, what is run, and what counts as finished."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lm_eval_calib.cli import main
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.train import stages as planning
from lm_eval_calib.train.stages import Stage, evaluation_is_whole, fingerprint, stages
from lm_eval_calib.train.study import check_local_files, check_training_arguments, delete_models
from lm_eval_calib.train.study_config import Study, read_study, ready_made

GRID: dict[str, Any] = {
    "models": {"tiny": {"pretrained": "some/model"}},
    "instruction_sets": {"facts": {"english_instructions": {"limit": 8}}, "own": {"train_data": ["{data}/own.jsonl"]}},
    "learning_rates": ["1e-5", 1e-4],
    "label_smoothing": [0, 0.1],
    "seeds": [0, 1],
    "training": {"num_train_epochs": 1},
    "evaluations": {"cldr": {"tasks": ["calib_cldr_sw"], "arguments": {"limit": 5, "num_fewshot": None}}},
}


def study_of(folder: Path, **changes: Any) -> Study:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**GRID, "output_dir": str(folder / "out"), "data": str(folder), **changes}))
    (folder / "own.jsonl").write_text('{"instruction": "a", "input": "", "output": "b"}\n')
    fingerprint.cache_clear()
    return read_study(str(path))


def named(plan: list[Stage], name: str) -> Stage:
    (stage,) = (stage for stage in plan if stage.name == name)
    return stage


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": [1e-5]}, "unknown key learning_rate; known are name, models"),
        ({"models": {}}, "models: expected a table by name"),
        ({"models": {"a b": {"pretrained": "x"}}}, "models.a b: names are letters"),
        ({"models": {"a": "x"}}, "models.a: expected a table of keys, got 'x'"),
        ({"models": {"a": {}}}, "models.a: missing key pretrained"),
        ({"instruction_sets": {"a": {}}}, "instruction_sets.a: expected train_data"),
        ({"evaluations": {"a": {"tasks": 3}}}, "evaluations.a.tasks: expected a list of names, got 3"),
        ({"evaluations": {"a": {"tasks": ["t"], "arguments": [1]}}}, "arguments: expected a table, got"),
        ({"learning_rates": ["fast"]}, "learning_rates: expected numbers above 0.0, got 'fast'"),
        ({"learning_rates": []}, "learning_rates: expected different values"),
        ({"label_smoothing": [0, 1]}, "label_smoothing: expected numbers at least 0.0 and below 1.0, got 1"),
        ({"label_smoothing": [0.1, "0.1"]}, "label_smoothing: expected different values"),
        ({"seeds": [0.5]}, "seeds: expected whole numbers"),
        ({"parallel": 0}, "parallel: expected a whole number above 0"),
        ({"name": "a/b"}, "name: expected letters"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationValueError) as caught:
        study_of(tmp_path, **changes)
    assert message in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(tmp_path / "no.yaml"), "--dry-run"]) == 2
    assert "expected a YAML file or one of gemma3-270m" in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("models: [")
    assert main(["study", str(tmp_path / "bad.yaml"), "--dry-run"]) == 2
    assert "not YAML" in capsys.readouterr().err
    study = study_of(tmp_path, training={"learning_rates": 1})
    with pytest.raises(CalibrationValueError, match="training: `lm-eval-calib train` has no argument learning_rates"):
        check_training_arguments(study)
    (tmp_path / "own.jsonl").unlink()
    with pytest.raises(CalibrationValueError, match=r"instruction_sets.own.train_data: no file .*own.jsonl; --data"):
        check_local_files(study)
    study = study_of(tmp_path, models={"tiny": {"pretrained": str(tmp_path / "gone")}})
    with pytest.raises(CalibrationValueError, match=r"models.tiny.pretrained: .* no folder .*gone"):
        check_local_files(study)


def test_overrides(tmp_path: Path) -> None:
    study_of(tmp_path)
    overrides = ["seeds=[7]", "models.tiny.pretrained=other/model", "evaluations.cldr.arguments.limit=2"]
    study = read_study(str(tmp_path / "study.yaml"), overrides=overrides)
    assert study.seeds == (7,)
    assert study.models["tiny"].pretrained == "other/model"
    assert study.evaluations["cldr"].arguments["limit"] == 2
    with pytest.raises(CalibrationValueError, match="--set: expected key=value"):
        read_study(str(tmp_path / "study.yaml"), overrides=["seeds"])
    with pytest.raises(CalibrationValueError, match="seeds is no table"):
        read_study(str(tmp_path / "study.yaml"), overrides=["seeds.0=1"])


def test_the_grid_becomes_commands(tmp_path: Path) -> None:
    plan = stages(study_of(tmp_path))
    kinds = [stage.kind for stage in plan]
    # 1 data file, 1 base model, 2 sets x 2 rates x 2 factors x 2 seeds
    assert (kinds.count("data"), kinds.count("train"), kinds.count("evaluate")) == (1, 16, 17)
    tune = named(plan, "train tiny-facts-lr1e-05-ls0.1-seed1")
    options = dict(zip(tune.arguments[::2], tune.arguments[1::2], strict=True))
    data = named(plan, "data facts")
    assert options == {
        "--num_train_epochs": "1",
        "--model_name_or_path": "some/model",
        "--train_data": str(data.output),
        "--learning_rate": "1e-05",
        "--label_smoothing_factor": "0.1",
        "--seed": "1",
        "--output_dir": str(tune.output),
    }
    assert tune.needs == ("data facts",)
    evaluate = named(plan, "evaluate tiny-facts-lr1e-05-ls0.1-seed1 cldr")
    assert evaluate.needs == (tune.name,)
    words = " ".join(evaluate.arguments)
    assert words.startswith(
        f"run --model hf --model_args pretrained={tune.output} --tasks calib_cldr_sw --limit 5 --log"
    )
    assert "num_fewshot" not in words  # null leaves an option out
    assert len({stage.output for stage in plan}) == len(plan)


def test_launchers(tmp_path: Path) -> None:
    plan = stages(study_of(tmp_path))
    tune, data = plan[2], plan[0]
    assert tune.command()[:3] == [sys.executable, "-m", "lm_eval_calib.train"]
    accelerate = ["accelerate", "launch", "--num_processes", "2"]
    assert tune.command(accelerate)[:6] == [*accelerate, "-m", "lm_eval_calib.train"]
    assert tune.command(["srun", "--gpus", "1"])[:5] == ["srun", "--gpus", "1", sys.executable, "-m"]
    assert data.command(accelerate)[0] == sys.executable


def test_what_goes_in_decides_what_is_run_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    def keys(folder: Path, **changes: Any) -> dict[str, str]:
        return {stage.name: stage.output.name for stage in stages(study_of(folder, **changes))}

    first = keys(tmp_path / "a")
    assert keys(tmp_path / "b") == first  # elsewhere, the same
    slower = keys(tmp_path / "a", training={"num_train_epochs": 2})
    changed = {name for name in first if first[name] != slower[name]}
    assert changed == {name for name in first if "-lr" in name}
    more = keys(tmp_path / "a", evaluations={"cldr": {"tasks": ["calib_cldr_sw"], "arguments": {"limit": 6}}})
    assert {name for name in first if first[name] != more[name]} == {n for n in first if n.startswith("evaluate")}
    # The content of a data file counts, not its name.
    study = study_of(tmp_path / "a")
    (tmp_path / "a" / "own.jsonl").write_text('{"instruction": "a", "input": "", "output": "c"}\n')
    fingerprint.cache_clear()
    other = {stage.name: stage.output.name for stage in stages(study)}
    assert {name for name in first if first[name] != other[name]} == {name for name in first if "-own-" in name}


def test_weights_count_by_size_and_parts(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(bytes(3_000_000))
    fingerprint.cache_clear()
    before = fingerprint(tmp_path / "model")
    weights.write_bytes(bytes(2_999_999) + b"1")
    fingerprint.cache_clear()
    assert fingerprint(tmp_path / "model") != before
    (tmp_path / "model" / "config.json").write_text("{}")
    fingerprint.cache_clear()
    assert fingerprint(tmp_path / "model") != before


def write_evaluation(folder: Path, *, rows: int = 3) -> Path:
    inside = folder / "model"
    inside.mkdir(parents=True)
    told = {"n-samples": {"calib_cldr_sw": {"original": 9, "effective": 3}}}
    (inside / "results_2026-01-01T00-00-00.json").write_text(json.dumps(told))
    log = inside / "samples_calib_cldr_sw_2026-01-01T00-00-00.jsonl"
    log.write_text("{}\n" * rows)
    return log


def test_an_evaluation_is_finished_when_all_samples_are_there(tmp_path: Path) -> None:
    assert not evaluation_is_whole(tmp_path / "none")
    log = write_evaluation(tmp_path / "whole")
    assert evaluation_is_whole(tmp_path / "whole")
    log.write_text("{}\n{}\n{")
    assert not evaluation_is_whole(tmp_path / "whole")
    log.unlink()
    assert not evaluation_is_whole(tmp_path / "whole")
    (log.parent / "results_2026-01-01T00-00-00.json").write_text('{"n-sam')
    assert not evaluation_is_whole(tmp_path / "whole")


def test_dry_run_prints_lines_for_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of(tmp_path)
    plan = stages(study)
    write_evaluation(named(plan, "evaluate tiny cldr").output)
    assert main(["study", str(tmp_path / "study.yaml"), "--dry-run", "--launcher", "srun -n 1"]) == 0
    printed = capsys.readouterr().out
    checked = subprocess.run(["bash", "-n"], input=printed, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    commands = [shlex.split(line) for line in printed.splitlines() if line and not line.startswith("#")]
    assert commands == [stage.command(["srun", "-n", "1"]) for stage in plan if stage.name != "evaluate tiny cldr"]
    assert "evaluate tiny cldr: finished" in printed
    assert not (tmp_path / "out" / "logs").exists()


def test_weights_go_when_their_evaluations_are_done(tmp_path: Path) -> None:
    plan = stages(study_of(tmp_path))
    tune = named(plan, "train tiny-own-lr1e-05-ls0-seed0")
    evaluate = named(plan, "evaluate tiny-own-lr1e-05-ls0-seed0 cldr")
    tune.output.mkdir(parents=True)
    for name in ("calibration_training.json", "model.safetensors", "config.json"):
        (tune.output / name).write_text("{}")
    (tune.output / "checkpoint-3").mkdir()
    delete_models(plan)
    assert (tune.output / "model.safetensors").exists()  # the evaluation is still to come
    write_evaluation(evaluate.output)
    delete_models(plan)
    left = {path.name for path in tune.output.iterdir()}
    assert left == {"calibration_training_of_deleted_model.json", "config.json"}
    assert not tune.finished()
    assert {tune.name, evaluate.name} <= planning.settled(plan)  # it is not wanted any more
    shutil.rmtree(evaluate.output)
    assert not {tune.name, evaluate.name} & planning.settled(plan)  # now it is


def test_the_report_is_over_what_is_finished(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    plan = stages(study)
    base = named(plan, "evaluate tiny cldr")
    _, before = planning.report(study, [])
    text, after = planning.report(study, [base])
    assert [stage.output for stage in before] != [stage.output for stage in after]
    assert after[1].arguments[:5] == ("report", "--run", f"tiny={base.output}", "--baseline", "tiny")
    design = json.loads(text)
    assert design["missing"] == 16
    assert design["runs"][0]["logs"] == {"cldr": str(base.output)}


def test_ready_made_studies_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "model_path", lambda spec: spec.pretrained)
    sizes = {}
    for name in ready_made():
        study = replace(read_study(name), data="somewhere")
        check_training_arguments(study)
        sizes[name] = len(planning.runs(study))
        assert len(stages(study)) > sizes[name]
    assert sizes["papers"] == 3 + 3 * 3 * 4 * 3
    assert sizes["gemma3-270m"] == 1 + 2 * 3 * 2
    assert sizes["quick"] == 3
