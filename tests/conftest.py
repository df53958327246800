"""What all tests share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache_of_this_run(tmp_path_factory):
    """Diagonalisations are computed by the code under test, never read from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
