"""The command `lm-eval-calib`: one table of subcommands, each in a module that is imported when it is used."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from lm_eval_calib import __version__
from lm_eval_calib.errors import CalibrationError

# name -> (module with `add_arguments(parser)` and `run(arguments) -> int`, one line of help)
COMMANDS = {
    "demo": ("lm_eval_calib.demo", "evaluate a real multilingual model on the embedded benchmark"),
    "score": ("lm_eval_calib.report.score", "every metric, with intervals, from lm-eval sample logs"),
    "report": ("lm_eval_calib.report.command", "an HTML report over one or more runs"),
    "train": ("lm_eval_calib.train.command", "tune a model with label smoothing"),
    "study": ("lm_eval_calib.train.study", "base, tuned, tuned with smoothing: one configuration file"),
    "tasks": ("lm_eval_calib.listing", "list the benchmarks, languages and tiers"),
    "wrap": ("lm_eval_calib.wrap", "give stock lm-eval tasks the calibration metrics"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; a user's mistake ends in one line on standard error and exit status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Only the chosen subcommand's module is imported: `tasks --path` must not wait for torch.
    chosen = next((word for word in argv if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(prog="lm-eval-calib", description=__doc__.partition(":")[0])
    parser.add_argument("--version", action="version", version=f"lm-eval-calib {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    modules = {}
    for name, (module_name, help_line) in COMMANDS.items():
        command = commands.add_parser(name, help=help_line, description=help_line)
        if name == chosen:
            modules[name] = importlib.import_module(module_name)
            modules[name].add_arguments(command)
    arguments = parser.parse_args(argv)
    try:
        status = int(modules[arguments.command].run(arguments))
        sys.stdout.flush()
    except CalibrationError as error:
        print(f"lm-eval-calib {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"lm-eval-calib {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; what is still buffered must not raise it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


if __name__ == "__main__":
    sys.exit(main())
