"""One browser for all pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.browser import Browser, browser


@pytest.fixture(scope="session")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started
