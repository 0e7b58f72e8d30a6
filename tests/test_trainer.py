"""The trainer, step by step, against full logits, F.cross_entropy and AdamW in float32."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
import tiny_model  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from datasets import Dataset  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from lm_eval_calib.errors import CalibrationValueError  # noqa: E402
from lm_eval_calib.train.head import UnsupportedModelError  # noqa: E402
from lm_eval_calib.train.trainer import LabelSmoothedSFTTrainer  # noqa: E402

B = 0.1
TOKENIZER = tiny_model.tokenizer(chat=True)
ROWS = [
    {"prompt": f"What is {i}?" + " Really?" * (i % 3), "completion": f" It is {i * i}." + " Yes." * (i % 4)}
    for i in range(1, 17)
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {i}?"},
            {"role": "assistant", "content": f"It is {i}."},
            {"role": "user", "content": "Really?"},
            {"role": "assistant", "content": "Yes." * (i % 3 + 1)},
        ]
    }
    for i in range(1, 17)
]


def arguments(folder: Any, **changes: Any) -> SFTConfig:
    settings = {
        "output_dir": str(folder),
        "label_smoothing_factor": B,
        "bf16": False,
        "use_cpu": True,
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "max_length": 128,
        "weight_decay": 0.0,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SFTConfig(**{**settings, **changes})


class Recorder(LabelSmoothedSFTTrainer):
    """Keeps what each micro-batch was, and counts the forward passes of the backbone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.micro_batches: list[tuple[dict[str, Any], Any]] = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            kept = {key: copy.deepcopy(value) for key, value in inputs.items()}
            self.micro_batches.append((kept, num_items_in_batch))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def train(folder: Any, model: Any, rows: list[dict[str, Any]] = ROWS, cls: Any = Recorder, **changes: Any) -> Any:
    peft_config = changes.pop("peft_config", None)
    resume = changes.pop("resume", None)
    trainer = cls(
        model,
        arguments(folder, **changes),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:7]) if "eval_strategy" in changes else None,
        processing_class=TOKENIZER,
        peft_config=peft_config,
    )
    trainer.before = copy.deepcopy(dict(trainer.model.state_dict()))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def sequences(inputs: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(input_ids, labels) of the single sequences of a padded or packed batch, without padding."""
    if "position_ids" not in inputs:
        pairs = zip(inputs["input_ids"], inputs["labels"], inputs["attention_mask"].bool(), strict=True)
        return [(ids[mask], labels[mask]) for ids, labels, mask in pairs]
    starts = (inputs["position_ids"][0] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], inputs["position_ids"].shape[1]]
    return [(inputs["input_ids"][0, a:b], inputs["labels"][0, a:b]) for a, b in zip(starts, ends, strict=True)]


def reference(trainer: Any, model: Any, steps: int) -> tuple[list[float], list[float]]:
    """Smoothed losses and NLLs of the recorded steps, one sequence at a time; trains `model` along."""
    model.load_state_dict(trainer.before)
    model.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=trainer.args.learning_rate, weight_decay=0.0
    )
    losses, nlls = [], []
    size = len(trainer.micro_batches) // steps
    for step in range(steps):
        loss_sum = nll_sum = 0.0
        batches = trainer.micro_batches[step * size : (step + 1) * size]
        count = sum(int((labels[1:] != -100).sum()) for inputs, _ in batches for _, labels in sequences(inputs))
        optimizer.zero_grad()
        for inputs, num_items in batches:
            assert int(num_items) == count
            for ids, labels in sequences(inputs):
                logits = model(input_ids=ids[None]).logits[0, :-1].float()
                loss = F.cross_entropy(logits, labels[1:], label_smoothing=B, reduction="sum") / count
                loss.backward()
                loss_sum += loss.item()
                nll_sum += F.cross_entropy(logits, labels[1:], reduction="sum").item() / count
        optimizer.step()
        losses.append(loss_sum)
        nlls.append(nll_sum)
    return losses, nlls


def assert_same_weights(left: Any, right: Any, tolerance: float = 1e-4) -> None:
    # All together: Adam divides by the gradient's size, and where that is rounding alone (the keys' bias), so
    # is its sign.
    mine, other = (torch.cat([p.flatten() for p in model.parameters()]) for model in (left, right))
    assert (mine - other).norm() < tolerance * other.norm()


CASES: dict[str, dict[str, Any]] = {
    "padding": {},
    "no smoothing of prompts": {"completion_only_loss": True},
    "loss on prompts": {"completion_only_loss": False},
    "assistant only": {"rows": CHATS, "assistant_only_loss": True},
    "padding-free": {"padding_free": True, "max_length": None},
    "packing": {"packing": True, "max_length": 64, "per_device_train_batch_size": 1},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "tied embeddings": {"kind": {"tie_word_embeddings": True}},
    "soft-cap": {"kind": {"kind": "gemma2", "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16}},
    "logit scale": {"kind": {"kind": "cohere", "logit_scale": 0.3}},
    "logits scaling": {"kind": {"kind": "granite", "logits_scaling": 3.0}},
    "head with a bias": {"kind": {"kind": "phi"}},
}


@pytest.mark.parametrize("name", CASES)
def test_steps_equal_the_reference(tmp_path, name):
    case = dict(CASES[name])
    kind, rows = case.pop("kind", {}), case.pop("rows", ROWS)
    trainer = train(tmp_path, tiny_model.model(**kind), rows, **case)
    model = tiny_model.model(**kind)
    losses, nlls = reference(trainer, model, 3)
    assert logged(trainer, "loss") == pytest.approx(losses, rel=2e-5)
    assert logged(trainer, "nll") == pytest.approx(nlls, rel=2e-5)
    assert abs(losses[-1] / nlls[-1] - 1) > 1e-3
    assert_same_weights(trainer.model, model)


def test_lora(tmp_path):
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    trainer = train(tmp_path, tiny_model.model(), peft_config=config)
    model = get_peft_model(tiny_model.model(), config)
    losses, nlls = reference(trainer, model, 3)
    assert logged(trainer, "loss") == pytest.approx(losses, rel=2e-5)
    assert logged(trainer, "nll") == pytest.approx(nlls, rel=2e-5)
    assert_same_weights(trainer.model, model)
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_lora_with_a_trained_head(tmp_path):
    config = LoraConfig(
        r=4, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    trainer = train(tmp_path, tiny_model.model(), peft_config=config)
    model = get_peft_model(tiny_model.model(), config)
    losses, _ = reference(trainer, model, 3)
    assert logged(trainer, "loss") == pytest.approx(losses, rel=2e-5)
    assert_same_weights(trainer.model, model)


def test_mixture_of_experts(tmp_path):
    """The balancing loss joins the smoothed one, and not the NLL."""
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5}
    make = lambda: tiny_model.model("mixtral", **sizes)  # noqa: E731
    trainer = train(tmp_path, make(), max_steps=1, padding_free=False)
    model = make()
    model.load_state_dict(trainer.before)
    expected = 0.0
    for inputs, num_items in trainer.micro_batches:
        ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        output = model(input_ids=ids, attention_mask=mask, output_router_logits=True)
        logits = output.logits[:, :-1].flatten(0, 1)
        expected += F.cross_entropy(logits, labels[:, 1:].flatten(), label_smoothing=B, reduction="sum").item() / int(
            num_items
        )
        expected += 0.5 * output.aux_loss.item() / 2
    assert logged(trainer, "loss")[0] == pytest.approx(expected, rel=2e-5)
    assert logged(trainer, "aux_loss")[0] > 1


def test_equals_trl(tmp_path):
    """Same losses and metrics as TRL: without smoothing, and with its own deprecated smoothing."""
    for b in (0.0, B):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = train(tmp_path / "a", tiny_model.model(), cls=SFTTrainer, label_smoothing_factor=b)
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            ours = train(tmp_path / "b", tiny_model.model(), label_smoothing_factor=b)
        for name in ("loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm"):
            assert logged(ours, name) == pytest.approx(logged(theirs, name), rel=1e-4), name
        assert ours.args.label_smoothing_factor == b
        assert_same_weights(ours.model, theirs.model)


def test_batch_times_accumulation_does_not_matter(tmp_path):
    runs = [
        train(tmp_path, tiny_model.model(), per_device_train_batch_size=n, gradient_accumulation_steps=8 // n)
        for n in (8, 2, 1)
    ]
    for other in runs[1:]:
        assert logged(other, "loss") == pytest.approx(logged(runs[0], "loss"), rel=2e-5)
        assert logged(other, "nll") == pytest.approx(logged(runs[0], "nll"), rel=2e-5)
        assert_same_weights(other.model, runs[0].model)


def test_packing_equals_no_packing(tmp_path):
    """All sixteen rows in one step, one a row or several packed into each."""
    plain = train(tmp_path / "a", tiny_model.model(), per_device_train_batch_size=16, gradient_accumulation_steps=1)
    packed = train(
        tmp_path / "b",
        tiny_model.model(),
        packing=True,
        max_length=64,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=1,
    )
    assert packed.train_dataset.num_rows < 16
    assert logged(packed, "loss") == pytest.approx(logged(plain, "loss"), rel=2e-5)
    assert logged(packed, "nll") == pytest.approx(logged(plain, "nll"), rel=2e-5)
    assert_same_weights(packed.model, plain.model)


def test_one_forward_pass_and_no_full_logits(tmp_path):
    model = tiny_model.model()
    calls, heads = [], []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    model.lm_head.register_forward_hook(lambda *_: heads.append(1))
    trainer = Recorder(model, arguments(tmp_path), train_dataset=Dataset.from_list(ROWS), processing_class=TOKENIZER)
    calls.clear()  # the check of the head at the start
    heads.clear()
    trainer.train()
    assert len(calls) == 3 * 2
    assert not heads


def test_gradients_are_made_once(tmp_path, monkeypatch):
    """The loss's scale is known in the forward pass: the backward pass recomputes nothing and rescales by 1."""
    from lm_eval_calib.train import fused

    factors, passes = [], []
    run_tiles = fused.run_tiles
    monkeypatch.setattr(fused, "multiply", lambda _values, factor: factors.append(float(factor)))
    monkeypatch.setattr(fused, "run_tiles", lambda *a, **k: passes.append(k["fold"]) or run_tiles(*a, **k))
    train(tmp_path, tiny_model.model())
    assert set(factors) == {1.0}
    assert passes
    assert all(passes)


def test_evaluation_is_the_plain_nll_over_all_tokens(tmp_path):
    trainer = train(tmp_path, tiny_model.model(), eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=2)
    nll = smoothed = count = 0.0
    trainer.model.eval()
    with torch.no_grad():
        for row in trainer.eval_dataset:
            ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
            logits = trainer.model(input_ids=ids[None]).logits[0, :-1]
            nll += F.cross_entropy(logits, labels[1:], reduction="sum").item()
            smoothed += F.cross_entropy(logits, labels[1:], label_smoothing=B, reduction="sum").item()
            count += int((labels[1:] != -100).sum())
    assert logged(trainer, "eval_loss")[-1] == pytest.approx(nll / count, rel=1e-5)
    assert logged(trainer, "eval_smoothed_loss")[-1] == pytest.approx(smoothed / count, rel=1e-5)


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    settings["lr_scheduler_type"] = "linear"
    whole = train(tmp_path / "a", tiny_model.model(), **settings)
    resumed = train(tmp_path / "b", tiny_model.model(seed=5), **settings, resume=str(tmp_path / "a" / "checkpoint-3"))
    for name in ("loss", "nll"):
        assert logged(resumed, name) == pytest.approx(logged(whole, name), rel=1e-6)
    assert_same_weights(resumed.model, whole.model, 1e-6)


def test_bf16_autocast(tmp_path):
    exact = train(tmp_path / "a", tiny_model.model())
    rounded = train(tmp_path / "b", tiny_model.model(), bf16=True)
    assert logged(rounded, "loss") == pytest.approx(logged(exact, "loss"), rel=1e-2)
    assert next(rounded.model.parameters()).dtype == torch.float32


def test_batch_without_a_token_to_learn(tmp_path):
    """A micro-batch whose labels are all ignored adds nothing and breaks nothing."""
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100] * 4}] * 4 + [
        {"input_ids": [5, 9, 7, 8], "labels": [-100, 9, 7, 8]}
    ] * 4
    trainer = train(
        tmp_path,
        tiny_model.model(),
        rows,
        max_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    assert len(trainer.micro_batches) == 8
    losses, _ = reference(trainer, tiny_model.model(), 1)
    assert logged(trainer, "loss") == pytest.approx(losses, rel=2e-5)


def test_generation_and_plain_calls_still_work(tmp_path):
    trainer = train(tmp_path, tiny_model.model())
    fresh = tiny_model.model()
    fresh.load_state_dict(trainer.model.state_dict())
    ids = torch.tensor([[1, 8, 9]])
    trainer.model.eval(), fresh.eval()
    torch.testing.assert_close(trainer.model(input_ids=ids).logits, fresh(input_ids=ids).logits)
    torch.testing.assert_close(trainer.model(input_ids=ids, labels=ids).loss, fresh(input_ids=ids, labels=ids).loss)
    kwargs = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(trainer.model.generate(ids, **kwargs), fresh.generate(ids, **kwargs))


def test_unsupported_models_are_refused(tmp_path):
    adapter = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="lm_head"):
        train(tmp_path, tiny_model.model(), peft_config=adapter)

    nonlinear = tiny_model.model()
    nonlinear.lm_head = torch.nn.Sequential(nonlinear.lm_head, torch.nn.Tanh())
    with pytest.raises(UnsupportedModelError, match=r"^model: expected a head that is a plain linear layer"):
        train(tmp_path, nonlinear)

    scaled = tiny_model.model()
    scaled.lm_head.register_forward_hook(lambda _module, _inputs, output: output * 2)
    with pytest.raises(UnsupportedModelError, match=r"^model: the logits of LlamaForCausalLM are not"):
        train(tmp_path, scaled)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"label_smoothing_factor": 1.0}, "label_smoothing_factor"),
        ({"label_smoothing_factor": -0.1}, "label_smoothing_factor"),
        ({"loss_type": "dft"}, "label_smoothing_factor"),
    ],
)
def test_contradictions_are_refused(tmp_path, change, name):
    with pytest.raises(CalibrationValueError, match=f"^{name}: expected"):
        train(tmp_path, tiny_model.model(), **change)
