"""The one module that touches lm-eval's task API: multiple-choice tasks scored for calibration.

One line in a task's YAML, `class: !function lm_eval_calib.harness.CalibratedTask`, adds the calibration metrics of
`lm_eval_calib.metrics.METRICS` to any `multiple_choice` task; `base_task: xnli_sw` takes everything else from the
installed harness.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import lm_eval.tasks
import lm_eval.utils
import numpy as np
from lm_eval.api.metrics import mean
from lm_eval.api.samplers import get_sampler as get_sampler
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.task import TaskConfig
from lm_eval.tasks._yaml_loader import load_yaml

from lm_eval_calib.confidence import choice_probabilities, confidence_and_correct
from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.metrics import METRICS, Metric
from lm_eval_calib.scoring.tokens import with_token_counts

logger = logging.getLogger(__name__)

NORMALIZATIONS = ("none", "char", "byte", "token")
OPTIONS = {"num_bins": 15, "normalization": "none"}  # set in a YAML's `metadata:` or by --metadata
# log-likelihoods to look at before saying that a run's are rounded to 16 bits
_ENOUGH_TO_JUDGE = 64


# lm-eval compiles a template anew at every use, which takes milliseconds a question (30 with ten options). Compiled
# once, it renders the same.
lm_eval.utils.env.from_string = functools.lru_cache(maxsize=1024)(lm_eval.utils.env.from_string)


class CalibratedTask(ConfigurableTask):
    """A multiple-choice task of lm-eval that also reports confidence and calibration.

    Prompts, data, few-shot examples and requests are those of `ConfigurableTask`; this class reads the
    log-likelihoods that come back. With `normalization: none`, `acc` is the stock task's to the last digit.

    YAML keys beyond lm-eval's:
        base_task: name of a stock task of the installed harness (`output_type: multiple_choice`); its configuration
            lies underneath, and every key of this file overrides it. Its `metric_list` is not taken over.
        metadata.num_bins: bins of the binned metrics (default 15).
        metadata.normalization: what log-likelihoods are divided by before the softmax over the choices: `none`,
            `char` or `byte` (length of the choice's text), `token` (needs a model that reports token counts:
            `--model hf-calib`).

    Metrics of lm-eval that `metric_list` names (`acc_norm`, `f1`, `acc_mutual_info`, ...) stay in the results.

    Raises:
        CalibrationValueError: for a gold answer outside the choices, before any model call; for a log-likelihood
            that is not finite; for an unknown normalisation. The message names the task and the document.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        cache_dir: str | None = None,
        download_mode: Any = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        config = resolve_base_task(config or {})
        self._calibration = _read_options(config)
        super().__init__(data_dir, cache_dir, download_mode, config)
        self._rounded: dict[str, int] = {"bfloat16": 0, "float16": 0}  # log-likelihoods that fit, so far
        self._seen = 0
        for metric in METRICS.values():
            if metric.live:
                self._metric_fn_list.setdefault(metric.name, None)
                self._metric_fn_kwargs.setdefault(metric.name, {})
                self._aggregation_list[metric.name] = _aggregation(metric, self._calibration["num_bins"])
                self._higher_is_better[metric.name] = metric.higher_is_better

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """The stock download; a `custom_dataset` without the stock class's warning, once a task, that it is one."""
        if not callable(self.config.custom_dataset):
            super().download(dataset_kwargs, **kwargs)
            return
        self.dataset = self.config.custom_dataset(**(self.config.metadata or {}), **(dataset_kwargs or {}))

    def construct_requests(self, doc: dict[str, Any], ctx: str | list[str], **kwargs: Any) -> Any:
        """The stock requests; the gold answer is checked here, before a model has spent time on the document."""
        self._gold(doc, self.doc_to_choice(doc), where=kwargs.get("metadata"))
        return super().construct_requests(doc, ctx, **kwargs)

    def apply_filters(self) -> Any:
        """The stock filters; responses from the response cache are given their token counts first."""
        if self._calibration["normalization"] == "token":
            with_token_counts(self.instances)
        return super().apply_filters()

    def process_results(self, doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
        """Per-question values: floats where the metric is a mean, else what its aggregation pools."""
        result: dict[str, Any] = super().process_results(doc, results)
        if "bypass" in self._metric_fn_list:  # --predict_only
            return result
        choices = self.doc_to_choice(doc)
        # With acc_mutual_info the unconditional responses follow the K conditional ones.
        responses = results[: len(choices)]
        likelihoods = np.array([response[0] for response in responses], dtype=np.float64)
        if len(likelihoods) != len(choices) or not np.isfinite(likelihoods).all():
            raise CalibrationValueError(
                f"{self._name_of(doc)}: expected one finite log-likelihood a choice ({len(choices)} choices), got "
                f"{likelihoods.tolist()}; -inf and nan mostly come from half-precision arithmetic: try "
                "--model_args ...,dtype=bfloat16,softmax_dtype=float32"
            )
        self._notice_rounding(likelihoods)
        probabilities = choice_probabilities([likelihoods], lengths=self._lengths(choices, responses, doc))
        gold = self._gold(doc, choices)
        confidence, correct = confidence_and_correct(probabilities, [gold])
        is_gold = np.isin(np.arange(len(choices)), gold)[None, :]
        inputs = {"confidence": (confidence, correct), "distribution": (probabilities, is_gold)}
        pooled = {
            "confidence": (float(confidence[0]), float(correct[0])),
            "distribution": (probabilities[0].tolist(), gold),
        }
        for metric in METRICS.values():
            if metric.live and metric.per_question is not None:
                result[metric.name] = float(metric.per_question(*inputs[metric.inputs])[0])
            elif metric.live:
                result[metric.name] = pooled[metric.inputs]
        return result

    def _lengths(
        self, choices: Sequence[str], responses: Sequence[tuple[float, bool]], doc: dict[str, Any]
    ) -> list[np.ndarray] | None:
        normalization = self._calibration["normalization"]
        if normalization == "none":
            return None
        if normalization == "token":
            lengths = [getattr(response[0], "num_tokens", None) for response in responses]
            if None in lengths:
                raise CalibrationValueError(
                    f"{self.task_name}: normalization 'token' needs a model that reports the number of tokens of "
                    "each choice, which this one does not: use --model hf-calib, or score the sample log with "
                    "`lm-eval-calib score --normalization token --tokenizer NAME`"
                )
        else:
            texts = choices if normalization == "char" else [choice.encode() for choice in choices]
            lengths = [len(text) for text in texts]
        if 0 in lengths:
            raise CalibrationValueError(
                f"{self._name_of(doc)}: normalization '{normalization}' cannot divide by the length of an empty "
                f"choice, got the choices {list(choices)!r}; use normalization 'none' for this task"
            )
        return [np.array(lengths, dtype=np.float64)]

    def _gold(self, doc: dict[str, Any], choices: Sequence[str], where: Any = None) -> list[int]:
        # As in ConfigurableTask: winogrande-style tasks (several inputs) keep the gold index in doc_to_text.
        target: Any = self.doc_to_text(doc) if self.multiple_input else self.doc_to_target(doc)
        gold = []
        for item in target if isinstance(target, list) else [target]:
            index = choices.index(item) if isinstance(item, str) and item in choices else item
            if isinstance(index, str) or not 0 <= index < len(choices):
                name = f"task {self.task_name}, document {where[1]}" if where else self._name_of(doc)
                raise CalibrationValueError(
                    f"{name}: the gold answer must be an index from 0 to {len(choices) - 1} or one of the choices "
                    f"{list(choices)!r}, got {target!r}; drop such rows in the task's process_docs"
                )
            gold.append(int(index))
        if not gold:
            raise CalibrationValueError(f"{self._name_of(doc)}: expected at least one gold answer, got none")
        return sorted(set(gold))

    def _name_of(self, doc: dict[str, Any]) -> str:
        # Only for messages: process_results is not told the document's number.
        number = next((i.doc_id for i in self._instances or [] if i.doc == doc), None)
        return f"task {self.task_name}, document {'?' if number is None else number} ({str(doc)[:200]})"

    def _notice_rounding(self, likelihoods: np.ndarray) -> None:
        if self._seen >= _ENOUGH_TO_JUDGE:
            return
        self._seen += len(likelihoods)
        single = likelihoods.astype(np.float32)
        self._rounded["bfloat16"] += int(np.sum(single.view(np.uint32) & 0xFFFF == 0))
        self._rounded["float16"] += int(np.sum(single.astype(np.float16) == single))
        # A coarse model (integers, zeros) fits 16 bits too; real ones do not all end in whole numbers.
        for dtype, count in self._rounded.items():
            if self._seen >= _ENOUGH_TO_JUDGE and count == self._seen and np.any(single % 1):
                _say_rounded(dtype)
                break


@functools.cache
def _say_rounded(dtype: str) -> None:
    logger.warning(
        "The log-likelihoods are rounded to %s, which makes ties and blurs confidence (lm-eval's default computes the "
        "log-softmax in the weights' dtype). Remedy: --model_args ...,softmax_dtype=float32",
        dtype,
    )


def _aggregation(metric: Metric, num_bins: int) -> Callable[[list[Any]], float]:
    if metric.per_question is not None:
        return cast("Callable[[list[Any]], float]", mean)  # lm-eval prints a standard error for its own mean only
    options = {"num_bins": num_bins} if "num_bins" in metric.options else {}

    def aggregate(items: list[Any]) -> float:
        first, second = zip(*items, strict=True)
        if metric.inputs == "confidence":
            return float(metric.function(np.array(first), np.array(second), **options))
        padded = np.full((len(first), max(map(len, first))), np.nan)
        for row, probabilities in zip(padded, first, strict=True):
            row[: len(probabilities)] = probabilities
        return float(metric.function(padded, list(second), **options))

    return aggregate


def _read_options(config: dict[str, Any]) -> dict[str, Any]:
    """The calibration options of `metadata`, which is completed so that the results file tells what was used."""
    metadata = config["metadata"] = dict(config.get("metadata") or {})
    options = {name: metadata.setdefault(name, default) for name, default in OPTIONS.items()}
    task = config.get("task")
    if options["normalization"] not in NORMALIZATIONS:
        raise CalibrationValueError(
            f"task {task}: metadata 'normalization' must be one of {', '.join(NORMALIZATIONS)}, "
            f"got {options['normalization']!r}"
        )
    num_bins = options["num_bins"]
    if not isinstance(num_bins, int) or isinstance(num_bins, bool) or num_bins < 1:
        raise CalibrationValueError(
            f"task {task}: metadata 'num_bins' must be a whole number of at least 1, got {num_bins!r}"
        )
    return options


def resolve_base_task(config: dict[str, Any]) -> dict[str, Any]:
    """Lay a task's own keys over the configuration of the stock task that its `base_task` names.

    Args:
        config: a task's configuration as its YAML gives it.

    Returns:
        A configuration that `ConfigurableTask` takes; without `base_task`, the same keys.
    """
    config = {key: value for key, value in config.items() if key not in ("class", "include")}
    base = config.pop("base_task", None)
    if base is not None:
        stock = load_stock_task(base)
        metadata = {**(stock.pop("metadata", None) or {}), "base_task": base, **(config.get("metadata") or {})}
        config = {**stock, **config, "metadata": metadata}
    task = config.get("task")
    unknown = sorted(set(config) - {field.name for field in fields(TaskConfig)})
    if unknown:
        raise CalibrationValueError(
            f"task {task}: unknown keys {', '.join(unknown)}; expected lm-eval's task keys and 'base_task'"
        )
    if config.setdefault("output_type", "multiple_choice") != "multiple_choice":
        raise CalibrationValueError(
            f"task {task}: calibration needs output_type multiple_choice, got {config['output_type']!r}; a generative "
            "task gives no probabilities of its choices"
        )
    # Stock metrics are computed by ConfigurableTask, ours are added in CalibratedTask; naming one of ours is allowed.
    named = config.get("metric_list") or []
    stock_metrics = [entry for entry in named if entry.get("metric") not in METRICS]
    config["metric_list"] = [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        *stock_metrics,
    ]
    return config


def load_stock_task(name: str) -> dict[str, Any]:
    """The configuration of a multiple-choice task of the installed harness, without its name, tags and metrics.

    The file is found by its name or by its text, since building lm-eval's index takes seconds.
    """
    path = _stock_path(name)
    if path is None:
        raise CalibrationValueError(
            f"base_task {name!r} is not a task of the installed lm-eval; `lm_eval ls tasks` lists its tasks"
        )
    config: dict[str, Any] = load_yaml(path)
    if "class" in config or config.get("output_type") != "multiple_choice":
        raise CalibrationValueError(
            f"base_task {name!r} must be a task with output_type multiple_choice, got "
            + ("a Python class" if "class" in config else repr(config.get("output_type", "generate_until")))
        )
    if config.get("process_results") is not None:
        raise CalibrationValueError(
            f"base_task {name!r} computes its results itself (process_results), so its gold answers cannot be read "
            "from doc_to_target; write a YAML of your own with the class line and a doc_to_target"
        )
    return {key: value for key, value in config.items() if key not in ("task", "tag", "task_alias", "metric_list")}


def task_index() -> dict[str, Any]:
    """lm-eval's index of tasks, groups and tags, ours included; takes some seconds."""
    index: dict[str, Any] = lm_eval.tasks.TaskManager().task_index
    return index


def _stock_path(name: str) -> Path | None:
    pattern = re.compile(rf"^['\"]?task['\"]?:\s*['\"]?{re.escape(name)}['\"]?\s*$".encode(), re.MULTILINE)

    def declares(paths: Iterable[Path]) -> Path | None:
        return next((path for path in paths if pattern.search(path.read_bytes())), None)

    files = _stock_files()
    return declares(files.get(f"{name}.yaml", [])) or declares(path for paths in files.values() for path in paths)


@functools.cache
def _stock_files() -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in sorted(Path(str(lm_eval.tasks.__file__)).parent.rglob("*.yaml")):
        files.setdefault(path.name, []).append(path)
    return files
