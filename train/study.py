"""`lm-eval-calib study`: tune, evaluate and compare a grid of models from one file.

    lm-eval-calib study quick                     # a ready-made study, or the path of your own file
    lm-eval-calib study papers --dry-run          # print every command, run none
    lm-eval-calib study mine.yaml --launcher "accelerate launch --num_processes 8"

Every stage is an ordinary command (`python -m lm_eval_calib.train ...`, `python -m lm_eval run ...`). What
is finished is recognised by its results and never run again, so a study that was stopped is started again
with the same line.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shlex
import shutil
from pathlib import Path

from lm_eval_calib.errors import CalibrationValueError, MissingExtraError
from lm_eval_calib.train import stages as planning
from lm_eval_calib.train.command import check_model_name
from lm_eval_calib.train.runner import Outcome, Runner, gpus, only_one
from lm_eval_calib.train.study_config import Study, read_study, ready_made


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The study's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.add_argument("study", metavar="STUDY", help=f"a YAML file, or one of {', '.join(ready_made())}")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, in order, and run none")
    parser.add_argument(
        "--launcher",
        default="",
        help="words before each command that uses a model, such as 'srun --gpus 1' or "
        "'accelerate launch --num_processes 4' (which starts the module itself)",
    )
    parser.add_argument("--output-dir", type=Path, help="folder for everything (default: runs/NAME)")
    parser.add_argument("--data", help="folder that {data} stands for in the study's paths")
    parser.add_argument("--gpus", help="GPUs to use, such as 0,1 (default: all); each takes stages of its own")
    parser.add_argument("--parallel", type=int, help="stages side by side on each GPU, or without one (default: 1)")
    parser.add_argument(
        "--no-report", action="store_true", help="end with the evaluations; the same line makes it later"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="lay a value over the file, such as seeds=[0]",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the study, or print its commands."""
    overrides = list(arguments.set)
    for key in ("output_dir", "data", "parallel"):
        if (value := getattr(arguments, key)) is not None:
            overrides.append(f"{key}={json.dumps(str(value) if key != 'parallel' else value)}")
    study = read_study(arguments.study, overrides=overrides)
    launcher = shlex.split(arguments.launcher)
    if launcher and not arguments.dry_run and shutil.which(launcher[0]) is None:
        raise CalibrationValueError(f"--launcher: {launcher[0]!r} is not on the PATH; write its path, or install it")
    plan = planning.stages(study)
    if arguments.dry_run:
        print_commands(study, plan, launcher)
        return 0
    visible = gpus() if arguments.gpus is None else [part for part in arguments.gpus.split(",") if part]
    check_local_files(study)
    check_training_arguments(study)
    with only_one(study.output_dir):
        # A launcher asks for its own devices.
        slots: list[str | None] = [*([None] if launcher or not visible else visible)] * study.parallel
        print(f"{study.name}: {len(plan)} stages, {len(slots)} at a time; everything goes to {study.output_dir}")
        try:
            outcome = Runner(
                plan,
                folder=study.output_dir,
                slots=slots,
                launcher=launcher,
                say=_say,
                after=functools.partial(delete_models, plan) if study.delete_models else None,
            ).run()
        except KeyboardInterrupt:
            write_report(study, plan, run_it=False)
            raise
        ending = write_report(study, plan, run_it=not arguments.no_report)
    return summary(study, outcome, ending)


def print_commands(study: Study, plan: list[planning.Stage], launcher: list[str]) -> None:
    """Every command as the shell takes it, what is finished as a comment."""
    print(f"# {study.name}: {len(plan)} stages; each needs those named after it")
    settled = planning.settled(plan)
    for number, stage in enumerate(plan, 1):
        needs = f" (needs: {', '.join(stage.needs)})" if stage.needs else ""
        state = "finished" if stage.name in settled else "to run"
        print(f"\n# {number}/{len(plan)} {stage.name}{needs}: {state}")
        print(("# " if stage.name in settled else "") + shlex.join(stage.command(launcher)))
    print("\n# Then this line again, without --dry-run: it finds what is finished and writes the report.")


def write_report(study: Study, plan: list[planning.Stage], *, run_it: bool = True) -> Outcome | None:
    """Run the report over the finished evaluations, unless there is one over just these; None if it is not run.

    What it reads is written in any case.
    """
    done = [stage for stage in plan if stage.kind == "evaluate" and stage.finished()]
    if not done:
        return None
    design, reports = planning.report(study, done)
    path = Path(reports[0].arguments[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(design, encoding="utf-8")
    return Runner(reports, folder=study.output_dir, say=_say).run() if run_it else None


def summary(study: Study, outcome: Outcome, ending: Outcome | None) -> int:
    """Say how it ended; exit status 0 only if every stage is done."""
    failed = [*outcome.failed, *(ending.failed if ending else ())]
    if ending is not None and not ending.failed:
        pages = sorted((study.output_dir / "report").glob("page-*/report.html"), key=lambda page: page.stat().st_mtime)
        print(f"Report: {study.output_dir / 'report' / 'study.md'}; every run in one page: {pages[-1]}")
    if failed or outcome.skipped:
        print(
            f"{len(failed)} stages failed ({', '.join(failed)}), {len(outcome.skipped)} were skipped for it; "
            f"logs are in {study.output_dir / 'logs'}; the same line again runs only these"
        )
        return 1
    return 0


def delete_models(plan: list[planning.Stage]) -> None:
    """Remove the weights of tuned models whose evaluations are all done; what tells of the training stays.

    Under another name, so that the training counts as finished no longer, should another evaluation want the model.
    """
    for stage in plan:
        users = [other for other in plan if stage.name in other.needs]
        if stage.kind != "train" or not stage.finished() or not users or not all(user.finished() for user in users):
            continue
        told = stage.output / "calibration_training.json"
        told.rename(told.with_name("calibration_training_of_deleted_model.json"))
        for path in [*stage.output.glob("*.safetensors"), *stage.output.glob("checkpoint-*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_local_files(study: Study) -> None:
    """Refuse before the first stage what a later one would stumble over: a model or data file that is not there."""
    for name, spec in study.models.items():
        check_model_name(f"models.{name}.pretrained", spec.pretrained)
    for name, part in study.instruction_sets.items():
        for entry in part.train_data:
            path = Path(entry.format(data=study.data))
            looks_local = path.suffix in (".json", ".jsonl", ".parquet") or "{data}" in entry
            if looks_local and not path.exists():
                raise CalibrationValueError(
                    f"instruction_sets.{name}.train_data: no file {path}; --data names the folder of {{data}}"
                )


def check_training_arguments(study: Study) -> None:
    """Refuse an argument that the trainer does not know before anything has run."""
    tables = {
        "training": study.training,
        **{f"models.{name}.training": part.training for name, part in study.models.items()},
        **{f"instruction_sets.{name}.training": part.training for name, part in study.instruction_sets.items()},
    }
    if not any(tables.values()):
        return
    try:
        from lm_eval_calib.train.config import ModelConfig, TuneArguments, TuneConfig
    except ImportError as error:
        raise MissingExtraError("training", "train", error) from error

    kinds = (TuneArguments, TuneConfig, ModelConfig)
    known = {part.name for kind in kinds for part in dataclasses.fields(kind)}
    for where, table in tables.items():
        if unknown := sorted(set(table) - known):
            raise CalibrationValueError(
                f"{where}: `lm-eval-calib train` has no argument {', '.join(unknown)}; its --help lists them"
            )


def _say(text: str) -> None:
    print(text, flush=True)
