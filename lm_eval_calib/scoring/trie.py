"""Token sequences as a radix trie, and the cheapest way to run it: shared prefixes once, the rest as trees.

A request asks for the log-probabilities of the last `scored` tokens of a sequence. Sequences of one task share long
beginnings (the few-shot examples, the question), so their inputs are put into a radix trie, and the trie is cut into
groups: a prefix that is run once and kept as keys and values, and the trees behind it, each small enough for a row
of a batch. Nothing here knows of a model; all sizes are numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

# What a cached prefix must save beyond its own length before it is worth a place in a pass of its own.
CUT_OVERHEAD = 32


class Request(NamedTuple):
    """One log-likelihood: that of the last `scored` of `tokens`, each given all that precede it.

    The last token is no input, as nothing is predicted from it; 1 <= scored < len(tokens).
    """

    tokens: Tokens
    scored: int


@dataclass(slots=True, eq=False)
class Node:
    """An edge of the trie: `source[start:stop]`, tokens at those positions of every sequence that passes here.

    `wanted` lists (request, first, last): the request's tokens at first + 1 to last are predicted here. `below` is
    the number of tokens in the subtree under this node.
    """

    source: Tokens
    start: int
    stop: int
    parent: Node | None
    children: list[Node] = field(default_factory=list)
    wanted: list[tuple[int, int, int]] = field(default_factory=list)
    below: int = 0

    def path(self) -> list[Node]:
        """The nodes from the root (left out) to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def preorder(self) -> Iterator[Node]:
        """This node and all under it, parents before children."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """The subtree at `top` with the tokens from position `base` to `top.start` in front: one piece of a row."""

    base: int
    top: Node

    @property
    def size(self) -> int:
        return self.top.stop - self.base + self.top.below


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Trees that continue one prefix, the path from the root to `cut`; without a cut they begin at the root."""

    cut: Node | None
    trees: list[Tree]

    @property
    def prefix_length(self) -> int:
        return 0 if self.cut is None else self.cut.stop


def build_trie(requests: Sequence[Request]) -> Node:
    """The radix trie of the requests' inputs, `tokens[:-1]`; the root holds no token."""
    inputs = [request.tokens[:-1] for request in requests]
    # Sorting lets each sequence meet only its predecessor's path. Big-endian bytes sort as the numbers do.
    keys = [tokens.astype(">u4").tobytes() for tokens in inputs]
    last = root = Node(np.empty(0, np.int32), 0, 0, None)
    previous = root.source
    for index in sorted(range(len(inputs)), key=keys.__getitem__):
        tokens = inputs[index]
        length = min(len(tokens), len(previous))
        differs = tokens[:length] != previous[:length]
        shared = int(differs.argmax()) if differs.any() else length
        while last.parent is not None and last.start >= shared:
            last = last.parent
        if last.parent is not None and shared < last.stop:  # The two part within this edge.
            upper = Node(last.source, last.start, shared, last.parent, [last])
            last.parent.children[-1] = upper
            last.parent, last.start = upper, shared
            # Requests that end below the split also want positions above it.
            upper.wanted = [(r, first, min(stop, shared)) for r, first, stop in last.wanted if first < shared]
            last.wanted = [(r, max(first, shared), stop) for r, first, stop in last.wanted if stop > shared]
            last = upper
        if len(tokens) > last.stop:
            leaf = Node(tokens, last.stop, len(tokens), last)
            last.children.append(leaf)
            last = leaf
        first = len(tokens) - requests[index].scored
        node: Node | None = last
        while node is not None and node.stop > first:
            node.wanted.append((index, max(first, node.start), node.stop))
            node = node.parent
        previous = tokens
    for node in reversed(list(root.preorder())):
        node.below = sum(child.stop - child.start + child.below for child in node.children)
    return root


def _trees_behind(cut: Node, row_tokens: int) -> list[Tree]:
    """The subtrees under `cut` as trees of at most `row_tokens`; a larger one is split at its branches.

    What lies between the cut and a branch is repeated in front of each part.
    """
    trees: list[Tree] = []
    stack = cut.children[::-1]
    while stack:
        node = stack.pop()
        tree = Tree(cut.stop, node)
        if tree.size <= row_tokens or not node.children:
            trees.append(tree)
        else:
            stack.extend(reversed(node.children))
    return trees


def plan_groups(root: Node, *, row_tokens: int) -> list[Group]:
    """Cut the trie where that runs the fewest tokens, with trees of at most `row_tokens` where they can be.

    Each sequence passes at most one cut: of a node and the nodes below it, whichever costs less is cut. What is
    shared below a cut is shared inside its trees, what is shared above it is run again for each group.
    """
    nodes = list(root.preorder())
    cost: dict[int, int] = {}
    choice: dict[int, list[Tree] | None] = {}  # The trees behind a cut, or None: decided further down.
    for node in reversed(nodes):
        whole = node.stop + node.below
        if (whole <= row_tokens or not node.children) and node.parent is not None:
            cost[id(node)], choice[id(node)] = whole, []
            continue
        below = sum(cost[id(child)] for child in node.children)
        cost[id(node)], choice[id(node)] = below, None
        # A cut saves most if no tree behind it has to be split; only then is it worth to look.
        if node.stop and node.stop + CUT_OVERHEAD + node.below < below:
            trees = _trees_behind(node, row_tokens)
            here = node.stop + CUT_OVERHEAD + sum(tree.size for tree in trees)
            if here < below:
                cost[id(node)], choice[id(node)] = here, trees
    whole_trees: list[Tree] = []
    groups = [Group(None, whole_trees)]
    stack = [root]
    while stack:
        node = stack.pop()
        trees_here = choice[id(node)]
        if trees_here is None:
            stack.extend(reversed(node.children))
        elif trees_here:
            groups.append(Group(node, trees_here))
        else:
            whole_trees.append(Tree(0, node))
    return groups if whole_trees else groups[1:]


def plan_sequences(root: Node) -> list[Group]:
    """Every distinct sequence by itself, for models that cannot run trees; a prefix of another needs no run."""
    return [Group(None, [Tree(0, node) for node in root.preorder() if not node.children and node.stop])]


class Layout(NamedTuple):
    """A prefix or a tree as flat arrays, in preorder.

    Token i sees token j of the layout exactly if j <= i < ends[j], as a token's subtree ends at its `ends`.
    `at`, `target` and `request`, one entry a wanted log-probability: the place in the layout whose prediction is
    asked for, the token asked for, the index of the request it counts towards.
    """

    tokens: Tokens
    positions: Tokens
    ends: Tokens
    at: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    request: npt.NDArray[np.int64]


def lay_out(tree: Tree, requests: Sequence[Request], *, with_subtree: bool = True) -> Layout:
    """Flatten a tree (without its subtree: the path alone, a prefix).

    What the nodes want is handed out with the first layout that holds them: paths are repeated, answers are not.
    """
    chain = [node for node in tree.top.path() if node.start >= tree.base]
    branches = list(tree.top.preorder())[1:] if with_subtree else []
    pieces = [tree.top.source[tree.base : tree.top.stop], *(node.source[node.start : node.stop] for node in branches)]
    lengths = [len(piece) for piece in pieces]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    starts = [tree.base, *(node.start for node in branches)]
    ends = [int(offsets[-1])]
    ends += [int(end) + node.below for end, node in zip(offsets[2:], branches, strict=True)]
    shifts = [-tree.base] * len(chain) + [int(o) - node.start for o, node in zip(offsets[1:], branches, strict=False)]
    at, target, request, counts = [], [], [], []
    for node, shift in zip([*chain, *branches], shifts, strict=True):
        for index, first, stop in node.wanted:
            at.append(np.arange(first + shift, stop + shift))
            target.append(requests[index].tokens[first + 1 : stop + 1])
            request.append(index)
            counts.append(stop - first)
        node.wanted = []
    none = np.empty(0, np.int64)
    return Layout(
        np.concatenate(pieces),
        np.arange(offsets[-1], dtype=np.int32) + np.repeat(np.subtract(starts, offsets[:-1], dtype=np.int32), lengths),
        np.repeat(np.asarray(ends, np.int32), lengths),
        np.concatenate(at) if at else none,
        np.concatenate(target).astype(np.int64) if target else none,
        np.repeat(np.asarray(request, np.int64), counts),
    )
