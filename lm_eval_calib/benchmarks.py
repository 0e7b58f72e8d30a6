"""The task class of our benchmarks: rows are checked, subjects keep their own examples, `--metadata` selects."""

from __future__ import annotations

import logging
from collections import UserDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.harness import CalibratedTask, get_sampler
from lm_eval_calib.metrics import METRICS
from lm_eval_calib.rows import Rows, check
from lm_eval_calib.sources import task_config

logger = logging.getLogger(__name__)

# For `aggregate_metric_list` of a group: languages count alike, however many questions they have.
GROUP_METRICS = [
    {"metric": metric.name, "aggregation": "mean", "weight_by_size": False}
    for metric in METRICS.values()
    if metric.live
]
# For wrapped stock groups that weight their tasks (subjects) by size.
GROUP_METRICS_BY_SIZE = [{**metric, "weight_by_size": True} for metric in GROUP_METRICS]


class BenchmarkTask(CalibratedTask):
    """One language of a benchmark, over all its subjects.

    To `CalibratedTask` it adds:

    - Rows that are no questions (no text, an option missing, an answer outside the options) are left out, logged,
      and counted in the results file under `configs.<task>.metadata.rows`.
    - Few-shot examples come from the question's own subject, drawn as lm-eval's task of that subject alone draws
      them, and are read when they are first needed (XNLI's training split has 392,702 rows).
    - `--metadata '{"subjects": ["anatomy", "law"]}'` keeps some subjects, and what else `rows.select` names.

    YAML keys beyond those of `CalibratedTask`:
        language: the task's language in the `benchmark.yml` beside its YAML, from which all else is taken; other keys
            of the YAML, and what a group changes, go before it.
        rows: see `lm_eval_calib.rows.Rows`.

    Raises:
        CalibrationValueError: A selection names a value that the data lacks, nothing is left of a split, or a
            subject has too few few-shot examples.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        cache_dir: str | None = None,
        download_mode: Any = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        config = dict(config or {})
        if "language" in config:
            folder = Path(config.get("metadata", {}).get("config_source", "")).parent
            source = task_config(folder, config.pop("language"))
            told = {key: source["metadata"][key] for key in ("benchmark", "language")}
            metadata = {**source["metadata"], **config["metadata"], **told}
            config = {**source, **config, "metadata": metadata}
        self._rows = Rows.from_config(config.pop("rows", {}), config.get("task"))
        self._started = False
        self._seed: int | None = None
        self._examples: dict[str, list[dict[str, Any]]] | None = None
        self._samplers: dict[str, Any] = {}
        super().__init__(data_dir, cache_dir, download_mode, config)
        self._started = True
        if "subjects" in self.config.metadata and "subjects" not in self._rows.selectable():
            logger.warning("%s: has no subjects to select by --metadata; all questions are used", self.task_name)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Load the data as lm-eval does; a split's rows are checked when it is first read."""
        super().download(dataset_kwargs, **kwargs)
        self.dataset = _CheckedSplits(self.dataset, self._questions)

    def _questions(self, split: str, rows: Any) -> Any:
        evaluated = split == self._evaluated_split()
        wanted = self._rows.selections(self.config.metadata, self.task_name) if evaluated else {}
        columns = list(dict.fromkeys([*self._rows.columns(), *(path.partition(".")[0] for path in wanted)]))
        if missing := sorted(set(columns) - set(rows.column_names)):
            raise CalibrationValueError(
                f"task {self.task_name}: the data set's split {split!r} lacks the columns {missing}, it has "
                f"{rows.column_names}; is it {self.DATASET_PATH!r} in the layout that the benchmark expects?"
            )
        if not columns:
            return rows
        batches = rows.select_columns(columns).iter(batch_size=1000)
        checked = check(
            (dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True)),
            self._rows,
            wanted,
        )
        for column, values in wanted.items():
            if unknown := values - checked.seen[column]:
                raise CalibrationValueError(
                    f"task {self.task_name}: metadata selects {sorted(unknown)} by the column {column!r}, which has "
                    f"only {sorted(checked.seen[column])} in split {split!r}"
                )
        self.config.metadata.setdefault("rows", {})[split] = {
            "read": checked.total,
            "malformed": checked.malformed,
        }
        if checked.malformed:
            count = sum(checked.malformed.values())
            logger.warning(
                "%s: %d of %d rows of split %r are malformed and left out: %s",
                *(self.task_name, count, checked.total, split),
                "; ".join(f"{reason} ({number})" for reason, number in checked.malformed.items()),
            )
        if evaluated and not checked.indices:
            raise CalibrationValueError(f"task {self.task_name}: no question is left in split {split!r}")
        return rows if len(checked.indices) == len(rows) else rows.select(checked.indices)

    def build_all_requests(self, *, cache_requests: bool = False, **kwargs: Any) -> None:
        """Build the requests; a part of the questions never comes from lm-eval's cache, whose key omits the part."""
        if cache_requests and self._rows.selections(self.config.metadata, self.task_name):
            logger.warning("%s: --cache_requests is not used while --metadata selects questions", self.task_name)
            cache_requests = False
        super().build_all_requests(cache_requests=cache_requests, **kwargs)

    def fewshot_docs(self) -> Any:
        """The rows that few-shot examples are drawn from; none while the task is being built."""
        return super().fewshot_docs() if self._started else None

    def set_fewshot_seed(self, seed: int | None = None) -> None:
        """Seed the draw of few-shot examples, in each subject anew, as in lm-eval's task of one subject."""
        super().set_fewshot_seed(seed)
        self._seed = seed
        self._samplers = {}

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **kwargs: Any) -> Any:
        """The prompt of a question, with examples of its own subject."""
        if num_fewshot > 0:
            sampler = self._sampler(doc, num_fewshot)
            # lm-eval leaves the question out of its own examples only where `fewshot_split` names the test split.
            drawn_from = self.fewshot_cfg.split or self.config.training_split or self.config.validation_split
            same = (drawn_from or self.config.test_split) == self._evaluated_split()
            self.sampler = _Without(sampler, doc) if same else sampler
        return super().fewshot_context(doc, num_fewshot=num_fewshot, **kwargs)

    def _evaluated_split(self) -> str | None:
        split: str | None = self.config.test_split or self.config.validation_split
        return split

    def _sampler(self, doc: dict[str, Any], num_fewshot: int) -> Any:
        subject = self._rows.subject_of(doc)
        if subject in self._samplers:
            return self._samplers[subject]
        if self._examples is None:
            self._examples = {}
            for example in self.fewshot_docs():
                self._examples.setdefault(self._rows.subject_of(example), []).append(example)
        examples = self._examples.get(subject, [])
        if len(examples) < num_fewshot:
            of_subject = f" of subject {subject!r}" if subject else ""
            raise CalibrationValueError(
                f"task {self.task_name}: --num_fewshot asks for {num_fewshot} examples{of_subject}, the "
                f"data set has {len(examples)} to draw from; ask for fewer"
            )
        sampler = self.fewshot_cfg.sampler
        sampler_class = get_sampler(sampler) if isinstance(sampler, str) else sampler
        self._samplers[subject] = sampler_class(examples, rnd=self._seed)
        return self._samplers[subject]


class _Without:
    """A sampler that never draws the question itself."""

    def __init__(self, sampler: Any, doc: dict[str, Any]) -> None:
        self._sampler = sampler
        self._doc = doc

    def sample(self, n: int, eval_doc: Any = None) -> Any:  # noqa: ARG002 - the question, or None for lm-eval's reason
        return self._sampler.sample(n=n, eval_doc=self._doc)


class _CheckedSplits(UserDict[str, Any]):
    """The splits of a data set, each checked when it is first read."""

    def __init__(self, splits: Mapping[str, Any], questions: Callable[[str, Any], Any]) -> None:
        super().__init__(splits)
        self._questions = questions
        self._done: set[str] = set()

    def __getitem__(self, split: str) -> Any:
        if split not in self._done:
            if split not in self.data:
                raise CalibrationValueError(f"split {split!r} is not in the data set, which has {sorted(self.data)}")
            self.data[split] = self._questions(split, self.data[split])
            self._done.add(split)
        return self.data[split]
