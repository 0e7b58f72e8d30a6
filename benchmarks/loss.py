"""The label-smoothed loss against its peers: milliseconds, memory and error of a forward and a backward pass.

    python benchmarks/loss.py [--shapes gemma-3-270m ...] [--implementations ours torch ...] [--output
    table.md]

One CUDA GPU, bf16, 8,192 tokens unless told otherwise. Each implementation is checked first: loss and
gradients against float32 full logits (computed in slices), as norms of differences over norms; a cell of one
that fails is printed as it is. Then it is timed: the median of several forward and backward passes between
CUDA events. Memory is the peak above the inputs; the gradients, which nobody can avoid, are part of it. Peers
that are not installed are left out by name. Implementations marked "b=0" do not smooth and are compared with
an unsmoothed reference.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812

SHAPES = {
    "mistral-7b": (4096, 32_768),
    "llama-3.1-8b": (4096, 128_256),
    "gemma-2-2b": (2304, 256_000),
    "gemma-3-270m": (640, 262_144),
}
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def capped(z: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def identity(h: torch.Tensor, w: torch.Tensor, t: torch.Tensor, nll: torch.Tensor, b: float) -> torch.Tensor:
    """Smoothing as one dot product a token, which holds where the logits are linear."""
    return nll + b * ((h * w[t]).sum(-1, dtype=torch.float32) - (h @ w.mean(0)).float()).mean()


def label_smoother(b: float, softcap: float | None) -> Loss:
    from transformers.trainer_pt_utils import LabelSmoother

    smoother = LabelSmoother(epsilon=b)
    return lambda h, w, t: smoother({"logits": capped(h @ w.t(), softcap)[None]}, t[None].clone())


def torch_full(b: float, softcap: float | None) -> Loss:
    return lambda h, w, t: F.cross_entropy(capped((h @ w.t()).float(), softcap), t, label_smoothing=b)


def torch_compiled(b: float, softcap: float | None) -> Loss:
    return torch.compile(torch_full(b, softcap), dynamic=False)


def liger(b: float, softcap: float | None) -> Loss:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(label_smoothing=b, softcap=softcap)
    return lambda h, w, t: loss(w, h, t)


def cut_cross_entropy(b: float, softcap: float | None) -> Loss:
    from cut_cross_entropy import linear_cross_entropy

    if b and softcap is not None:
        raise NotImplementedError("the identity needs linear logits")

    def loss(h: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nll = linear_cross_entropy(h, w, t, softcap=softcap)
        return identity(h, w, t, nll, b) if b else nll

    return loss


def trl_head(b: float, softcap: float | None) -> Loss:
    import trl.trainer.utils  # noqa: F401  (its backward pass imports it)
    from trl.kernels import ChunkedLogProbFunction

    if b and softcap is not None:
        raise NotImplementedError("the identity needs linear logits")

    def loss(h: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nll = -ChunkedLogProbFunction.apply(h, w, None, t, 1.0, 32768, softcap, 1.0, ())[0].mean()
        return identity(h, w, t, nll, b) if b else nll

    return loss


def ours(b: float, softcap: float | None) -> Loss:
    from lm_eval_calib.train import label_smoothed_nll

    return lambda h, w, t: label_smoothed_nll(h, w, t, label_smoothing=b, softcap=softcap).loss


# name -> (maker, does it smooth)
IMPLEMENTATIONS: dict[str, tuple[Callable[[float, float | None], Loss], bool]] = {
    "transformers LabelSmoother": (label_smoother, True),
    "torch F.cross_entropy": (torch_full, True),
    "torch.compile": (torch_compiled, True),
    "liger": (liger, True),
    "trl, b=0": (trl_head, False),
    "trl + identity": (trl_head, True),
    "cut-cross-entropy, b=0": (cut_cross_entropy, False),
    "cut-cross-entropy + identity": (cut_cross_entropy, True),
    "ours": (ours, True),
}


def make_inputs(
    shape: tuple[int, int], tokens: int, data: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`random`: logits N(0, 1), uniform targets. `text`: logits log p + N(0, 1) of a Zipf law, targets drawn
    from it.
    """
    size, vocabulary = shape
    generator = torch.Generator("cuda").manual_seed(seed)
    h = torch.randn(tokens, size, device="cuda", generator=generator)
    w = torch.randn(vocabulary, size, device="cuda", generator=generator) * size**-0.5
    if data == "text":
        law = 1 / (torch.arange(vocabulary, device="cuda") + 2.7)
        t = torch.multinomial(law, tokens, replacement=True, generator=generator)
        h[:, 0] = 1
        w[:, 0] = law.log()
    else:
        t = torch.randint(vocabulary, (tokens,), device="cuda", generator=generator)
    return h.bfloat16().requires_grad_(), w.bfloat16().requires_grad_(), t


def reference(
    h: torch.Tensor, w: torch.Tensor, t: torch.Tensor, b: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, dh, dW in float32, 512 tokens at a time."""
    h32, w32 = h.detach().float().requires_grad_(), w.detach().float().requires_grad_()
    total = torch.zeros((), device=h.device)
    for rows in torch.arange(len(t), device=t.device).split(512):
        z = capped(h32[rows] @ w32.t(), softcap)
        loss = F.cross_entropy(z, t[rows], label_smoothing=b, reduction="sum") / len(t)
        loss.backward()
        total += loss.detach()
        del z, loss
    assert h32.grad is not None
    assert w32.grad is not None
    return total, h32.grad, w32.grad


def error(got: torch.Tensor | None, want: torch.Tensor) -> float:
    if got is None:
        return float("nan")
    return float(torch.linalg.vector_norm(got.float() - want) / torch.linalg.vector_norm(want))


def measure(loss: Loss, h: torch.Tensor, w: torch.Tensor, t: torch.Tensor, repeats: int) -> tuple[float, float]:
    """Median milliseconds, and peak MiB above the inputs."""
    times = []
    peak = 0.0
    for turn in range(repeats + 3):
        h.grad = w.grad = None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        loss(h, w, t).backward()
        end.record()
        torch.cuda.synchronize()
        if turn >= 3:
            times.append(start.elapsed_time(end))
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    return statistics.median(times), peak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--implementations", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS))
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--softcap", type=float, default=30.0, help="of the second half of the table")
    parser.add_argument("--data", nargs="+", choices=["random", "text"], default=["random", "text"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write the table here, too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/loss.py: needs a CUDA GPU", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {datetime.date.today()}; bf16, "
        f"{arguments.tokens:,} tokens, smoothing {arguments.smoothing}. Errors of loss, dh, dW against "
        f"float32, on {' / '.join(arguments.data)} data; timed on the first.",
        "",
        "| shape | soft-cap | implementation | ms | peak MiB | gradients MiB | errors |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for name in arguments.shapes:
        for softcap in (None, arguments.softcap):
            lines += rows_of(name, softcap, arguments)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def rows_of(name: str, softcap: float | None, arguments: argparse.Namespace) -> list[str]:
    errors: dict[str, list[str]] = {}
    timings: dict[str, str] = {}
    for data in arguments.data:
        h, w, t = make_inputs(SHAPES[name], arguments.tokens, data, seed=0)
        wanted: dict[float, tuple[torch.Tensor, ...]] = {}
        for implementation in arguments.implementations:
            maker, smooths = IMPLEMENTATIONS[implementation]
            if implementation == "torch.compile" and data != arguments.data[0]:
                continue  # the same arithmetic as torch, and a slow start
            b = arguments.smoothing if smooths else 0.0
            try:
                loss = maker(b, softcap)
                h.grad = w.grad = None
                value = loss(h, w, t)
                value.backward()
            except (ImportError, NotImplementedError) as problem:
                print(f"{name}, {implementation}: left out ({problem})", file=sys.stderr)
                continue
            if b not in wanted:
                kept = h.grad, w.grad
                wanted[b] = reference(h, w, t, b, softcap)
                h.grad, w.grad = kept
            got = (value.detach(), h.grad, w.grad)
            triple = " ".join(f"{error(x, y):.1e}" for x, y in zip(got, wanted[b], strict=True))
            errors.setdefault(implementation, []).append(triple)
            del value, got
            if data == arguments.data[0]:
                milliseconds, peak = measure(loss, h, w, t, arguments.repeats)
                gradients = (h.numel() + w.numel()) * 2 / 2**20
                timings[implementation] = f"{milliseconds:.1f} | {peak:,.0f} | {gradients:,.0f}"
            torch._dynamo.reset()
        del h, w, t, wanted
        torch.cuda.empty_cache()
    cap = "none" if softcap is None else f"{softcap:g}"
    table = [
        f"| {name} | {cap} | {implementation} | {timings[implementation]} | {' / '.join(found)} |"
        for implementation, found in errors.items()
    ]
    print("\n".join(table), flush=True)
    return table


if __name__ == "__main__":
    sys.exit(main())
