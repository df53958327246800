"""The ListOps generator against the statistics of the task, and against values worked out another way."""

from __future__ import annotations

import listops_law
import numpy as np
import pytest
from scipy.stats import chi2

from ptd_conformance.lra import listops
from ptd_conformance.lra.listops import TOKENS

COUNT = 20_000


@pytest.fixture(scope="module")
def trees() -> listops.Trees:
    return listops.generate(COUNT, seed=1)


@pytest.fixture(scope="module")
def law() -> np.ndarray:
    """Probability of each root operator, value and length among kept trees: (4, 10, 2000)."""
    kept = listops_law.law()
    kept[..., :501] = 0
    return kept / kept.sum()


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


def test_lengths_follow_the_exact_law(trees, law):
    """The largest distance of distribution functions (Kolmogorov and Smirnov); a false alarm in 1e5."""
    assert (trees.lengths.min(), trees.lengths.max()) == (501, 1999)
    found = np.bincount(trees.lengths, minlength=2000) / COUNT
    assert np.max(np.abs(np.cumsum(found - law.sum((0, 1))))) < (np.log(2 / 1e-5) / (2 * COUNT)) ** 0.5


def test_operators_and_answers_follow_the_exact_law(trees, each, law):
    """Chi squared of root operator and answer together, 40 cells; a false alarm in 1e5."""
    roots = np.array([tree[0] for tree in each]) - listops.MIN
    found = np.bincount(10 * roots + trees.values, minlength=40)
    expected = COUNT * law.sum(2).ravel()
    assert np.sum((found - expected) ** 2 / expected) < chi2.isf(1e-5, 39)


def test_the_law_itself_gives_the_statistics_of_the_task(law):
    """Of the task's description, from 6,000 trees: within four of their standard deviations."""
    answers, given_root = law.sum((0, 2)), law.sum(2) / law.sum((1, 2))[:, None]
    described = [0.170, 0.091, 0.073, 0.078, 0.089, 0.090, 0.082, 0.076, 0.077, 0.174]
    assert np.all(np.abs(answers - described) < 4 * (answers * (1 - answers) / 6000) ** 0.5)
    assert (given_root[0, 0], given_root[1, 9]) == pytest.approx((0.577, 0.582), abs=0.05)


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
