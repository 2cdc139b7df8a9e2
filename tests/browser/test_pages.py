"""Pages of the pipeline in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from c2vl_pipeline.browse import audit, gallery, trace
from c2vl_pipeline.workspace import load
from support.browser import Browser

pytestmark = pytest.mark.browser
MEASURE = """
const root = document.documentElement;
return [root.scrollWidth, innerWidth, root.scrollHeight, [...document.images].filter(i => i.naturalWidth > 0).length];
"""


@pytest.fixture(scope="module")
def pages(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    gallery.gallery(odd, folder / "inspect.html", limit=6)
    trace.write(trace.trace(odd, load(odd).table["sample_id"][0].as_py()), folder / "explain.html")
    audit.write(audit.measure(odd), folder / "audit.html")
    return folder


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("kind", ["inspect", "explain", "audit"])
def test_a_browser_shows_the_page_without_overflow(chrome: Browser, pages: Path, kind: str, width: int) -> None:
    chrome.show(pages / f"{kind}.html", width)
    if kind != "audit":  # cards are filled once they are seen
        chrome.until("return [...document.images].some(image => image.naturalWidth > 0);")
    wide, window, tall, images = chrome.run(MEASURE)
    assert window == width
    assert wide <= window
    assert tall > 900
    assert images > 0 or kind == "audit"
