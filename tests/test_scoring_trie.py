"""The trie and its plans: every wanted log-probability is asked for once, in its own context, within the limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_calib.scoring.batches import Limits, Row, make_batch, prefix_rows, take_batch, tree_rows
from lm_eval_calib.scoring.trie import Group, Request, build_trie, lay_out, plan_groups, plan_sequences


@st.composite
def request_lists(draw: st.DrawFn) -> list[Request]:
    """Sequences that share beginnings of all lengths with one of two long ones."""
    bases = draw(st.lists(st.lists(st.integers(0, 3), min_size=60, max_size=60), min_size=2, max_size=2))
    requests = []
    for _ in range(draw(st.integers(1, 30))):
        shared = draw(st.integers(0, 60))
        own = draw(st.lists(st.integers(0, 3), min_size=0 if shared > 1 else 2, max_size=20))
        tokens = draw(st.sampled_from(bases))[:shared] + own
        requests.append(Request(np.array(tokens, np.int32), draw(st.integers(1, len(tokens) - 1))))
    return requests


def expected(requests: list[Request]) -> dict[tuple[int, int], tuple[tuple[int, ...], int]]:
    """(request, position of the target) -> (the tokens before it, the target)."""
    return {
        (index, position): (tuple(request.tokens[:position].tolist()), int(request.tokens[position]))
        for index, request in enumerate(requests)
        for position in range(len(request.tokens) - request.scored, len(request.tokens))
    }


def answers(rows: list[Row], prefixes: list[tuple[int, ...]]) -> dict[tuple[int, int], tuple[tuple[int, ...], int]]:
    """What a batch of the rows asks for, with each context read off the mask as a model would see it."""
    found = {}
    columns = max(row.length for row in rows)
    batch = make_batch(rows, columns)
    own = np.arange(columns)
    sees = (own[None, None, :] <= own[None, :, None]) & (own[None, :, None] < batch.ends[:, None, :])
    if batch.is_chain:  # Plain causal attention must then be the same for all real tokens.
        for index, row in enumerate(rows):
            assert sees[index, : row.length, : row.length].tolist() == np.tri(row.length, dtype=bool).tolist()
    for at, target, request in zip(batch.at, batch.target, batch.request, strict=True):
        row, column = divmod(int(at), columns)
        before = prefixes[batch.prefix[row]] if batch.prefix[row] >= 0 else ()
        assert len(before) == batch.prefix_length[row]
        context = before + tuple(batch.tokens[row][sees[row, column]].tolist())
        assert batch.positions[row, column] == len(context) - 1
        key = (int(request), len(context))
        assert key not in found, "a log-probability is asked for twice"
        found[key] = (context, int(target))
    return found


@settings(max_examples=150, deadline=None)
@given(requests=request_lists(), row_tokens=st.sampled_from([1, 8, 24, 64, 1000]))
def test_every_wanted_token_is_predicted_once_from_its_own_context(requests: list[Request], row_tokens: int) -> None:
    for sequences in (False, True):
        root = build_trie(requests)
        distinct = {tuple(r.tokens[:k].tolist()) for r in requests for k in range(1, len(r.tokens))}
        assert root.below == len(distinct)  # Each shared token stands in the trie once.
        groups = plan_sequences(root) if sequences else plan_groups(root, row_tokens=row_tokens)
        behind = [group for group in groups if group.cut is not None]
        found = answers(prefix_rows(behind, requests), []) if behind else {}
        prefixes = [tuple(group.cut.source[: group.prefix_length].tolist()) for group in behind if group.cut]
        for group in groups:
            place = behind.index(group) if group.cut is not None else -1
            rows = tree_rows(group, requests, row_tokens=0 if sequences else row_tokens, prefix=place)
            more = answers(rows, prefixes)
            assert not found.keys() & more.keys()
            found |= more
            if sequences:
                assert all(len(row.pieces) == 1 for row in rows)
                assert make_batch(rows, max(row.length for row in rows)).is_chain
            else:
                largest = max(tree.size for tree in group.trees)
                assert all(row.length < row_tokens + largest for row in rows)
                assert max(row.length for row in rows) - min(row.length for row in rows) <= largest
        assert found == expected(requests)


def total(groups: list[Group]) -> int:
    return sum(group.prefix_length + sum(tree.size for tree in group.trees) for group in groups)


def test_few_shot_examples_are_cut_and_choices_are_not() -> None:
    """By hand: 100 shared tokens, 10 questions of 20 tokens, 4 choices of 3 tokens, the last of which is no input."""
    requests = [
        Request(np.array([*range(100), *[1000 + q] * 20, *[2000 + k] * 3], np.int32), 3)
        for q in range(10)
        for k in range(4)
    ]
    groups = plan_groups(build_trie(requests), row_tokens=128)
    assert [group.prefix_length for group in groups] == [100]
    assert [tree.size for tree in groups[0].trees] == [20 + 4 * 2] * 10
    assert total(groups) == 100 + 10 * 28
    assert [row.length for row in tree_rows(groups[0], requests, row_tokens=128)] == [112, 84, 84]
    # What fits into one row needs no prefix.
    assert [group.cut for group in plan_groups(build_trie(requests), row_tokens=1000)] == [None]


@pytest.mark.parametrize(("shared", "questions", "cut"), [(5, 20, True), (5, 7, False), (30, 2, False), (40, 2, True)])
def test_a_beginning_is_cut_where_that_saves_more_than_it_costs(shared: int, questions: int, cut: bool) -> None:
    """A cut saves `shared` tokens for all questions but one, and has to save more than 32."""
    requests = [Request(np.array([7] * shared + [q] * 91, np.int32), 1) for q in range(questions)]
    groups = plan_groups(build_trie(requests), row_tokens=100)
    assert (groups[0].cut is not None) == cut
    assert total(groups) == (shared if cut else shared * questions) + questions * 90


def test_one_letter_choices_ask_one_position() -> None:
    requests = [Request(np.array([1, 2, 3, letter], np.int32), 1) for letter in (10, 11, 12, 13)]
    (group,) = plan_groups(build_trie(requests), row_tokens=100)
    layout = lay_out(group.trees[0], requests)
    assert layout.tokens.tolist() == [1, 2, 3]
    assert layout.at.tolist() == [2, 2, 2, 2]
    assert layout.target.tolist() == [10, 11, 12, 13]


def test_deep_nesting_needs_no_recursion() -> None:
    tokens = np.arange(3001, dtype=np.int32)
    requests = [Request(tokens[:stop], 1) for stop in range(2, 3001)]
    groups = plan_groups(build_trie(requests), row_tokens=64)
    assert total(groups) == 2999 - 1 + 1


@pytest.mark.parametrize(("limits", "taken"), [((1000, 1000), 3), ((60, 1000), 2), ((1000, 4), 2), ((1, 1), 1)])
def test_a_pass_holds_what_the_limits_allow(limits: tuple[int, int], taken: int) -> None:
    requests = [Request(np.full(31, token, np.int32), 2) for token in range(3)]
    (group,) = plan_sequences(build_trie(requests))
    rows = tree_rows(group, requests, row_tokens=0)
    found, columns = take_batch(rows, Limits(*limits))
    assert (len(found), columns) == (taken, 30)
