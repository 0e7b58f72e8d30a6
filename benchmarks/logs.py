"""Sample logs as lm-eval writes them, of any size, and how fast they become a report.

    python benchmarks/logs.py make FOLDER --questions 14042 --runs base sft sft_ls
    python benchmarks/logs.py time FOLDER

`make` writes one log a language (Global-MMLU's 42 by default), with questions of realistic length in each language's
script and log-likelihoods of a simulated model: overconfident, more so in languages with few resources, and more
again in the run called sft. `time` reads them (against `json.loads` line by line, and pandas), makes the report, and
prints one table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

LANGUAGES = [
    *("am", "ar", "bn", "cs", "de", "el", "en", "es", "fa", "fil", "fr", "ha", "he", "hi", "id", "ig", "it", "ja"),
    *("ko", "ky", "lt", "mg", "ms", "ne", "nl", "ny", "pl", "pt", "ro", "ru", "si", "sn", "so", "sr", "sv", "sw"),
    *("te", "tr", "uk", "vi", "yo", "zh"),
]
DATE = "2026-01-01T00-00-00.000000"
# Sharpness of the simulated answers: above 1 is overconfident.
SHARPNESS = {"base": 1.3, "sft": 2.2, "sft_ls": 1.5}


def make(folder: Path, *, questions: int, languages: list[str], runs: list[str], shots: int) -> None:
    from babel import Locale

    from lm_eval_calib.languages import language as find

    for run in runs:
        target = folder / run / f"org__{run}"
        target.mkdir(parents=True, exist_ok=True)
        configs = {}
        for code in languages:
            task = f"calib_simulated_{code}"
            configs[task] = {
                "task": task, "doc_to_text": "{{question}}", "doc_to_choice": ["A", "B", "C", "D"],
                "doc_to_target": "gold", "target_delimiter": " ", "num_fewshot": shots,
                "metadata": {"version": 1.0, "num_bins": 15, "normalization": "none"},
            }  # fmt: skip
            words = list(Locale.parse(code).territories.values()) + list(Locale.parse(code).languages.values())
            tier = find(code).tier
            write_log(target / f"samples_{task}_{DATE}.jsonl", words, run, code, tier, questions, shots)
        told = {
            "results": {task: {"acc,none": 0.5} for task in configs}, "configs": configs,
            "lm_eval_version": "0.4.13", "transformers_version": "5.23.0",
            "versions": dict.fromkeys(configs, 1.0), "n-shot": dict.fromkeys(configs, shots),
            "model_name": f"org/{run}",
            "n-samples": {task: {"original": questions, "effective": questions} for task in configs},
            "config": {
                "model": "hf", "limit": None,
                "model_args": f"pretrained=org/{run},dtype=bfloat16,softmax_dtype=float32",
            },
        }  # fmt: skip
        (target / f"results_{DATE}.json").write_text(json.dumps(told))


def write_log(path: Path, words: list[str], run: str, code: str, tier: str | None, questions: int, shots: int) -> None:
    hard = {"high": 1.6, "mid": 1.1, "low": 0.6}.get(tier or "low", 0.6)
    sharp = SHARPNESS.get(run, 1.3) + (0.0 if run == "base" else {"high": 0.0, "mid": 0.2, "low": 0.5}[tier or "low"])
    shared = np.random.default_rng(int.from_bytes(code.encode(), "big"))  # the same questions for all runs
    own = np.random.default_rng([*run.encode(), *code.encode()])
    skill = shared.normal(hard + 0.3 * shared.normal(), 1.0, questions) + own.normal(0, 0.3, questions)
    picks = shared.integers(len(words), size=(questions, 60))
    golds = shared.integers(4, size=questions)

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    examples = "\n\n".join(" ".join(words[i] for i in row[:45]) + "\nAnswer: B" for row in picks[:shots])
    with path.open("w", encoding="utf-8") as file:
        for number in range(questions):
            some = [words[i] for i in picks[number]]
            choices = [" ".join(some[4 * k : 4 * k + 3]) for k in range(4)]
            question = " ".join(some[16:]) + "?"
            gold = int(golds[number])
            scores = own.normal(0, 0.8, 4)
            scores[gold] += skill[number]
            scores = sharp * scores
            scores -= np.logaddexp.reduce(scores) + own.exponential(0.2)
            pairs = [[repr(float(score)), "False"] for score in scores]
            lettered = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))
            context = f"{examples}\n\n{question}\n{lettered}\nAnswer:"
            row = {
                "doc_id": number,
                "doc": {
                    "sample_id": f"x/{number}", "subject": f"subject_{number % 57}", "question": question,
                    "choices": choices, "gold": gold,
                },
                "target": str(gold),
                "arguments": {f"gen_args_{k}": {"arg_0": context, "arg_1": f" {c}"} for k, c in enumerate("ABCD")},
                "resps": [[pair] for pair in pairs], "filtered_resps": pairs, "filter": "none", "metrics": ["acc"],
                "doc_hash": digest(question + lettered), "prompt_hash": digest(context),
                "target_hash": digest(str(gold)),
                "acc": float(int(np.argmax(scores)) == gold),
            }  # fmt: skip
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def measure(folder: Path) -> None:
    """Each way in a process of its own, so that memory is its own too."""
    files = sorted(folder.rglob("samples_*.jsonl"))
    size = sum(file.stat().st_size for file in files)
    print(f"{len(files)} logs, {size / 1e6:,.0f} MB, {os.cpu_count()} cores")
    ways = {
        "lm-eval-calib, load_predictions": "from lm_eval_calib.logs import load_predictions\n"
        "n = len(load_predictions(folder, progress=False))",
        "json.loads, keeping what is needed": "import json, pathlib\nkept = []\n"
        "for file in pathlib.Path(folder).rglob('samples_*.jsonl'):\n"
        "    for line in file.open(encoding='utf-8'):\n"
        "        row = json.loads(line)\n"
        "        values = [float(r[0]) for r in row['filtered_resps']]\n"
        "        kept.append((row['doc_id'], row['target'], values, row['doc_hash']))\n"
        "n = len(kept)",
        "pandas.read_json(lines=True)": "import pandas, pathlib\n"
        "files = pathlib.Path(folder).rglob('samples_*.jsonl')\n"
        "n = len(pandas.concat([pandas.read_json(file, lines=True) for file in files]))",
    }
    print(f"{'way':38} {'questions':>10} {'seconds':>8} {'MB/s':>6} {'peak MiB':>9}")
    for name, code in ways.items():
        program = (
            f"import sys, time, resource\nfolder = {str(folder)!r}\nstart = time.perf_counter()\n{code}\n"
            "print(n, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name:38} failed: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}")
            continue
        n, seconds, peak = map(float, done.stdout.split())
        print(f"{name:38} {n:10,.0f} {seconds:8.1f} {size / 1e6 / seconds:6.0f} {peak:9,.0f}", flush=True)
    start = time.perf_counter()
    from lm_eval_calib.report import Report

    report = Report.from_logs({run.name: run for run in sorted(folder.iterdir()) if run.is_dir()})
    paths = report.write(folder / "report")
    page = next(path for path in paths if path.suffix == ".html")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"report: {time.perf_counter() - start:.0f} s, {peak:,.0f} MiB, page {page.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["make", "time"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--questions", type=int, default=14_042)
    parser.add_argument("--languages", nargs="+", default=LANGUAGES)
    parser.add_argument("--runs", nargs="+", default=["base"])
    parser.add_argument("--shots", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.action == "make":
        make(
            arguments.folder, questions=arguments.questions, languages=arguments.languages, runs=arguments.runs,
            shots=arguments.shots,
        )  # fmt: skip
    else:
        measure(arguments.folder)


if __name__ == "__main__":
    main()
