"""The ListOps generator against the statistics of the task, and against values worked out another way."""

from __future__ import annotations

import numpy as np
import pytest

from ptd_conformance.lra import listops
from ptd_conformance.lra.listops import TOKENS

COUNT = 6000


@pytest.fixture(scope="module")
def trees() -> listops.Trees:
    return listops.generate(COUNT, seed=1)


@pytest.fixture(scope="module")
def each(trees: listops.Trees) -> list[np.ndarray]:
    return np.split(trees.tokens, np.cumsum(trees.lengths.astype(int))[:-1])


def worked_out(tokens: np.ndarray) -> tuple[int, int, list[int]]:
    """Value, depth and argument counts of an expression, by Python's own functions."""
    rules = {"[MIN": min, "[MAX": max, "[MED": lambda a: int(np.median(a)), "[SM": lambda a: sum(a) % 10}
    stack: list[tuple[str, list[int]]] = []
    deepest, counts, value = 0, [], -1
    for token in tokens:
        word = TOKENS[token]
        deepest = max(deepest, len(stack) + 1)
        if word in rules:
            stack.append((word, []))
            continue
        value = int(word) if word.isdigit() else -1
        if word == "X":
            operator, arguments = stack.pop()
            counts.append(len(arguments))
            value = rules[operator](arguments)
        if stack:
            stack[-1][1].append(value)
    assert not stack
    return value, deepest, counts


def test_values_are_those_of_the_expressions(trees, each):
    assert [worked_out(tree)[0] for tree in each[:400]] == trees.values[:400].tolist()


def test_trees_are_ten_deep_with_two_to_ten_arguments(each):
    depths, counts = zip(*(worked_out(tree)[1:] for tree in each[:400]), strict=True)
    assert set(depths) == {10}
    assert {min(map(min, counts)), max(map(max, counts))} == {2, 10}


def test_lengths_are_cut_at_both_ends_and_distributed_as_drawn_by_the_procedure(trees):
    """Mean and quartiles of 5,000 trees of a plain recursive program: 1030 +- 5.6, 700, 947, 1299."""
    assert (trees.lengths.min() > 500, trees.lengths.max() < 2000) == (True, True)
    assert trees.lengths.mean() == pytest.approx(1030, abs=4 * np.hypot(5.6, 393 / COUNT**0.5))
    assert np.quantile(trees.lengths, [0.25, 0.5, 0.75]) == pytest.approx([700, 947, 1299], rel=0.04)


def test_answers_are_distributed_as_in_the_task(trees):
    share = np.bincount(trees.values, minlength=10) / COUNT
    expected = [0.170, 0.091, 0.073, 0.078, 0.089, 0.090, 0.082, 0.076, 0.077, 0.174]
    assert share == pytest.approx(expected, abs=4 * (0.17 * 0.83 / COUNT) ** 0.5)


def test_root_operators_are_uniform_and_decide_the_answer(trees, each):
    roots = np.array([tree[0] for tree in each])
    assert np.bincount(roots, minlength=14)[10:] / COUNT == pytest.approx([0.25] * 4, abs=4 * (0.1875 / COUNT) ** 0.5)
    assert np.mean(trees.values[roots == listops.MIN] == 0) == pytest.approx(0.577, abs=0.05)
    assert np.mean(trees.values[roots == listops.MAX] == 9) == pytest.approx(0.582, abs=0.05)


def test_no_tree_comes_twice(each):
    assert len({tree.tobytes() for tree in each}) == COUNT


def test_result_does_not_depend_on_the_number_of_workers(trees):
    alone = listops.generate(COUNT, seed=1, workers=1)
    assert all(np.array_equal(a, b) for a, b in zip(alone, trees, strict=True))


def test_other_seeds_give_other_trees(trees):
    assert not np.array_equal(listops.generate(5, seed=2).lengths, trees.lengths[:5])


def test_released_notation_and_flat_form_give_the_same_tokens():
    nested = listops.parse("( ( ( ( [MED 4 ) ( ( ( [SM 9 ) 3 ) ] ) ) 7 ) ] )")
    assert [TOKENS[token] for token in nested] == ["[MED", "4", "[SM", "9", "3", "X", "7", "X"]
    assert worked_out(nested)[0] == 4


def test_unknown_token_is_named():
    with pytest.raises(ValueError, match=r"^expression: expected ListOps tokens, got '\[AVG'"):
        listops.parse("( [AVG 1 ) ]")
