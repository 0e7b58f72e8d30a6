"""What the README says about the package is checked against the package."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import ROOT

from lm_eval_calib.cli import COMMANDS
from lm_eval_calib.metrics import METRICS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_metrics_table_lists_what_the_harness_shows() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", README, re.MULTILINE)
    assert [name for name, _ in rows] == [metric.name for metric in METRICS.values() if metric.live]
    for name, source in rows:
        assert source.strip() == "lm-evaluation-harness" or METRICS[name].citation.startswith(source.strip()), name


def test_every_command_and_document_named_exists() -> None:
    named = set(re.findall(r"lm-eval-calib ([a-z]+)\b", README)) - {"adds"}
    assert named <= set(COMMANDS)
    for path in re.findall(r"\((docs/[^)]+)\)", README):
        assert Path(ROOT, path).is_file(), path
