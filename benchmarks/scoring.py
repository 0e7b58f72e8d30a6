"""`--model hf-calib` beside `--model hf`: python benchmarks/scoring.py --pretrained MODEL --exams EXAMS/test.jsonl

Multiple-choice requests made from EXAMS (real questions, 16 languages), scored by both on the same weights: time,
memory, and the largest difference between their log-likelihoods. `hf` is given its best batch size, `auto`
included, found first on a quarter of the requests; the rounds are interleaved and medians are compared. Also:
  --rows      how the time depends on the length of a row; 1 is a row for each piece, the cache expanded for it
  --growth    how it grows with the number of questions, shots and choices
  --other     another model of lm-eval in the same run, e.g. --other vllm:pretrained=MODEL,dtype=bfloat16
  --equality  every log-likelihood against float32 hf at batch size 1, in float32 and bfloat16
  --whole     a whole task or group through lm-eval (calib_cldr), and where the time goes
  --json      write all figures there
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from exams_requests import letter_requests, text_requests
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_calib.scoring import SharedPrefixLM


class Peak:
    """The most memory taken above what was taken before, in MiB: the GPU's allocator, else this process."""

    def __enter__(self) -> Peak:
        gc.collect()
        self.on_gpu = torch.cuda.is_available()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated() if self.on_gpu else psutil.Process().memory_info().rss
        self.most, self.stop = self.before, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while not self.on_gpu and not self.stop.wait(0.02):
            self.most = max(self.most, process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        if self.on_gpu:
            self.most = torch.cuda.max_memory_allocated()
        self.mib = (self.most - self.before) / 2**20


def score(model: Any, requests: list[Instance]) -> tuple[float, float, list[float]]:
    """Seconds, processor seconds (what a machine that others use can be judged by), log-likelihoods."""
    begin, busy = time.perf_counter(), time.process_time()
    answers = model.loglikelihood(requests, disable_tqdm=True)
    seconds, processor = time.perf_counter() - begin, time.process_time() - busy
    return seconds, processor, [float(answer[0]) for answer in answers]


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.figures = arguments, []
        self.on_gpu = torch.cuda.is_available()
        kind = "cuda" if self.on_gpu else "cpu"
        self.where = torch.cuda.get_device_name() if self.on_gpu else f"CPU, {torch.get_num_threads()} threads"
        dtype = getattr(torch, arguments.dtype)
        model = AutoModelForCausalLM.from_pretrained(arguments.pretrained, dtype=dtype).to(kind)
        # A plain object, so that all share one copy of the weights.
        self.common = {"pretrained": model, "tokenizer": AutoTokenizer.from_pretrained(arguments.pretrained)}
        if arguments.max_length:
            self.common["max_length"] = arguments.max_length
        self.sizes = [size if size == "auto" else int(size) for size in arguments.batch_sizes.split(",")]
        self.ours = SharedPrefixLM(**self.common)
        self.unshared = SharedPrefixLM(**self.common, share_prefixes=False)

    def hf(self, batch_size: int | str) -> HFLM:
        return HFLM(**self.common, batch_size=batch_size)

    def best_hf(self, requests: list[Instance]) -> int | str:
        """hf's fastest batch size on a quarter of the questions and the longest ones, which have to fit as well.

        On a GPU each scores them twice, as the first time it also compiles attention kernels for its shapes.
        """
        largest = max((size for size in self.sizes if size != "auto"), default=1)
        longest = {id(request) for request in sorted(requests, key=lambda x: -len(x.args[0]))[: 4 * largest]}
        part = [request for request in requests if request.doc_id % 4 == 0 or id(request) in longest]
        found: dict[int | str, float] = {}
        for size in self.sizes:
            try:
                model = self.hf(size)
                found[size] = min(score(model, part)[0] for _ in range(1 + self.on_gpu))
                del model
            except RuntimeError as error:
                print(f"  hf batch_size={size}: {str(error).splitlines()[0][:100]}")
            gc.collect()
            if self.on_gpu:
                torch.cuda.empty_cache()
        print("  hf on a part, s by batch size:", ", ".join(f"{size}: {s:.2f}" for size, s in found.items()))
        return min(found, key=lambda size: found[size])

    def compare(self, title: str, requests: list[Instance], peers: dict[str, Callable[[], Any]]) -> dict[str, float]:
        """Medians of the rounds, printed and kept; the first peer is the reference.

        On a processor, which others may be using, the peers take turns. On a GPU each has the memory to itself and
        first scores everything once, told apart: what is compiled and allocated then says nothing about a long run.
        """
        rounds = self.arguments.rounds
        turns = [name for name in peers for _ in range(rounds + 1)] if self.on_gpu else [*peers] * rounds
        seconds: dict[str, list[float]] = {name: [] for name in peers}
        processor: dict[str, list[float]] = {name: [] for name in peers}
        peak: dict[str, float] = {}
        first_time: dict[str, float] = {}
        answers: dict[str, list[float]] = {}
        failed: set[str] = set()
        for name in turns:
            if name in failed:
                continue
            model = peers[name]()
            first = name not in peak
            try:
                if first:
                    with Peak() as watched:
                        took, busy, answers[name] = score(model, requests)
                    peak[name], first_time[name] = watched.mib, took
                else:
                    took, busy, answers[name] = score(model, requests)
            except RuntimeError as error:  # hf runs out of memory where a batch is longer than those of the trial.
                print(f"\n  {name}: {str(error).splitlines()[0][:100]}")
                failed.add(name)
                continue
            if not (first and self.on_gpu):
                seconds[name].append(took)
                processor[name].append(busy)
        seconds = {name: values for name, values in seconds.items() if values and name not in failed}
        if not seconds:
            return {}
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        reference = next(iter(seconds))  # hf, unless it failed
        print(f"\n{title}: {len({request.doc_id for request in requests})} questions, {len(requests)} requests")
        print(
            f"  {'':<28}{'s':>9}{'times as fast':>15}{'by CPU s':>10}{'peak MiB':>10}{'first time, s':>15}"
            f"{'largest difference':>20}"
        )
        for name, median in medians.items():
            by_processor = statistics.median(processor[reference]) / statistics.median(processor[name])
            difference = max(abs(a - b) for a, b in zip(answers[name], answers[reference], strict=True))
            print(
                f"  {name:<28}{median:>9.2f}{medians[reference] / median:>15.2f}{by_processor:>10.2f}"
                f"{peak[name]:>10.0f}{first_time[name]:>15.2f}{difference:>20.2g}"
            )
            self.figures.append(
                {"where": self.where, "case": title, "requests": len(requests), "peer": name, "seconds": seconds[name]}
                | {"processor_seconds": processor[name], "peak_mib": peak[name], "difference": difference}
                | {"first_seconds": first_time[name]}
            )
        self.save()
        return medians

    def save(self) -> None:
        if self.arguments.json:
            self.arguments.json.write_text(json.dumps(self.figures, indent=1), encoding="utf-8")

    def main_table(self) -> None:
        path, count = self.arguments.exams, self.arguments.questions
        cases = {
            "five-shot, four letters": letter_requests(path, count, shots=5),
            "zero-shot, four letters": letter_requests(path, count, shots=0),
            "zero-shot, long choices": text_requests(path, count),
        }
        for title, requests in cases.items():
            best = self.best_hf(requests)
            peers: dict[str, Callable[[], Any]] = {
                f"hf, batch_size={best}": lambda best=best: self.hf(best),
                "hf-calib": lambda: self.ours,
                "hf-calib, nothing shared": lambda: self.unshared,
            }
            for other in self.arguments.other:
                name, _, options = other.partition(":")
                made = get_model(name).create_from_arg_string(options)
                peers[other[:28]] = lambda made=made: made
            self.compare(title, requests, peers)

    def rows(self) -> None:
        path, count = self.arguments.exams, self.arguments.questions
        for title, requests in (
            ("rows: five-shot, four letters", letter_requests(path, count, shots=5)),
            ("rows: zero-shot, long choices", text_requests(path, count)),
        ):
            models = {f"row_tokens={n}": SharedPrefixLM(**self.common, row_tokens=n) for n in (1, 128, 256, 512, 1024)}
            self.compare(title, requests, {name: lambda model=model: model for name, model in models.items()})

    def growth(self) -> None:
        path, count = self.arguments.exams, max(1, self.arguments.questions // 4)
        best = self.best_hf(letter_requests(path, count, shots=5))
        peers = {f"hf, batch_size={best}": lambda: self.hf(best), "hf-calib": lambda: self.ours}
        for part in (1, 2, 4):
            self.compare(f"growth: questions {count * part}", letter_requests(path, count * part, shots=5), peers)
        for shots in (0, 1, 2, 5, 10):
            self.compare(f"growth: shots {shots}", letter_requests(path, count, shots=shots), peers)
        for choices in (2, 3, 4, 5):
            self.compare(f"growth: choices {choices}", letter_requests(path, count, shots=5, choices=choices), peers)

    def equality(self) -> None:
        """Every log-likelihood against float32 `hf` at batch size 1, for both in float32 and in bfloat16."""
        from lm_eval.tasks import TaskManager

        from lm_eval_calib.autoload import task_folder

        path, count = self.arguments.exams, max(8, self.arguments.questions // 8)
        tasks = TaskManager(include_path=str(task_folder()), include_defaults=False).load(["calib_cldr_demo"])["tasks"]
        embedded = []
        for task in tasks.values():
            task.build_all_requests(limit=max(1, count // len(tasks)), rank=0, world_size=1)
            embedded += task.instances
        cases = {
            "embedded benchmark": embedded,
            "letters, zero-shot": letter_requests(path, count, shots=0),
            "letters, five-shot": letter_requests(path, count, shots=5),
            "long choices": text_requests(path, count),
        }
        requests = [request for part in cases.values() for request in part]
        answers = {}
        for dtype in (torch.float32, torch.bfloat16):
            model = AutoModelForCausalLM.from_pretrained(self.arguments.pretrained, dtype=dtype)
            common = {**self.common, "pretrained": model.to("cuda" if self.on_gpu else "cpu")}
            # float64: hf's float32 log-softmax over a quarter of a million words is itself off by 5e-4 on a CPU.
            softmax = "float64" if dtype == torch.float32 else "float32"
            for lm in (HFLM(**common, batch_size=1, softmax_dtype=softmax), SharedPrefixLM(**common)):
                answers[type(lm) is HFLM, dtype] = lm.loglikelihood(requests, disable_tqdm=True)
        reference = answers[True, torch.float32]
        print("\ndifferences from hf in float32 at batch size 1; greedy: how many flags differ")
        print(f"  {'':<56}{'requests':>9}{'rms':>10}{'largest':>10}{'greedy':>9}")
        start = 0
        for title, part in cases.items():
            span = slice(start, start + len(part))
            start += len(part)
            for (is_hf, dtype), found in answers.items():
                if is_hf and dtype == torch.float32:
                    continue
                off = [abs(float(a[0]) - float(b[0])) for a, b in zip(found[span], reference[span], strict=True)]
                other = sum(a[1] != b[1] for a, b in zip(found[span], reference[span], strict=True))
                name = f"{title}, {'hf' if is_hf else 'hf-calib'}, {str(dtype).removeprefix('torch.')}"
                rms = statistics.fmean(x * x for x in off) ** 0.5
                print(f"  {name:<56}{len(part):>9}{rms:>10.2g}{max(off):>10.2g}{other:>9}")
                self.figures.append(
                    {"where": self.where, "case": name, "rms": rms, "largest": max(off), "greedy": other}
                )
        self.save()

    def whole(self, tasks: Sequence[str]) -> None:
        """A run of lm-eval as users start it, by phases."""
        import lm_eval
        from lm_eval.tasks import TaskManager

        begin = time.perf_counter()
        manager = TaskManager()
        indexed = time.perf_counter() - begin
        model = SharedPrefixLM(**self.common)
        scoring = 0.0
        plain = model.loglikelihood

        def timed(requests: list[Instance], **options: Any) -> Any:
            nonlocal scoring
            start = time.perf_counter()
            answers = plain(requests, **options)
            scoring += time.perf_counter() - start
            return answers

        model.loglikelihood = timed
        begin = time.perf_counter()
        result = lm_eval.simple_evaluate(
            model=model, tasks=list(tasks), task_manager=manager, limit=self.arguments.limit, bootstrap_iters=0
        )
        total = time.perf_counter() - begin
        samples = sum(len(rows) for rows in result["samples"].values())
        work = model._engine.work
        print(f"\n{','.join(tasks)}: {samples} questions, {total:.1f} s after {indexed:.1f} s for the task index")
        phases = {
            "harness (prompts, metrics)": total - scoring,
            "scoring": scoring,
            **{f"  of it waiting for the {name}": seconds for name, seconds in work.seconds.items()},
        }
        for name, seconds in phases.items():
            print(f"  {name:<40}{seconds:>9.1f} s")
        print(f"  {work.run} of {work.asked} tokens run, {work.logits} rows of logits, {work.passes} passes")
        self.figures.append(
            {"where": self.where, "case": ",".join(tasks), "questions": samples, "total": total, "index": indexed}
            | {"phases": phases, "run": work.run, "asked": work.asked, "logits": work.logits, "passes": work.passes}
        )
        self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--exams", type=Path, required=True, help="EXAMS test.jsonl")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-length", type=int, help="as in model_args")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", default="1,8,32,64,128,auto", help="for hf")
    parser.add_argument("--other", action="append", default=[], metavar="MODEL:ARGS")
    parser.add_argument("--no-table", action="store_true")
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--equality", action="store_true")
    parser.add_argument("--whole", metavar="TASKS")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    bench = Bench(arguments)
    print(bench.where, "torch", torch.__version__, arguments.dtype)
    for model in (bench.ours, bench.hf(1)):  # kernels, the probe, the first growth of the budget
        score(model, letter_requests(arguments.exams, 16, shots=5))
    if not arguments.no_table:
        bench.main_table()
    if arguments.rows:
        bench.rows()
    if arguments.growth:
        bench.growth()
    if arguments.equality:
        bench.equality()
    if arguments.whole:
        bench.whole(arguments.whole.split(","))


if __name__ == "__main__":
    main()
