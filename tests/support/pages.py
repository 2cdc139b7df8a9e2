"""Parsed pages and rows that try to break them."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa

from c2vl_manifests.manifest import commit_table, read_shard, read_shard_manifest
from c2vl_pipeline.workspace import shard_path

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }}'


class Page(HTMLParser):
    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = path.read_text("utf-8")
        self.feed(self.text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag]


def assert_self_contained(path: Path) -> Page:
    page = Page(path)
    assert len(page.of("script")) == 1
    own = page.text.split("<script>")[1].split("</script>")[0]
    source = f"script-src 'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'"
    assert {t for t, _ in page.tags} & {"iframe", "link", "object", "embed", "base", "form"} == set()
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href"}:
                assert value is not None
                assert value.startswith("data:image/jpeg;base64,")
    assert "url(" not in page.text
    assert "@import" not in page.text
    (policy,) = (m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.split("; ") == ["default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", source]
    return page


def rewrite(work: Path, stage: str, schema: pa.Schema, change, shard: int = 0) -> None:
    path = shard_path(work, stage, shard)
    manifest = read_shard_manifest(path)
    assert manifest is not None
    rows = read_shard(path).to_pylist()
    change(rows)
    commit_table(path, pa.Table.from_pylist(rows, schema=schema), key=manifest.key, row_group=20, extra=manifest.extra)
