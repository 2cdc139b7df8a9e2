"""Report in a browser: phone and desktop, light and dark, read as a reader would see it, without a network."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c2vl_evaluation.clips import clip_cards
from c2vl_evaluation.report import build
from c2vl_evaluation.report.mistakes import Mistake
from c2vl_evaluation.results import Table
from c2vl_training.dataset import PackedDataset
from support.browser import Browser
from support.pages import HOSTILE
from support.report import table, with_findings, write_runs

pytestmark = pytest.mark.browser
EVIL = '<script>document.title = "taken"</script>"><img src=https://evil.example/x.png onerror=alert(1)>'
SCREENS = [(width, scheme) for width in (390, 1200) for scheme in ("light", "dark")]


def page_results() -> Table:
    """Every kind of line, 40 classes, and names that try to break out of the page or out of their columns."""
    base = with_findings()
    classes = (EVIL, "touch the other person's pocket while standing", "x" * 60, *(f"class no {n}" for n in range(37)))
    long = f"partition(cosine), {EVIL}"
    rows = [
        r.model_copy(update={"name": long} if r.role == "pretrained" and r.name != "hard" else {}) for r in base.rows
    ]
    engines = {"crops": "skeleton", "captions": EVIL, "vectors": "hf (openai/clip-vit-large-patch14-336)"}
    return base.model_copy(update={"rows": tuple(rows), "classes": classes, "engines": engines, "title": EVIL})


def answered(results: Table) -> build.MainRun:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 40

    def wrong(share: float) -> np.ndarray:
        return np.where(rng.random(400) < share, rng.integers(0, 40, 400), labels)

    features = rng.normal(size=(400, 6)).astype(np.float32) + labels[:, None] % 7
    answers = {name: [wrong(0.3 + 0.1 * n) for _ in range(2)] for n, name in enumerate(results.names())}
    main = answers[results.main_row().name][0]
    return build.MainRun(features, labels, main, [f"s{n}" for n in range(400)], answers)


@pytest.fixture(scope="module")
def page(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole report: all sections, rows that failed, captions and names of the worst kind."""
    folder = tmp_path_factory.mktemp("page")
    results = page_results()
    write_runs(results, folder)
    facts = {"recipe": {"training": {"note": EVIL, "model": "x" * 200}}, "versions": {"c2vl": "1"}, "device": "cpu"}
    for row in results.rows:
        (folder / row.run / "run.json").write_text(
            json.dumps(facts | {"parameters": 3_078_000, "fingerprint": "f" * 32})
        )
    packed = PackedDataset(odd)
    shown = [Mistake(*clip_cards(packed, [n]), EVIL, 0.5, 3, 9, *clip_cards(packed, [n + 1]), 0.9) for n in range(3)]
    return build.build(results, folder / "report.html", work=odd, main=replace(answered(results), mistakes=shown))


UNFOLD = "for (const d of document.querySelectorAll('details')) d.open = true;"
OVERFLOWING = (
    UNFOLD
    + """
const found = [];
for (const e of document.body.querySelectorAll('*')) {
  if (e.closest('.scroll, .strip, pre, svg')) continue;
  const box = e.getBoundingClientRect();
  if (box.right > innerWidth + 1 || box.left < -1) found.push(e.tagName + '.' + e.className + ' ' + box.right);
}
return {page: document.documentElement.scrollWidth, screen: innerWidth, found};
"""
)
COLOURS = (
    UNFOLD
    + """
const parse = c => { const p = c.match(/[\\d.]+/g).map(Number); return [p[0], p[1], p[2], p.length > 3 ? p[3] : 1]; };
const over = (a, b) => [0, 1, 2].map(i => a[3] * a[i] + (1 - a[3]) * b[i]).concat(1);
const light = c => [0, 1, 2].map(i => c[i] / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ratio = (a, b) => { const [x, y] = [light(a), light(b)]; return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05); };
const ground = e => {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c[3] > 0) return c;
  }
  return [255, 255, 255, 1];
};
const found = [];
for (const e of document.body.querySelectorAll('*')) {
  const style = getComputedStyle(e), inside = e.closest('svg');
  const told = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (e.tagName === 'title' || style.visibility === 'hidden') continue;
  let below = ground(inside ? inside.parentElement : e);
  if (e.matches('text.in')) {
    const cell = e.previousElementSibling, fill = parse(getComputedStyle(cell).fill);
    below = over([...fill.slice(0, 3), Number(getComputedStyle(cell).fillOpacity)], below);
    found.push(['cell', e.textContent, ratio(parse(style.fill), below)]);
  } else if (told) {
    found.push(['text', e.textContent.slice(0, 40), ratio(over(parse(inside ? style.fill : style.color), below), below)]);
  } else if (inside && e.matches('path, use') && !e.closest('defs')) {
    for (const [paint, opacity] of [[style.fill, style.fillOpacity], [style.stroke, style.strokeOpacity]])
      if (paint.startsWith('rgb') && parse(paint)[3] > 0 && Number(opacity) > 0.3) found.push(['mark', paint, ratio(parse(paint), below)]);
  }
}
return found;
"""
)
SIZES = """
const found = [];
for (const svg of document.querySelectorAll('svg')) {
  const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  for (const t of svg.querySelectorAll('text')) found.push([svg.ariaLabel, t.textContent, parseFloat(getComputedStyle(t).fontSize) * scale]);
}
return found;
"""


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_nothing_hangs_over_the_edge(chrome: Browser, page: Path, width: int, scheme: str) -> None:
    chrome.show(page, width, scheme)
    seen = chrome.run(OVERFLOWING)
    assert seen["screen"] == width
    assert seen["page"] <= width
    assert seen["found"] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out_from_what_they_lie_on(chrome: Browser, page: Path, scheme: str) -> None:
    """WCAG's ratios: 4.5 for text, 3 for the large-print figures of a matrix; marks are not text and need less."""
    chrome.show(page, 1200, scheme)
    found = chrome.run(COLOURS)
    kinds = {kind: [entry for entry in found if entry[0] == kind] for kind in ("text", "mark")}
    assert len(kinds["text"]) > 200
    assert len(kinds["mark"]) > 50
    least = {"text": 4.5, "mark": 2.5, "cell": 3}
    assert [entry for entry in found if entry[2] < least[entry[0]]] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_in_a_small_matrix_can_be_read_on_every_colour(chrome: Browser, tmp_path: Path, scheme: str) -> None:
    labels = np.arange(110) % 11
    answers = np.where(np.arange(110) < 11 * labels, (labels + 1) % 11, labels)  # every share from 0 to 100 %
    rng = np.random.default_rng(0)
    main = build.MainRun(rng.normal(size=(110, 4)).astype(np.float32), labels, answers, [str(n) for n in range(110)])
    results = table(classes=tuple(f"class {n}" for n in range(11)))
    chrome.show(build.build(results, tmp_path / "r.html", main=main), 1200, scheme)
    cells = [entry for entry in chrome.run(COLOURS) if entry[0] == "cell"]
    assert {"100"} < {entry[1] for entry in cells}
    assert [entry for entry in cells if entry[2] < 3] == []


@pytest.mark.parametrize("width", [390, 1200])
def test_labels_of_figures_are_large_enough_to_read(chrome: Browser, page: Path, width: int) -> None:
    chrome.show(page, width, "light")
    sizes = chrome.run(SIZES)
    assert {label for label, _, _ in sizes} >= {"accuracy by class", "confusion matrix", "spread of similarities"}
    assert [entry for entry in sizes if entry[2] < 8] == []


def test_a_page_of_hostile_names_runs_nothing_and_loads_nothing(chrome: Browser, page: Path) -> None:
    chrome.complaints()
    chrome.show(page, 390, "light")
    state = chrome.run(
        UNFOLD
        + """
const loads = performance.getEntriesByType('resource').map(r => r.name).filter(n => !n.startsWith('data:'));
for (const image of document.images) image.loading = 'eager';
const images = [...document.images].filter(i => !i.matches('dialog *'));
await Promise.allSettled(images.map(i => i.decode()));
const broken = images.filter(i => !i.src.startsWith('data:') || !i.naturalWidth);
return {title: document.title, loads, broken: broken.length, images: images.length,
        scripts: document.scripts.length, handlers: document.querySelectorAll('[onerror]').length,
        text: document.body.innerText};
"""
    )
    assert state["title"].startswith(EVIL)
    assert state["loads"] == []
    assert state["images"] > 47  # of 18 cards' four crops
    assert (state["broken"], state["scripts"], state["handlers"]) == (0, 1, 0)  # the page's own
    assert HOSTILE in state["text"]
    assert chrome.complaints() == []


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_a_screenshot_shows_a_page_of_its_scheme(
    chrome: Browser, page: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    chrome.show(page, width, scheme)
    file = tmp_path / f"report-{width}-{scheme}.png"
    file.write_bytes(chrome.picture())
    image = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
    assert image.width == width
    assert image.height > 3000
    grey = np.asarray(image.convert("L"))
    ground = np.bincount(grey.ravel()).argmax()
    assert ground > 240 if scheme == "light" else ground < 40
    drawn = (np.abs(grey.astype(int) - int(ground)) > 60).any(axis=1)
    assert drawn.mean() > 0.3  # rows of pixels with something on them


def test_links_lead_to_the_sections(chrome: Browser, page: Path) -> None:
    chrome.show(page, 390, "light")
    lost = (
        "return [...document.querySelectorAll('a')].filter(a => !document.querySelector(a.getAttribute('href'))).length"
    )
    assert chrome.run("return document.querySelectorAll('nav a').length") == 7
    assert chrome.run(lost) == 0


SORT = """
const [table] = document.querySelectorAll('table.sortable');
const read = () => [...table.tBodies[0].rows].map(row => parseFloat(row.cells[2].textContent));
const press = () => { table.tHead.rows[0].cells[2].querySelector('button').click(); return read(); };
const feet = () => table.tFoot.innerText, before = [read(), feet()];
return {before, down: press(), up: press(), sort: table.tHead.rows[0].cells[2].ariaSort, feet: feet()};
"""


def test_a_press_on_a_head_sorts_the_rows_and_leaves_chance_below(chrome: Browser, page: Path) -> None:
    chrome.show(page, 1200)
    found = chrome.run(SORT)
    values = found["before"][0]
    assert values != sorted(values)
    assert (found["down"], found["up"]) == (sorted(values, reverse=True), sorted(values))
    assert found["sort"] == "ascending"
    assert found["feet"] == found["before"][1]
    assert chrome.complaints() == []
