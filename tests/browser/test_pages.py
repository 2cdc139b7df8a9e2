"""Pages of all kinds in a browser: they fit, load nothing, and their cards enlarge and copy."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from c2vl_evaluation.language import search
from c2vl_evaluation.report import build
from c2vl_manifests.schema import CROPS
from c2vl_pipeline.browse import audit, gallery, trace
from c2vl_pipeline.workspace import load
from c2vl_training.dataset import PackedDataset
from support.browser import Browser
from support.pages import HOSTILE, rewrite
from support.report import table

pytestmark = pytest.mark.browser
KINDS = ["inspect", "explain", "audit", "search", "report"]
MEASURE = """
for (const d of document.querySelectorAll('details')) d.open = true;
const root = document.documentElement;
return [root.scrollWidth, innerWidth, root.scrollHeight, [...document.images].filter(i => i.naturalWidth > 0).length];
"""
STATE = """
const loads = performance.getEntriesByType('resource').map(r => r.name).filter(n => !n.startsWith('data:'));
return [loads, document.scripts.length, document.querySelectorAll('[onerror]').length, document.body.innerText];
"""


@pytest.fixture(scope="module")
def pages(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a page of each kind; one crop is moved off the person, for the audit."""
    folder = tmp_path_factory.mktemp("pages")
    odd = Path(shutil.copytree(odd, folder / "work"))

    def shift(rows: list[dict[str, Any]]) -> None:
        rows[0]["box"] = [0.0, 0.0, 3.0, 3.0]

    rewrite(odd, "crops", CROPS, shift)
    gallery.gallery(odd, folder / "inspect.html", limit=6)
    trace.write(trace.trace(odd, load(odd).table["sample_id"][0].as_py()), folder / "explain.html")
    audit.write(audit.measure(odd), folder / "audit.html")
    build.build(table(), folder / "report.html", work=odd)
    packed: Any = SimpleNamespace(packed=PackedDataset(odd), benchmark="xsub", run=Path("run"))
    hits = [search.Hit(sample, "", 0.5, row) for row, sample in enumerate(packed.packed.sample_ids(range(4)))]
    search.write_page(search.SearchResult(HOSTILE, "test", hits, 9, 0.1, 0.1, []), packed, folder / "search.html")
    return folder


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("kind", KINDS)
def test_a_browser_shows_the_page_without_overflow(chrome: Browser, pages: Path, kind: str, width: int) -> None:
    chrome.show(pages / f"{kind}.html", width)
    chrome.run(MEASURE)
    chrome.until("return [...document.images].some(image => image.naturalWidth > 0);")
    wide, window, tall, images = chrome.run(MEASURE)
    assert window == width
    assert wide <= window
    assert tall > 900
    assert images > 0


@pytest.mark.parametrize("kind", KINDS[1:])
def test_cards_of_every_page_enlarge_and_copy_and_hostile_texts_do_nothing(
    chrome: Browser, pages: Path, odd: Path, kind: str
) -> None:
    chrome.complaints()
    chrome.show(pages / f"{kind}.html", 1200)
    chrome.run("for (const d of document.querySelectorAll('details')) d.open = true;")
    chrome.run("window.written = []; navigator.clipboard.writeText = async text => written.push(text);")
    sample = load(odd).table["sample_id"][0].as_py()
    card = f".card:has([data-copy='{sample}'])"
    chrome.click(f"{card} .strip figure[data-slot='0'] img")
    shown = "return document.querySelector('dialog.viewer .%s').textContent;"
    assert sample in chrome.run(shown % "title")
    assert chrome.run(shown % "caption") == HOSTILE
    chrome.press(Keys.ARROW_RIGHT)
    assert chrome.run(shown % "caption") == "A" * 400
    chrome.press(Keys.ESCAPE)
    chrome.until("return !document.querySelector('dialog').open;")
    for place in (1, 2):
        chrome.click(f"{card} .copy:nth-of-type({place})")
    assert chrome.run("return written;") == [sample, f"c2vl-pipeline explain {sample} --work {odd.name}"]
    loads, scripts, handlers, text = chrome.run(STATE)
    assert (loads, scripts, handlers) == ([], 1, 0)
    assert HOSTILE in text
    assert chrome.complaints() == []


def test_a_link_to_what_is_folded_opens_it(chrome: Browser, pages: Path) -> None:
    chrome.show(pages / "explain.html", 1200)
    chrome.run("document.querySelector('details.fold').id = 'folded'; location.hash = 'folded';")
    assert chrome.until("return document.querySelector('details.fold').open;")


SORT = """
const [table] = document.querySelectorAll('table.sortable'), head = table.tHead.rows[0].cells[2];
head.querySelector('button').click();
return [[...table.tBodies[0].rows].map(row => parseFloat(row.cells[2].textContent)), head.ariaSort];
"""


def test_a_press_on_a_head_of_the_audit_sorts_its_classes(chrome: Browser, pages: Path) -> None:
    chrome.show(pages / "audit.html", 1200)
    values, order = chrome.run(SORT)
    assert len(set(values)) > 1
    assert (values, order) == (sorted(values, reverse=True), "descending")
    cells = "return [...document.querySelectorAll('table.sortable tbody tr td:nth-child(3)')].map(cell => cell.textContent);"
    chrome.run("document.querySelectorAll('table.sortable tbody tr td:nth-child(3)')[1].textContent = '> 99.9';")
    chrome.run(SORT)
    chrome.run(SORT)
    assert chrome.run(cells)[0] == "> 99.9"
