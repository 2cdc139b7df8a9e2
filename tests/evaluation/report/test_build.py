"""The report as a page: contents, damage, escaping."""

from __future__ import annotations

import base64
import hashlib
import re
from html import unescape
from pathlib import Path

import pytest

from c2vl_evaluation.report import build
from c2vl_evaluation.results import mean_std
from support.pages import HOSTILE
from support.report import Page, main_run, read, table, write_runs


@pytest.fixture(scope="module")
def full(odd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    results = table()
    write_runs(results, folder)
    path = build.build(results, folder / "report.html", work=odd, main=main_run())
    return results, folder, path


def test_page_is_small_and_loads_nothing(full, odd):
    _, folder, path = full
    html = path.read_text("utf-8")
    page = Page(html)
    assert path.stat().st_size < 4_000_000
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in unescape(html)
    assert not {"link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "default-src 'none'" in html
    assert str(folder) not in html
    assert str(odd) not in html


def test_page_minds_phones_and_dark_rooms(full):
    html = full[2].read_text("utf-8")
    assert 'name="viewport" content="width=device-width' in html
    assert "prefers-color-scheme: dark" in html
    assert "tabular-nums" in html


@pytest.mark.slow
def test_equal_input_writes_equal_bytes(full, odd):
    results, folder, path = full
    again = build.build(results, folder / "again.html", work=odd, main=main_run())
    assert again.read_bytes() == path.read_bytes()


def test_every_row_is_on_the_page(full):
    results, _, path = full
    text = read(path).text
    for name in results.names():
        of = results.of(name)
        for protocol in ("knn", "linear"):
            assert mean_std([row.top1(protocol) for row in of]) in text
        assert mean_std([row.result("linear").best.top1 for row in of]) in text
    for row in results.rows:
        assert row.run.rsplit("/", 1)[1] in text
    for fact in ("33.3", "40.0", "1 h 02 min", "1,234", "f" * 32, "d" * 32, "posecode", "Toy & Co"):
        assert fact in text


def test_controls_and_derived_rows_are_marked(full):
    page = read(full[2])
    classes = [attrs.get("class", "") for tag, attrs in page.tags if tag == "tr"]
    assert classes.count("control") == 3
    assert classes.count("main") == 1
    assert page.text.count("derived from joints") == 3 + 1  # three lines and the explanation
    assert "captions of these rows are computed from the skeleton itself" in page.text


def test_page_without_derived_rows_does_not_speak_of_them(tmp_path):
    assert "derived from joints" not in read(build.build(table(derived=False), tmp_path / "r.html")).text


def test_all_figures_are_drawn_with_captions(full):
    page = read(full[2])
    assert sum(attrs.get("class") is None for tag, attrs in page.tags if tag == "svg") == 7
    for word in (
        "metrics.jsonl",
        "perplexity 19.7",
        "t-SNE seed 0",
        "60 test samples of the 3 most frequent of 3 classes",
    ):
        assert word in page.text
    assert "Not drawn" not in page.text


def test_most_frequent_mistakes_are_named_with_a_sample(full):
    assert (
        "Most frequent mistakes: wave for clap, 3 of 20 (e.g. s0); sit <down> for clap, 3 of 20 (e.g. s14)"
        in read(full[2]).text
    )


def test_prompts_are_shown_as_cards_one_of_them_not_ok(full):
    cards = [attrs for tag, attrs in read(full[2]).tags if tag == "article"]
    assert len(cards) == build._SAMPLES
    assert {"crops:no_person", "captions:failed"} & {
        status for card in cards for status in card["data-status"].split("\n")
    }


def test_captions_and_names_are_escaped(odd, tmp_path):
    evil = '<script>alert(1)</script>"><img src=https://evil.example/x.png>'
    results = table({(evil, "pretrained"): (0.5, 0.5)}, title=evil, classes=(evil, "b", "c"), engines={evil: evil})
    write_runs(results.model_copy(update={"rows": ()}), tmp_path)
    path = build.build(results, tmp_path / "r.html", work=odd, main=main_run())
    page = read(path)
    assert page.count("script") == 1  # the page's own
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert evil in page.text
    assert HOSTILE in page.text


def test_empty_work_folder_is_said(tmp_path):
    text = read(build.build(table(), tmp_path / "r.html", work=tmp_path / "nowhere")).text
    assert "No crops and captions to show: …/nowhere holds no index; run" in text


def test_table_alone_makes_a_page_that_says_what_is_missing(tmp_path):
    page = read(
        build.build(
            table({("random encoder", "floor"): (0.4, 0.5)}, seeds=1, stage_seconds={}, engines={}), tmp_path / "r.html"
        )
    )
    assert page.count("svg") == 1  # the bars
    for sentence in (
        "No pre-trained encoder is in this table; random encoder reaches 40.0 % kNN and 50.0 % linear.",
        "No work folder was given",
        "Not drawn: the main run or its packed data are not available.",
        "there is no curve to draw",
        "No stage has recorded times.",
    ):
        assert sentence in page.text


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["", '{"epoch": 0, "lo', "[1]\n", "3\n", '{"epoch": "x", "loss": null}\n'])
def test_damaged_metrics_are_named_not_fatal(tmp_path, damage):
    results = table()
    write_runs(results, tmp_path)
    (tmp_path / results.rows[0].run / "metrics.jsonl").write_text(damage)
    page = read(build.build(results, tmp_path / "r.html"))
    assert "Not drawn, no readable metrics.jsonl: partition-seed0." in page.text
    assert page.count("svg") == 4


@pytest.mark.slow
def test_runs_are_found_where_the_table_was_moved_to(tmp_path):
    results = table()
    assert not Path(results.rows[0].run).is_absolute()
    write_runs(results, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    page = read(build.build(results, tmp_path / "there" / "r.html"))
    assert page.count("svg") == 4


@pytest.mark.slow
def test_more_labels_than_class_names(tmp_path):
    page = read(build.build(table(classes=()), tmp_path / "r.html", main=main_run()))
    assert "class 2" in page.text


def test_a_main_run_that_is_gone_says_why_on_the_page(tmp_path):
    why = build.main_run(table(), tmp_path, tmp_path)
    assert "holds no packed data; run `c2vl-pipeline pack --work" in why
    text = read(build.build(table(), tmp_path / "r.html", main=why)).text
    assert "Not drawn: …/packed holds no packed data; run `c2vl-pipeline pack --work …/" in text
    assert str(tmp_path) not in text
