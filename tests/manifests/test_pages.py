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
