"""The streaming example, at a small size."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "streaming_mlx.py"


@pytest.fixture(scope="module")
def example():
    specification = importlib.util.spec_from_file_location("streaming_mlx", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_trained_model_streams_what_it_computes_in_parallel(example):
    """Outputs of order 1 through one block of float32; a state carried wrongly is off by its own size."""
    assert example.main(steps=20, length=60) < 1e-5


def test_the_model_of_the_example_learns_to_recall(example):
    *_, error = example.train(steps=80)
    assert error < 0.5
