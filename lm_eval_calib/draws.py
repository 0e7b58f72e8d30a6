"""Which questions each resample draws."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lm_eval_calib.errors import CalibrationValueError
from lm_eval_calib.inputs import Ints

Key = TypeVar("Key", bound=Hashable)
Counts = npt.NDArray[np.uint8]  # among 256 questions or more, none is drawn 256 times

# Counts kept for all groups of the same questions, in bytes; beyond, every group draws them anew.
_KEPT = 1 << 29
# Resamples drawn by one thread at a time.
_CHUNK = 32


def draw_counts(strata: Sequence[Ints], size: int, rows: range, seed: int) -> Counts:
    """How often each of `size` questions is drawn in the resamples numbered `rows`: [len(rows), size].

    Every stratum (the indices of its questions) is drawn with replacement to its own size. Resample r has its
    own generator, seeded with (seed, size, r), so that it does not depend on which others are drawn.
    """
    counts = np.zeros((len(rows), size), dtype=np.uint8)
    for row, number in enumerate(rows):
        generator = np.random.default_rng((seed, size, number))
        for members in strata:
            drawn = generator.integers(0, members.size, size=members.size, dtype=np.int32)
            counts[row, members] = np.bincount(drawn, minlength=members.size)
    return counts


@dataclass(frozen=True, eq=False)
class Draws:
    """The resamples of one group.

    Attributes:
        identity: equal for groups whose resamples are the same.
        resamples: R.
        size: U, the questions that are resampled together; so many are drawn.
        kept: [U, R] their counts, or None where they would be too large.
        draw: gives the counts [rows, U] of some resamples.
        rows: [N] where the group's questions stand among the U; None where they are the same.
    """

    identity: Hashable
    resamples: int
    size: int
    kept: Counts | None
    draw: Callable[[range], Counts]
    rows: Ints | None

    def blocks(self, size: int) -> list[range]:
        """The numbers of all resamples, in runs of at most a size, which are about equal."""
        size = -(-self.resamples // -(-self.resamples // size))
        return [range(low, min(low + size, self.resamples)) for low in range(0, self.resamples, size)]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type that holds the sum of all counts."""
        return np.min_scalar_type(self.size)

    def counts(self, block: range) -> Counts:
        """How often each question is drawn [U, len(block)]."""
        return self.draw(block).T if self.kept is None else self.kept[:, block.start : block.stop]

    def columns(self, order: Ints) -> Ints:
        """Where the group's questions of this order stand among the U."""
        return order if self.rows is None else self.rows[order]


def draws_of(
    sizes: Mapping[Key, int],
    *,
    ids: Mapping[Key, Sequence[Hashable] | npt.NDArray[Any]] | None,
    strata: Mapping[Key, npt.ArrayLike] | None,
    resamples: int,
    seed: int,
    mapper: Callable[..., Iterable[Counts]],
) -> dict[Key, Draws]:
    """The resamples of groups of these sizes; see `lm_eval_calib.bootstrap.replicate`."""
    for name, mapping in (("ids", ids), ("strata", strata)):
        if mapping is not None:
            missing = [key for key in sizes if key not in mapping]
            if missing:
                raise CalibrationValueError(f"{name}: expected an entry for every group, none for {missing[0]!r}")
    labels = None if strata is None else {key: _listed(strata[key], size, key) for key, size in sizes.items()}
    if ids is None:
        made: dict[Hashable, Draws] = {}
        result = {}
        for key, size in sizes.items():
            codes = None if labels is None else _codes(labels[key])
            pooled = (size, None if codes is None else codes.tobytes())
            if pooled not in made:
                made[pooled] = _draws("rows", size, codes, resamples, seed, mapper)
            result[key] = made[pooled]
        return result
    named = {key: _listed(ids[key], size, key) for key, size in sizes.items()}
    # Sorted, so that neither the order of the groups nor that of their rows matters.
    every = sorted(set().union(*named.values()), key=repr)
    joint = None
    if labels is not None:
        label_of: dict[Hashable, Hashable] = {}
        for key in sizes:
            for question, label in zip(named[key], labels[key], strict=True):
                if label_of.setdefault(question, label) != label:
                    raise CalibrationValueError(
                        f"strata: question {question!r} is in {label!r} in group {key!r} and in "
                        f"{label_of[question]!r} elsewhere; a question has one stratum"
                    )
        joint = _codes([label_of[name] for name in every])
    shared = _draws(hashlib.sha256(repr(every).encode()).hexdigest(), len(every), joint, resamples, seed, mapper)
    place = {name: index for index, name in enumerate(every)}
    return {key: replace(shared, rows=np.array([place[name] for name in named[key]], dtype=np.int64)) for key in sizes}


def _draws(
    questions: str,
    size: int,
    codes: Ints | None,
    resamples: int,
    seed: int,
    mapper: Callable[..., Iterable[Counts]],
) -> Draws:
    if codes is None:
        strata = [np.arange(size)] if size else []
    else:
        strata = [np.flatnonzero(codes == code) for code in range(codes.max(initial=-1) + 1)]

    def draw(block: range) -> Counts:
        return draw_counts(strata, size, block, seed)

    identity = (questions, size, None if codes is None else codes.tobytes(), resamples, seed)
    draws = Draws(identity, resamples, size, None, draw, None)
    if size * resamples > _KEPT:
        return draws
    kept = np.empty((size, resamples), dtype=np.uint8)
    chunks = draws.blocks(_CHUNK)
    for chunk, counts in zip(chunks, mapper(draw, chunks), strict=True):
        kept[:, chunk.start : chunk.stop] = counts.T
    return replace(draws, kept=kept)


def _listed(values: Any, size: int, key: Hashable) -> list[Hashable]:
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(listed) != size:
        raise CalibrationValueError(
            f"ids and strata: expected one entry for each of the {size} questions of group {key!r}, got {len(listed)}"
        )
    return listed


def _codes(labels: list[Hashable]) -> Ints:
    place = {label: index for index, label in enumerate(sorted(set(labels), key=repr))}
    return np.array([place[label] for label in labels], dtype=np.int64)
