"""What all tests share."""

from __future__ import annotations

import os

import pytest

# XLA without most of its optimisations, here and in the processes that tests start: most of the time is the compiler's.
# Tests hold programs to one another, and what it leaves out changes rounding alike in all that are compared; the
# conformance of the jax backend is measured with all of them. jax reads it as it is imported.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture(autouse=True, scope="session")
def cache_of_this_run(tmp_path_factory):
    """Diagonalisations are computed by the code under test, never read from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
