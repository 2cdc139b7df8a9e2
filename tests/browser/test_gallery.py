"""The gallery as a person works with it: filter, sort, enlarge, copy; with the keyboard, without motion or script."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from c2vl_manifests.schema import CROPS
from c2vl_pipeline.browse import gallery
from c2vl_pipeline.workspace import load
from support.browser import Browser
from support.pages import HOSTILE, rewrite

pytestmark = pytest.mark.browser
SHOWN = "return [...document.querySelectorAll('.card:not([hidden])')].map(c => c.querySelector('.id').textContent);"
COUNT = "return document.querySelector('.bar output').textContent;"
VIEWER = """
const viewer = document.querySelector('dialog.viewer');
return viewer.open && ['title', 'facts', 'caption'].map(name => viewer.querySelector('.' + name).textContent);
"""


@pytest.fixture(scope="module")
def scored(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder whose crops have different scores."""
    folder = Path(shutil.copytree(odd, tmp_path_factory.mktemp("scored") / "work"))

    def score(rows):
        for n, row in enumerate(rows):
            row["score"] = None if row["score"] is None else 1 - n / 1000

    rewrite(folder, "crops", CROPS, score)
    return folder


@pytest.fixture(scope="module")
def page(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gallery.gallery(scored, tmp_path_factory.mktemp("gallery") / "inspect.html", limit=1000).path


@pytest.fixture
def shown(chrome: Browser, page: Path) -> Browser:
    chrome.show(page, 1200)
    return chrome


def choose(chrome: Browser, place: int, value: str) -> None:
    chrome.run(
        f"const e = document.querySelectorAll('.bar input, .bar select')[{place}]; e.value = {json.dumps(value)};"
        "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true}));"
    )


def test_text_class_status_and_split_filter_the_cards_and_count_them(shown: Browser, scored: Path) -> None:
    index = load(scored)
    rows = index.table.to_pylist()
    assert shown.run(COUNT) == f"{len(rows)} of {len(rows)} shown"
    for place, value, wanted in (
        (1, "2", [r for r in rows if r["label"] == 2]),
        (2, "captions:failed", [rows[29 // 4]]),
        (3, "xsub:test", [r for r in rows if ("xsub", "test") in r["splits"]]),
        (0, rows[5]["sample_id"].lower(), [rows[5]]),
        (0, "<SCRIPT>alert", [rows[0], rows[2], rows[3]]),
    ):
        choose(shown, place, value)
        assert shown.run(SHOWN) == [r["sample_id"] for r in wanted]
        assert shown.run(COUNT) == f"{len(wanted)} of {len(rows)} shown"
        choose(shown, place, "")
    choose(shown, 1, "2")
    choose(shown, 0, rows[0]["sample_id"])
    assert shown.run(COUNT) == f"0 of {len(rows)} shown"
    assert "No sample here matches. Captions say" in shown.run("return document.querySelector('.nothing').innerText;")


def test_cards_are_ordered_by_score_captions_and_class(shown: Browser, scored: Path) -> None:
    facts = "return [...document.querySelectorAll('.card')].map(c => Number(c.dataset.%s));"
    index = shown.run(SHOWN)
    choose(shown, 4, "score")
    scores = shown.run(facts % "score")
    assert scores == sorted(scores) != sorted(scores, reverse=True)
    choose(shown, 4, "captions")
    poor = shown.run(facts % "poor")
    assert poor == sorted(poor, reverse=True)
    assert poor[0] == 3
    choose(shown, 4, "label")
    labels = shown.run(facts % "label")
    assert labels == sorted(labels)
    choose(shown, 4, "place")
    assert shown.run(SHOWN) == index == load(scored).table["sample_id"].to_pylist()


def test_a_text_that_is_found_opens_the_captions_that_hold_it(shown: Browser) -> None:
    folded = "return document.querySelectorAll('.more[open]').length;"
    shown.until("return document.querySelectorAll('.more').length > 0;")
    assert shown.run(folded) == 0
    choose(shown, 0, "person")
    assert shown.run(folded) > 0
    shown.run("document.querySelector('.card:last-child').scrollIntoView();")  # one that was not filled before
    assert shown.until("return document.querySelector('.card:last-child .more[open]');")
    choose(shown, 0, "")
    assert shown.run(folded) == 0


def test_a_crop_is_enlarged_by_a_click_and_arrows_lead_on(shown: Browser) -> None:
    shown.until("return document.querySelectorAll('.card .strip img').length > 8;")
    shown.click(".strip figure[data-slot='1'] img")
    first = shown.run("return document.querySelector('.card h3').textContent;")
    title, facts, caption = shown.run(VIEWER)
    assert (title, caption) == (first, "A" * 400)
    assert facts.startswith("slot 1 · frame ")
    assert shown.run("return document.querySelector('.picture').getBoundingClientRect().height;") > 400
    shown.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)  # no further than the first
    title, facts, caption = shown.run(VIEWER)
    assert (title, caption, facts[:9]) == (first, HOSTILE, "slot 0 · ")
    shown.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    title, facts, _ = shown.run(VIEWER)
    assert (title == first, facts[:9]) == (False, "slot 1 · ")
    shown.click("dialog [data-step='ArrowRight']")
    assert shown.run(VIEWER)[1].startswith("slot 2 · ")
    shown.press(Keys.ESCAPE)
    assert shown.until("return !document.querySelector('dialog').open;")
    assert shown.run("return document.activeElement.className;") == "strip"


def test_arrows_pass_over_a_sample_without_crops(shown: Browser) -> None:
    shown.until("return document.querySelectorAll('.card .strip img').length > 11;")
    names = shown.run(
        "document.querySelectorAll('.card .strip')[1].remove(); return [...document.querySelectorAll('.card h3')]"
        ".slice(0, 3).map(h => h.textContent);"
    )
    shown.click(".strip figure img")
    shown.press(Keys.ARROW_DOWN)
    assert shown.run(VIEWER)[0] == names[2]
    shown.press(Keys.ARROW_UP)
    assert shown.run(VIEWER)[0] == names[0]


def test_a_class_that_turns_the_direction_of_writing_leaves_ids_as_they_are(shown: Browser) -> None:
    shown.until("return document.querySelectorAll('.card .strip img').length > 8;")
    shown.run("document.querySelector('.card h3').firstChild.textContent = '\\u202eclass ';")
    shown.click(".strip figure img")
    edges = """
    const id = document.querySelector(arguments_), range = document.createRange(), text = id.firstChild;
    return [0, text.length - 1].map(n => { range.setStart(text, n); range.setEnd(text, n + 1);
      return range.getBoundingClientRect().x; });
    """
    for where in (".card h3 .id", ".viewer .title .id"):
        first, last = shown.run(edges.replace("arguments_", json.dumps(where)))
        assert first < last


def test_the_keyboard_alone_reaches_and_enlarges_crops_with_a_visible_focus(shown: Browser) -> None:
    shown.until("return document.querySelectorAll('.card .strip img').length > 8;")
    shown.run("document.querySelector('.bar input').focus();")
    for _ in range(20):
        shown.press(Keys.TAB)
        if shown.run("return document.activeElement.matches('.strip');"):
            break
    assert shown.run("return getComputedStyle(document.activeElement).outlineStyle;") == "solid"
    shown.press(Keys.ENTER)
    assert shown.run(VIEWER)[1].startswith("slot 0 · ")


def test_copy_buttons_write_the_id_and_the_command(shown: Browser, scored: Path) -> None:
    shown.run("window.written = []; navigator.clipboard.writeText = async text => written.push(text);")
    for place in (1, 2):
        shown.click(f".card .copy:nth-of-type({place})")
    sample = load(scored).table["sample_id"][0].as_py()
    assert shown.run("return written;") == [sample, f"c2vl-pipeline explain {sample} --work {scored.name}"]
    assert shown.run("return document.querySelector('.card .copy').textContent;") == "copied"


def test_motion_plays_only_where_it_is_seen_and_wished(chrome: Browser, page: Path) -> None:
    seen = "return ['moving', 'still'].map(k => getComputedStyle(document.querySelector('.clip.' + k)).display);"
    chrome.show(page, 1200)
    chrome.until("return document.querySelector('.clip');")
    assert chrome.run(seen) == ["block", "none"]
    chrome.run("scrollTo(0, document.body.scrollHeight);")
    chrome.until("return document.querySelector('.clip.moving').animationsPaused();")
    chrome.run("scrollTo(0, 0);")
    chrome.click(".bar [type=checkbox]")
    assert chrome.run(seen) == ["none", "block"]
    chrome.show(page, 1200, motion="reduce")
    chrome.until("return document.querySelector('.clip');")
    assert chrome.run(seen) == ["none", "block"]
    assert chrome.run("return document.querySelector('.bar .check').checkVisibility();") is False  # it would do nothing


def test_hostile_captions_run_nothing_and_load_nothing(chrome: Browser, page: Path) -> None:
    chrome.complaints()
    chrome.show(page, 390)
    chrome.until("return document.querySelectorAll('.card .strip img').length > 3;")
    state = chrome.run("""
for (const card of document.querySelectorAll('.card')) card.scrollIntoView();
for (const d of document.querySelectorAll('details')) d.open = true;
const loads = performance.getEntriesByType('resource').map(r => r.name).filter(n => !n.startsWith('data:'));
return {loads, scripts: document.scripts.length, handlers: document.querySelectorAll('[onerror]').length,
        wide: document.documentElement.scrollWidth, text: document.body.innerText};
""")
    assert (state["loads"], state["scripts"], state["handlers"]) == ([], 1, 0)
    assert state["wide"] <= 390
    assert HOSTILE in state["text"]
    assert chrome.complaints() == []


def test_the_page_reads_without_script(chrome: Browser, page: Path) -> None:
    def ink() -> int:
        image = np.asarray(Image.open(io.BytesIO(chrome.picture())).convert("L"))[:1200]
        return int((np.abs(image.astype(int) - 255) > 60).sum())

    def show() -> None:
        chrome.show(page, 1200)
        chrome.until(
            "const seen = [...document.querySelectorAll('.strip img')].slice(0, 8);"
            "return seen.length == 8 && seen.every(image => image.complete);"
        )

    show()
    with_script = ink()
    chrome.without_scripts(True)
    try:
        show()
        end = time.monotonic() + 20  # an image is complete before it is painted
        while ink() <= 0.8 * with_script:  # crops, skeletons and captions are all there
            assert time.monotonic() < end
    finally:
        chrome.without_scripts(False)
