"""Sources of the documentation site."""

from __future__ import annotations

import re

from support import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_every_included_file_exists_and_every_marker_is_one() -> None:
    texts = {page: page.read_text("utf-8") for page in PAGES}
    assert [page for page, text in texts.items() if "8 <" in text] == []
    included = [name for text in texts.values() for name in re.findall(r'^--8<-- "(.+)"$', text, re.MULTILINE)]
    assert len(included) >= 3
    assert [name for name in included if not (ROOT / name).is_file()] == []
