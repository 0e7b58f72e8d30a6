"""TRL's SFTTrainer with label smoothing at the price of none."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import is_peft_model
from trl import SFTTrainer

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.train import head as heads


class LabelSmoothedSFTTrainer(SFTTrainer):
    """A drop-in for TRL's `SFTTrainer` in which `label_smoothing_factor` just works.

    The loss of a batch is sum over its N tokens of nll + b (z_y - mean_v z_v), divided by N, N counted over
    all devices and accumulation steps (nats; see `label_smoothed_nll`). One forward pass, no full logits, and
    the gradients of the head come out of the forward pass.

    Logged beside TRL's own metrics: `loss` is the smoothed loss and `nll` the plain one, averaged alike. In
    evaluation `eval_loss` (and so the choice of a best checkpoint) is the plain NLL over all tokens, whatever
    the batch size, and `eval_smoothed_loss` the smoothed one. Without smoothing both are the same.

    Arguments are `SFTTrainer`'s. Differences: `loss_type="dft"`, `compute_loss_func` and context, sequence or
    tensor parallelism are refused together with label smoothing; a model whose head is not linear, or whose
    logits are not those of its head, is refused always.

    Raises:
        CalibrationValueError: arguments that contradict smoothing.
        UnsupportedModelError: a model whose loss would come out wrong.
    """

    _tag_names = ["trl", "sft", "lm-eval-calib"]  # noqa: RUF012

    def __init__(self, model: Any, args: Any = None, *positional: Any, **kwargs: Any) -> None:
        smoothing = getattr(args, "label_smoothing_factor", 0.0)
        if not 0 <= smoothing < 1:
            raise CalibrationValueError(
                f"label_smoothing_factor: expected 0 to below 1, got {smoothing}; 0.1 is the papers' value"
            )
        if smoothing and getattr(args, "loss_type", "nll") == "dft":
            raise CalibrationValueError(
                "label_smoothing_factor: expected 0 with loss_type='dft', which has no smoothed form, got "
                f"{smoothing}; use loss_type='nll'"
            )
        if smoothing and kwargs.get("compute_loss_func") is not None:
            raise CalibrationValueError(
                "compute_loss_func: expected None with label smoothing, which it would override; leave out one of them"
            )
        # TRL would warn of a second forward pass and transformers build its own smoother; neither is needed.
        if args is not None:
            args.label_smoothing_factor = 0.0
        try:
            super().__init__(model, args, *positional, **kwargs)
        finally:
            if args is not None:
                args.label_smoothing_factor = smoothing
        self.args.label_smoothing_factor = smoothing
        self._refuse_parallelism()
        # Every model's loss is computed here, so every model's tokens are counted over the whole batch.
        self.model_accepts_loss_kwargs = True
        bare = self.model.get_base_model() if is_peft_model(self.model) else self.model
        heads.install(bare)
        heads.check(bare)
        self._nll_total: torch.Tensor | float = 0.0
        self._nll_last_step = 0
        self._eval_sums: torch.Tensor | float = 0.0

    def _refuse_parallelism(self) -> None:
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise CalibrationValueError(
                "deepspeed: expected ZeRO stage 0 to 2, got 3, which splits the head among the devices in a "
                "way that this trainer was not tried with; use FSDP2 (accelerate's fsdp_version: 2)"
            )
        config = self.accelerator.parallelism_config
        if config is not None and (config.cp_enabled or config.sp_enabled or config.tp_enabled):
            raise CalibrationValueError(
                "parallelism_config: expected data parallelism (DDP, FSDP2), got context, sequence or tensor "
                "parallelism, which this trainer was not tried with; use TRL's own SFTTrainer, without "
                "smoothing"
            )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The smoothed loss in training, the plain NLL in evaluation; statistics are kept for the log."""
        if self.compute_loss_func is not None or self.args.loss_type == "dft":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        training = self.model.training
        inputs = {**inputs, "use_cache": False}
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        # The count spans all devices, whose gradients are averaged: hence the factor.
        shared = num_items_in_batch is not None and self.args.average_tokens_across_devices
        call = heads.SmoothedHead(
            self.args.label_smoothing_factor,
            None if num_items_in_batch is None else float(num_items_in_batch),
            self.accelerator.num_processes if shared else 1,
        )
        output = model(**inputs, smoothed_head=call)
        loss = output.loss if training else output.nll
        if training:
            if not isinstance(self._nll_total, torch.Tensor):
                self._nll_last_step = self.state.global_step
            self._nll_total = self._nll_total + output.nll.detach()
        else:
            self._add_eval_sums(output)
        if self.aux_loss_enabled:
            # A mean of the micro-batch, where the rest is a share of the whole batch's sum.
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.router_aux_loss_coef * output.aux_loss / steps
        self._keep_metrics(output, inputs, "train" if training else "eval")
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**{key: value for key, value in inputs.items() if key != "labels"})

    def _keep_metrics(self, output: heads.SmoothedHeadOutput, inputs: dict[str, Any], mode: str) -> None:
        """TRL's metrics, gathered in one go and left on the device until they are logged."""
        if "attention_mask" in inputs:
            seen = inputs["attention_mask"].sum()
        else:
            seen = torch.tensor(inputs["position_ids"].shape[1], device=output.label_mask.device)
        local = [output.label_mask.sum(), output.entropy.sum(), output.is_top1.sum(), seen]
        sums = torch.stack([value.double() for value in local])
        valid, entropy, correct, seen = self.accelerator.gather(sums[None]).sum(0)
        self._metrics[mode]["entropy"].append(entropy / valid.clamp(min=1))
        self._metrics[mode]["mean_token_accuracy"].append(correct / valid.clamp(min=1))
        if mode == "train":
            self._total_train_tokens += seen
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        if self.aux_loss_enabled:
            aux_loss = self.accelerator.gather(output.aux_loss.detach().double()[None])
            self._metrics[mode]["aux_loss"].append(aux_loss.mean())

    def _add_eval_sums(self, output: heads.SmoothedHeadOutput) -> None:
        columns = (output.token_nll, output.token_loss, output.label_mask)
        rows = torch.stack([column.double().sum(1) for column in columns], 1)
        # Rows that pad the last batch of the devices are dropped; packed rows cannot be told apart.
        gather = self.accelerator.gather if self.padding_free else self.accelerator.gather_for_metrics
        self._eval_sums = self._eval_sums + gather(rows).sum(0)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """`loss` over all tokens of the data set, where the Trainer averages batches of different sizes."""
        self._eval_sums = 0.0
        result = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        if isinstance(self._eval_sums, torch.Tensor):
            nll, smoothed, tokens = self._eval_sums.tolist()
            result.metrics[f"{prefix}_loss"] = nll / tokens if tokens else float("nan")
            result.metrics[f"{prefix}_smoothed_loss"] = smoothed / tokens if tokens else float("nan")
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the plain `nll`, averaged over the same steps as `loss`."""
        if "loss" in logs and isinstance(self._nll_total, torch.Tensor):
            steps = max(self.state.global_step - self._nll_last_step, 1)
            total = self.accelerator.gather(self._nll_total.double()[None]).mean()
            logs["nll"] = total.item() / steps
            self._nll_total = 0.0
        for metrics in self._metrics.values():
            for name, values in metrics.items():
                metrics[name] = [float(value) for value in values]
        super().log(logs, start_time)
