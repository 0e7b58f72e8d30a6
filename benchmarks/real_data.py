"""XCOPA and EXAMS with a real model, all languages: python benchmarks/real_data.py --data DIR -- --model hf ...

DIR holds `xcopa/<language>/{val,test}.jsonl` and `exams/{dev,test}.jsonl` as their authors publish them. They are laid
out as on the hub in `--hub`, stock lm_eval runs there with the arguments after `--` (so their paths must be absolute),
and a table by language is printed from its results file. `--table RESULTS.json` prints the table of a
finished run. For example:

    python benchmarks/real_data.py --data ../shared/data -- --model hf --batch_size 64 --device cuda:0 \\
        --model_args pretrained=MODEL,dtype=bfloat16,softmax_dtype=float32
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from lm_eval_calib.languages import TIERS
from lm_eval_calib.sources import read_benchmark
from lm_eval_calib.tasks.generate import ROOT

BENCHMARKS = ("xcopa", "exams")
COLUMNS = ("acc", "confidence", "overconfidence", "ece", "rms_ce", "brier", "auroc")


def local_hub(data: Path, hub: Path) -> None:
    """Lay the files out under their ids on the hub, where `datasets.load_dataset` finds them from that folder."""
    layouts = {
        "cambridgeltl/xcopa": {
            folder.name: {"validation": folder / "val.jsonl", "test": folder / "test.jsonl"}
            for folder in sorted((data / "xcopa").iterdir())
        },
        "mhardalov/exams": {
            "multilingual": {"validation": data / "exams" / "dev.jsonl", "test": data / "exams" / "test.jsonl"}
        },
    }
    for name, configs in layouts.items():
        entries = []
        for config, splits in configs.items():
            (hub / name / config).mkdir(parents=True, exist_ok=True)
            for split, source in splits.items():
                shutil.copyfile(source, hub / name / config / f"{split}.jsonl")
            listed = [{"split": split, "path": f"{config}/{split}.jsonl"} for split in splits]
            entries.append({"config_name": config, "data_files": listed})
        front = yaml.safe_dump({"configs": entries})
        (hub / name / "README.md").write_text(f"---\n{front}---\n", encoding="utf-8")


def table(results: dict[str, Any]) -> str:
    """A Markdown table by language, with the means by tier under each benchmark."""
    lines = []
    for name in BENCHMARKS:
        benchmark = read_benchmark(ROOT / name)
        lines += ["", f"| {benchmark.title} | tier | n | {' | '.join(COLUMNS)} |", "| --- " * (3 + len(COLUMNS)) + "|"]
        rows = {benchmark.task_name(suffix): benchmark.language(suffix) for suffix in benchmark.languages}
        groups = [f"calib_{name}", *(f"calib_{name}_{tier}" for tier in TIERS)]
        for task in [*rows, *groups]:
            its = results["results"].get(task)
            if its is None:
                continue
            label = f"{rows[task].name} | {rows[task].tier}" if task in rows else f"**{task}** | "
            count = results["n-samples"][task]["effective"] if task in rows else its["sample_len"]
            lines.append(f"| {label} | {count} | " + " | ".join(f"{its[f'{c},none']:.3f}" for c in COLUMNS) + " |")
    return "\n".join(lines[1:])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--hub", type=Path, default=Path("build/real-hub"))
    parser.add_argument("--output", type=Path, default=Path("build/real-results"))
    parser.add_argument("--table", type=Path, metavar="RESULTS.json")
    parser.add_argument("arguments", nargs="*", help="for lm_eval run, after --")
    options = parser.parse_args()
    path = options.table
    if path is None:
        local_hub(options.data, options.hub)
        command = [sys.executable, "-m", "lm_eval", "run", "--tasks", ",".join(f"calib_{name}" for name in BENCHMARKS)]
        command += ["--output_path", str(options.output.resolve()), *options.arguments]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str((options.hub / "cache").resolve())}
        subprocess.run(command, cwd=options.hub, env=environment, check=True)
        path = max(options.output.rglob("results_*.json"), key=lambda found: found.stat().st_mtime)
        print(path)
    print(table(json.loads(path.read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
