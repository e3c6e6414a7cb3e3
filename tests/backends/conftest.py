"""A cache of their own for these tests: nothing comes from, or goes to, the user's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backends.gpu.cache import FOLDER_VARIABLE


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of the session, so that tests share what they compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield
