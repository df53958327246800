"""What all tests share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache_of_this_run(tmp_path_factory):
    """Diagonalisations are computed by the code under test, never read from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def quick_compiler():
    """XLA without most of its optimisations, for modules whose time is its: they hold programs to one another, or run
    kernels in interpret mode. What it leaves out changes rounding alike in all that are compared."""
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
