"""Two processes on one CPU: DDP through the trainer, FSDP2 around a model with the smoothed head."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
import tiny_model  # noqa: E402
from test_trainer import train  # noqa: E402

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, str(TESTS / "distributed_worker.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "found.pt", weights_only=True)


def test_ddp_equals_one_process(found, tmp_path):
    """Two processes with two sequences each are one with four, in losses, NLL, evaluation and weights."""
    alone = train(tmp_path, tiny_model.model(), per_device_train_batch_size=4, eval_strategy="steps", eval_steps=3)
    assert found["ddp"]["processes"] == 2
    for name in ("loss", "nll", "entropy", "num_tokens", "eval_loss", "eval_smoothed_loss"):
        together = [entry[name] for entry in found["ddp"]["log"] if name in entry]
        assert together
        expected = [entry[name] for entry in alone.state.log_history if name in entry]
        tolerance = 1e-2 if name == "entropy" else 2e-5  # TRL averages it over micro-batches, which differ here
        assert together == pytest.approx(expected, rel=tolerance), name
    for name, value in alone.model.state_dict().items():
        assert (found["ddp"]["weights"][name] - value).norm() < 1e-3 * value.norm(), name


@pytest.mark.parametrize("head_apart", [False, True])
def test_fsdp2_gradients_equal_one_process(found, head_apart):
    """Also when the head is sharded on its own and gathered by us."""
    gradients = found[f"fsdp2 {head_apart}"]
    assert set(gradients) == set(found["single"])
    for name, expected in found["single"].items():
        torch.testing.assert_close(gradients[name], expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
