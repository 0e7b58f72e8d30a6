"""`lm-eval-calib train` and `python -m lm_eval_calib.train`: from the command line to `tune.tune`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval_calib.errors import CalibrationError, CalibrationValueError, MissingExtraError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything after `train` is left to TRL's parser, which knows several hundred arguments."""
    # Without prefix characters nothing looks like an option to this parser, --help included.
    parser.prefix_chars = "\0"
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="[CONFIG.yaml] [--name value ...]")


def run(arguments: argparse.Namespace) -> int:
    """Train as the arguments say; 0 when finished."""
    return main(arguments.arguments)


def parse(argv: Sequence[str]) -> tuple[Any, Any, Any]:
    """(TuneArguments, TuneConfig, ModelConfig) from a YAML file, named first or by --config, and arguments.

    Raises:
        CalibrationValueError: unknown or impossible arguments.
        MissingExtraError: TRL is not installed.
    """
    try:
        from trl import TrlParser

        from lm_eval_calib.train.config import ModelConfig, TuneArguments, TuneConfig
    except ImportError as error:
        raise MissingExtraError("training", "train", error) from error

    argv = list(argv)
    if argv and argv[0].endswith((".yaml", ".yml")):
        argv.insert(0, "--config")
    if "--config" in argv:
        position = argv.index("--config") + 1
        if position == len(argv) or not Path(argv[position]).is_file():
            name = "nothing" if position == len(argv) else argv[position]
            raise CalibrationValueError(f"config: expected a YAML file, got {name}, which does not exist")
    parser = TrlParser(
        (TuneArguments, TuneConfig, ModelConfig),
        prog="lm-eval-calib train",
        usage="%(prog)s [CONFIG.yaml] [--name value ...]",
    )
    try:
        with warnings.catch_warnings():
            # TRL's own default, under the name that transformers 5 retires.
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
            data, config, model = parser.parse_args_and_config(argv)
    except CalibrationError:
        raise
    except Exception as error:  # YAML errors, and ValueErrors of transformers and TRL about arguments
        raise CalibrationValueError(f"arguments: {error}") from error
    check_model_name("model_name_or_path", model.model_name_or_path)
    if not config.output_dir:
        raise CalibrationValueError("output_dir: expected a folder for the checkpoint, got nothing")
    return data, config, model


def check_model_name(argument: str, name: str | None) -> None:
    """Refuse what is neither a folder nor a Hub id, which has one slash at most and does not begin like a path."""
    if not name:
        raise CalibrationValueError(f"{argument}: expected a folder or a Hub id, got nothing")
    if (name[0] in "./~" or name.count("/") > 1) and not Path(name).is_dir():
        raise CalibrationValueError(
            f"{argument}: expected a model's folder or a Hub id such as org/name; there is no folder {name}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; mistakes leave as `CalibrationError`."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    from lm_eval_calib.train.tune import tune

    tune(*arguments)
    return 0
