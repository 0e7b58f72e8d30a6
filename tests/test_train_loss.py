"""The loss against plain full logits: F.cross_entropy in float64, and in the same dtype where rounding is the
question.
"""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402, N812

from lm_eval_calib.errors import CalibrationValueError  # noqa: E402
from lm_eval_calib.train import fused, kernels  # noqa: E402
from lm_eval_calib.train.loss import fused_head, label_smoothed_nll  # noqa: E402


def full_logits(hidden, weight, targets, b, bias, softcap, scale, reduction):
    """(smoothed loss, plain NLL) as anyone would write them, in the dtype of the inputs' product or better."""
    z = F.linear(hidden, weight, bias)
    z = (z if z.dtype == torch.float64 else z.float()) * scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    return tuple(F.cross_entropy(z, targets, label_smoothing=s, reduction=reduction) for s in (b, 0.0))


def relative(got, want):
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).norm() / want.norm())


def make(tokens, vocabulary, size, *, bias=False, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, size, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, size, generator=generator) * size**-0.25).to(dtype).requires_grad_()
    vector = torch.randn(vocabulary, generator=generator).to(dtype).requires_grad_() if bias else None
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden, weight, vector, targets


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    """Each test runs with everything in one tile, and with odd chunks of tokens and blocks of the vocabulary."""
    if request.param == "many tiles":
        monkeypatch.setattr(fused, "CPU_TILE", 16 * 1024 * 4)
    return request.param


SHAPES = [(13, 101, 8), (1, 7, 4), (150, 2003, 16)]
HEADS = [(None, 1.0, False), (5.0, 1.0, True), (None, 0.3, True), (3.0, 2.0, False)]


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("b", [0.0, 0.1, 0.7])
@pytest.mark.parametrize(("softcap", "scale", "bias"), HEADS)
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_equals_full_logits(shape, softcap, scale, bias, b, reduction):
    hidden, weight, vector, targets = make(*shape, bias=bias)
    if shape[0] > 2:
        targets[[0, 2]] = -100
    inputs = [x for x in (hidden, weight, vector) if x is not None]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    wanted = full_logits(
        *doubles[:2], targets, b, doubles[2] if vector is not None else None, softcap, scale, reduction
    )
    got = label_smoothed_nll(
        hidden,
        weight,
        targets,
        label_smoothing=b,
        bias=vector,
        softcap=softcap,
        logit_scale=scale,
        reduction=reduction,
    )
    assert relative(got.loss, wanted[0]) < 1e-6
    assert relative(got.nll, wanted[1]) < 1e-6
    assert not got.nll.requires_grad
    upstream = torch.rand(got.loss.shape, generator=torch.Generator().manual_seed(1)) + 0.5
    for mine, reference in zip(
        torch.autograd.grad(got.loss, inputs, upstream),
        torch.autograd.grad(wanted[0], doubles, upstream.double()),
        strict=True,
    ):
        assert mine.dtype == torch.float32
        assert relative(mine, reference) < 1e-6


def test_hand_derived():
    # One hidden unit of 1, head rows 0, ln 2, ln 5: logits 0, ln 2, ln 5, so L = ln 8 and the mean logit is
    # ln(10) / 3.
    weight = torch.tensor([[0.0], [2.0], [5.0]]).log().clamp(min=0)
    weight.requires_grad_()
    loss, nll = label_smoothed_nll(torch.ones(1, 1), weight, torch.tensor([1]), label_smoothing=0.3)
    ln = lambda x: float(torch.tensor(x, dtype=torch.float64).log())  # noqa: E731
    assert nll.item() == pytest.approx(ln(8) - ln(2))
    assert loss.item() == pytest.approx(ln(8) - 0.7 * ln(2) - 0.3 * ln(10) / 3)
    loss.backward()
    # p - 0.3 / 3 everywhere, and -0.7 more at the target.
    expected = [1 / 8 - 0.1, 2 / 8 - 0.1 - 0.7, 5 / 8 - 0.1]
    assert weight.grad[:, 0].tolist() == pytest.approx(expected)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("mode", ["bfloat16", "float16", "autocast"])
@pytest.mark.parametrize(("softcap", "scale", "bias"), HEADS)
def test_16_bits_round_no_worse_than_full_logits(mode, softcap, scale, bias):
    """Both against float64: at most 1.2 times the error of full logits in the same dtype."""
    dtype = torch.float32 if mode == "autocast" else getattr(torch, mode)
    hidden, weight, vector, targets = make(300, 1003, 64, bias=bias, dtype=dtype)
    targets[5] = -100
    inputs = [x for x in (hidden, weight, vector) if x is not None]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    wanted = full_logits(*doubles[:2], targets, 0.1, doubles[2] if bias else None, softcap, scale, "mean")[0]
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        baseline = full_logits(hidden, weight, targets, 0.1, vector, softcap, scale, "mean")[0]
        mine = label_smoothed_nll(
            hidden, weight, targets, label_smoothing=0.1, bias=vector, softcap=softcap, logit_scale=scale
        ).loss
    assert mine.dtype == torch.float32
    assert relative(mine, wanted) < 1.2 * relative(baseline, wanted) + 2e-5
    exact = torch.autograd.grad(wanted, doubles)
    theirs, ours = (torch.autograd.grad(loss, inputs) for loss in (baseline, mine))
    for got, full, want in zip(ours, theirs, exact, strict=True):
        assert got.dtype == dtype
        assert relative(got, want) < 1.2 * relative(full, want)


def test_gradcheck():
    hidden, weight, bias, targets = make(5, 11, 3, bias=True, dtype=torch.float64)
    for reduction in ("mean", "none"):
        assert torch.autograd.gradcheck(
            lambda h, w, v, r=reduction: (
                label_smoothed_nll(
                    h, w, targets, label_smoothing=0.2, bias=v, softcap=4.0, logit_scale=0.5, reduction=r
                ).loss
            ),
            (hidden, weight, bias),
            nondet_tol=1e-12,  # a second backward pass recomputes
        )


def test_nothing_to_count_is_a_differentiable_zero():
    hidden, weight, _, targets = make(4, 9, 3)
    for reduction in ("mean", "sum", "none"):
        result = label_smoothed_nll(
            hidden, weight, torch.full_like(targets, -100), label_smoothing=0.1, reduction=reduction
        )
        assert result.loss.sum() == 0
        assert result.nll.sum() == 0
        for gradient in torch.autograd.grad(result.loss.sum(), (hidden, weight)):
            assert gradient.abs().sum() == 0


def test_ignored_tokens_do_not_matter():
    hidden, weight, _, targets = make(20, 50, 6)
    targets[::3] = 7000  # as an ignore_index of its own
    kept = targets != 7000
    whole = label_smoothed_nll(hidden, weight, targets, label_smoothing=0.1, ignore_index=7000)
    part = label_smoothed_nll(hidden[kept], weight, targets[kept], label_smoothing=0.1)
    assert torch.equal(whole.loss, part.loss)
    gradient = torch.autograd.grad(whole.loss, hidden)[0]
    assert gradient[~kept].abs().sum() == 0
    assert gradient[kept].abs().sum() > 0


def test_batches_of_any_shape():
    hidden, weight, _, targets = make(24, 50, 6)
    flat = label_smoothed_nll(hidden, weight, targets, label_smoothing=0.1, reduction="none")
    deep = label_smoothed_nll(
        hidden.view(2, 3, 4, 6), weight, targets.view(2, 3, 4), label_smoothing=0.1, reduction="none"
    )
    assert deep.loss.shape == (2, 3, 4)
    assert torch.equal(deep.loss.flatten(), flat.loss)
    assert torch.equal(deep.nll.flatten(), flat.nll)


def test_backward_twice_and_scaled():
    hidden, weight, _, targets = make(30, 40, 8)
    loss = label_smoothed_nll(hidden, weight, targets, label_smoothing=0.1).loss
    once = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(loss * 3, (hidden, weight), retain_graph=True)
    third = torch.autograd.grad(loss, (hidden, weight))
    for a, b, c in zip(once, again, third, strict=True):
        torch.testing.assert_close(b, 3 * a)
        torch.testing.assert_close(c, a)


def test_only_what_is_needed():
    hidden, weight, _, targets = make(30, 40, 8)
    frozen = label_smoothed_nll(hidden, weight.detach(), targets, label_smoothing=0.1).loss
    full = label_smoothed_nll(hidden, weight, targets, label_smoothing=0.1).loss
    torch.testing.assert_close(*(torch.autograd.grad(x, hidden)[0] for x in (frozen, full)))
    with torch.no_grad():
        assert not label_smoothed_nll(hidden, weight, targets, label_smoothing=0.1).loss.requires_grad


def test_without_smoothing_it_is_the_nll():
    hidden, weight, _, targets = make(30, 40, 8)
    loss, nll = label_smoothed_nll(hidden, weight, targets, label_smoothing=0.0)
    assert torch.equal(loss.detach(), nll)


@pytest.mark.usefixtures("tiles")
def test_statistics():
    """Entropy and top-1, as TRL logs them, with ties going to the first index."""
    hidden, weight, _, _ = make(200, 700, 5)
    with torch.no_grad():
        weight[300] *= 20
        weight[400] = weight[300]
        hidden[0] = weight[300]  # indices 300 and 400 tie for the first place
        hidden[1] = weight[300]
    logits = F.linear(hidden, weight)
    targets = logits.argmax(1)
    targets[0], targets[1] = 300, 400
    targets[2::2] = 3
    result = fused_head(hidden, weight, None, targets, kernels.Head(0.1, 20.0, 2.0), 1.0)
    capped = 20 * torch.tanh(logits * 2 / 20)
    torch.testing.assert_close(result.entropy, torch.distributions.Categorical(logits=capped).entropy())
    assert result.is_top1[0]
    assert not result.is_top1[1]
    assert torch.equal(result.is_top1[2:], (logits.argmax(1) == targets)[2:])


def test_peak_memory_is_a_tile_not_the_logits(monkeypatch):
    """The largest tensor made on the way is the tile, whatever the number of tokens."""
    monkeypatch.setattr(fused, "CPU_TILE", 2**20)
    hidden, weight, _, targets = make(2000, 3000, 4)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for x in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel() * x.element_size())
            return result

    with Watch():
        label_smoothed_nll(hidden, weight, targets, label_smoothing=0.1).loss.backward()
    assert largest <= 2**20  # the full logits have 24 million bytes


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"label_smoothing": float("nan")}, "label_smoothing"),
        ({"softcap": 0.0}, "softcap"),
        ({"logit_scale": 0.0}, "logit_scale"),
        ({"reduction": "median"}, "reduction"),
        ({"ignore_index": 3}, "ignore_index"),
        ({"targets": torch.tensor([0, 9])}, "targets"),
        ({"targets": torch.tensor([0, -1])}, "targets"),
        ({"targets": torch.tensor([0.0, 1.0])}, "targets"),
        ({"targets": torch.tensor([0])}, "targets"),
        ({"weight": torch.zeros(5, 4)}, "weight"),
        ({"weight": torch.zeros(5, 3, dtype=torch.bfloat16)}, "weight"),
        ({"bias": torch.zeros(4)}, "bias"),
        ({"hidden": torch.zeros(2, 3, dtype=torch.int64)}, "hidden"),
    ],
)
def test_errors_name_the_argument(change, name):
    arguments = {
        "hidden": torch.zeros(2, 3),
        "weight": torch.zeros(5, 3),
        "targets": torch.tensor([0, 1]),
        "label_smoothing": 0.1,
    }
    with pytest.raises(CalibrationValueError, match=f"^{name}: expected"):
        label_smoothed_nll(**{**arguments, **change})


def test_plans_cover_everything_within_the_budget():
    for tokens, vocabulary, is_fused in itertools.product((1, 100, 8192, 100_000), (7, 50_257, 262_144), (True, False)):
        plan = fused.plan(tokens, vocabulary, 2, device="cuda", fused=is_fused)
        edges = [edge for block in plan.blocks for edge in block]
        assert edges[0] == 0
        assert edges[-1] == vocabulary
        assert edges[1:-1:2] == edges[2:-1:2]
        assert plan.chunk * max(end - start for start, end in plan.blocks) * 2 <= max(
            fused.FUSED_TILE, plan.chunk * 128 * 2
        )
        if is_fused:
            assert -(-tokens // plan.chunk) <= fused.MOST_CHUNKS


def test_frequent_rows_are_summed_exactly():
    """What a 16-bit sum over chunks loses at frequent targets comes back from the float32 rows."""
    torch.manual_seed(0)
    chunks, size, vocabulary = 16, 4, 100
    targets = torch.arange(64 * chunks) % 3
    weight = torch.zeros(vocabulary, size, dtype=torch.bfloat16)
    rows = fused.FrequentRows(targets, weight)
    assert set(range(3)) <= set(rows.index.tolist())
    exact = torch.zeros(vocabulary, size)
    for _ in range(chunks):
        tile, chunk = torch.randn(64, vocabulary).bfloat16(), torch.randn(64, size).bfloat16()
        exact += tile.t().float() @ chunk.float() * 0.5
        rows.add(tile[:, :40], 0, chunk, 0.5)
        rows.add(tile[:, 40:], 40, chunk, 0.5)
    torch.testing.assert_close(rows.sum, exact[rows.index], rtol=1e-5, atol=1e-5)
