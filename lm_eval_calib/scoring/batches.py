"""Trees packed into rows and rows into batches, as the arrays that one forward pass takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lm_eval_calib.scoring.trie import Group, Layout, Request, Tree, lay_out

Integers = npt.NDArray[np.int64]


class Limits(NamedTuple):
    """What one forward pass may hold: tokens (padding counted), and positions with logits."""

    tokens: int
    logits: int


class Row(NamedTuple):
    """Pieces that stand one behind the other in a row of a batch, all behind the same prefix."""

    pieces: list[Layout]
    length: int
    prefix: int
    """Which of the prefixes held in the cache; -1: none."""
    prefix_length: int


@dataclass(frozen=True)
class Batch:
    """The arrays of one pass, [rows, columns] or [wanted log-probabilities].

    A token at column q sees column k of its row exactly if k <= q < ends[q's row, k], and all of its row's prefix.
    `at` are flat indices into [rows x columns]. `is_chain`: every row is one sequence without a prefix, which plain
    causal attention treats right.
    """

    tokens: Integers
    positions: Integers
    ends: Integers
    prefix: Integers
    prefix_length: Integers
    at: Integers
    target: Integers
    request: Integers
    is_chain: bool


def prefix_rows(groups: Sequence[Group], requests: Sequence[Request]) -> list[Row]:
    """The prefixes themselves, a row each, in the order of the groups."""
    rows = []
    for group in groups:
        assert group.cut is not None
        layout = lay_out(Tree(0, group.cut), requests, with_subtree=False)
        rows.append(Row([layout], group.prefix_length, -1, 0))
    return rows


def tree_rows(group: Group, requests: Sequence[Request], *, row_tokens: int, prefix: int = -1) -> list[Row]:
    """The group's trees in rows of about `row_tokens`, none longer by more than a tree, longest first.

    Rows of one length need no padding: the longest tree that is left goes to the shortest row. `row_tokens=0` gives
    each tree a row of its own.
    """
    trees = sorted(group.trees, key=lambda tree: -tree.size)
    if row_tokens:
        count = -(-sum(tree.size for tree in trees) // row_tokens)
        parts: list[list[Tree]] = [[] for _ in range(min(count, len(trees)))]
        shortest = [(0, index) for index in range(len(parts))]
        for tree in trees:
            length, index = shortest[0]
            heapreplace(shortest, (length + tree.size, index))
            parts[index].append(tree)
    else:
        parts = [[tree] for tree in trees]
    rows = []
    for part in sorted(parts, key=lambda part: -sum(tree.size for tree in part)):
        pieces = [lay_out(tree, requests) for tree in part]
        rows.append(Row(pieces, sum(len(piece.tokens) for piece in pieces), prefix, group.prefix_length))
    return rows


def take_batch(rows: Sequence[Row], limits: Limits) -> tuple[list[Row], int]:
    """The rows from the front that fit into one pass (at least one), and the number of columns they need."""
    columns = logits = taken = 0
    for row in rows:
        wider = max(columns, row.length)
        more = logits + sum(len(piece.at) for piece in row.pieces)
        if taken and (wider * (taken + 1) > limits.tokens or more > limits.logits):
            break
        columns, logits, taken = wider, more, taken + 1
    return list(rows[:taken]), columns


def make_batch(rows: Sequence[Row], columns: int) -> Batch:
    """Lay the rows out side by side, padded on the right with tokens that see and are seen by nobody else."""
    shape = (len(rows), columns)
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    ends = np.tile(np.arange(1, columns + 1), (len(rows), 1))
    at, target, request = [], [], []
    for index, row in enumerate(rows):
        offset = 0
        for piece in row.pieces:
            stop = offset + len(piece.tokens)
            tokens[index, offset:stop] = piece.tokens
            positions[index, offset:stop] = piece.positions
            ends[index, offset:stop] = piece.ends + offset
            at.append(piece.at + (index * columns + offset))
            target.append(piece.target)
            request.append(piece.request)
            offset = stop
    return Batch(
        tokens,
        positions,
        ends,
        np.array([row.prefix for row in rows]),
        np.array([row.prefix_length for row in rows]),
        np.concatenate(at),
        np.concatenate(target),
        np.concatenate(request),
        all(row.prefix < 0 and len(row.pieces) == 1 and bool((row.pieces[0].ends == row.length).all()) for row in rows),
    )
