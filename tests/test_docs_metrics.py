"""docs/metrics.md: its code prints what it says, and its table is METRICS."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from lm_eval_calib.metrics import METRICS

PAGE = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_code_prints_what_it_says() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block, names)
        # What follows a print, on its line or the next, is its output.
        said = [a or b for a, b in re.findall(r"^print\(.*?\)(?:  # (.*)|\n# (.*))$", block, flags=re.MULTILINE)]
        assert printed.getvalue().splitlines() == said


def test_the_table_is_the_metrics() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\S+) to (\S+) \| (\w*)", PAGE, flags=re.MULTILINE)
    better = {True: "higher", False: "lower"}
    assert len(rows) == len(METRICS)
    for name, inputs, low, high, direction in rows:
        metric = METRICS[name]
        assert (inputs, float(low), float(high)) == (metric.inputs, *metric.range)
        if metric.higher_is_better is not None:
            assert direction == better[metric.higher_is_better]
        else:
            assert direction in ("", "0")
