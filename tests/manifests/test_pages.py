"""Pages from templates: text stays text."""

from __future__ import annotations

import jinja2
import pytest

from c2vl_manifests import pages


def test_a_template_shows_text_as_text_and_speaks_of_nothing_unknown(tmp_path, monkeypatch):
    folder = tmp_path / "told_pages"
    folder.mkdir()
    (folder / "__init__.py").touch()
    lines = ["  {% for one in template %}", "<p>{{ one }}{{ package }}</p>", "  {% endfor %}"]
    (folder / "page.html.j2").write_text("\n".join(lines), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    made = pages.render("told_pages", "page.html.j2", template=["<b>", "é"], package="&")
    assert made == "<p>&lt;b&gt;&amp;</p>\n<p>é&amp;</p>\n"
    with pytest.raises(jinja2.UndefinedError, match="'package' is undefined"):
        pages.render("told_pages", "page.html.j2", template=["x"])


def test_paths_and_hosts_of_this_machine_are_shortened_and_other_text_stays():
    told = {
        "model": "/home/someone/my weights/clip",
        "own": ["~someone/clip", "../../someone/clip"],
        "server": "http://me:word@gpu7.lab:8000/v1/chat",
        "error": "/data/someone/a.avi: no video; http://gpu7.lab:8000/v1: refused",
        "override": "captioner.model=/home/someone/llava",
    }
    assert pages.portable(told) == {
        "model": "…/clip",
        "own": ["…/clip", "…/clip"],
        "server": "http://…/v1/chat",
        "error": "…/a.avi: no video; http://…/v1: refused",
        "override": "captioner.model=…/llava",
    }
    stays = {
        "id": "llava-hf/llava-1.5-7b-hf",
        "text": "left and/or right, 1/2",
        "n": [1, 0.5, True, None],
        "a/b": "ckpt/x",
    }
    assert pages.portable(stays) == stays
    assert pages.portable(pages.portable(told)) == pages.portable(told)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("no answer of myhost:8000/v1: refused", "no answer of …:8000/v1: refused"),
        ("connect to (node07.cluster.local:443) failed", "connect to (…:443) failed"),
        (
            "HTTPConnectionPool(host='gpu-3', port=8000): Max retries",
            "HTTPConnectionPool(host=…, port=8000): Max retries",
        ),
        ("base_url=10.0.0.3:8000/v1", "base_url=…:8000/v1"),
        ("10.0.0.3 is down, [fe80::1]:80 too", "… is down, …:80 too"),
        ("cannot reach 10.0.0.3.", "cannot reach …."),
        ("8.8.8.8:53 is silent", "…:53 is silent"),
        ("node07:22, node07:80.", "…:22, …:80."),
        ("jane@node07: Permission denied", "…: Permission denied"),
    ],
)
def test_hosts_are_replaced_also_without_a_scheme(text: str, short: str) -> None:
    assert pages.shorten_paths(text) == short
    assert pages.shorten_paths(short) == short


@pytest.mark.parametrize(
    "text",
    ["samples.csv:12: no", "samples.csv:1200, row", "…/samples.csv:1200 bad", "in a.py:17)", "[inline_container.cc:1858]",
     "12:30 of 12:30:45", "1920:1080", "3:1000", "sha256:1234567890ab", "qwen3:14b", "cuda:10", "epoch:12", "status:404",
     "torch 2.13.0", "opencv 4.14.0.94", "4.14.0.94", "org/model@main", "row 3: x", "a:5"],
)  # fmt: skip
def test_lines_times_hashes_and_versions_are_no_hosts(text: str) -> None:
    assert pages.shorten_paths(text) == text
