"""Pages as HTML: self-contained, escaped, valid."""

from __future__ import annotations

import errno
import html
import os
from pathlib import Path

import pytest

from c2vl_pipeline.browse import audit, gallery, trace
from c2vl_pipeline.browse import html as pages
from c2vl_pipeline.workspace import load
from support.cli import refused
from support.pages import HOSTILE, assert_self_contained


def test_spans_write_runs_shortly():
    assert pages.spans([0, 1, 2, 5]) == "0–2, 5"
    assert pages.spans([1, 0]) == "0, 1"
    assert pages.spans([]) == ""


def test_percent_never_rounds_to_none_or_all():
    assert pages.percent(0.0001) == "< 0.1"
    assert pages.percent(0.9999) == "> 99.9"
    assert (pages.percent(0), pages.percent(1), pages.percent(None)) == ("0.0", "100.0", "–")


def test_a_thumbnail_of_rubbish_is_none():
    assert pages.thumbnail(b"no jpeg at all") is None
    assert pages.thumbnail(None) is None


def test_every_page_is_one_valid_file_that_asks_for_nothing(odd, tmp_path):
    sample = load(odd).table["sample_id"][0].as_py()
    for path in (
        gallery.gallery(odd, tmp_path / "i.html").path,
        trace.write(trace.trace(odd, sample), tmp_path / "e.html"),
        audit.write(audit.measure(odd), tmp_path / "a.html"),
    ):
        page = assert_self_contained(path)
        assert HOSTILE not in page.text
        assert html.escape(HOSTILE, quote=True).replace("&quot;", "&#34;") in page.text
        assert str(odd) not in page.text


def test_page_names_hold_no_path():
    assert trace.page_name("../../etc/x y") == "explain-..-..-etc-x-y.html".replace("..-..-", "-..-")
    assert "/" not in trace.page_name("a/b")


@pytest.mark.parametrize(
    ("words", "told"),
    [(("inspect",), "samples"), (("explain",), "frames ok"), (("audit",), "crops"), (("explain", "--json"), '"page"')],
)
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_page_that_cannot_be_written_comes_after_what_it_says(work, cli, monkeypatch, words, told, number):
    def refuse(path: Path, text: str) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(pages, "commit_text", refuse)
    sample = [load(work).table.column("sample_id")[0].as_py()] if words[0] == "explain" else []
    said = cli("c2vl-pipeline", words[0], *sample, "--work", work, *words[1:])
    refused(said, str(work), "--out")
    assert told in said.out
