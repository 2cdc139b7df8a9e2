"""Cards: the README.md beside data and weights that are given away, in the form that model and data hubs read.

A card begins with facts for the hub, as YAML between two lines of hyphens. Its last line holds a hash of the lines above:
a card that somebody has edited is known by it and never written over.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from c2vl_manifests.cli_output import visible
from c2vl_manifests.errors import passing
from c2vl_manifests.manifest import commit_text
from c2vl_manifests.reading import read_text

FILE = "README.md"
_MOST_BYTES = 8 << 20
_MARK = "<!-- written by c2vl {} -->\n"


def front_matter(facts: Mapping[str, Any]) -> str:
    """Return facts as YAML between lines of hyphens; every scalar is written as JSON, which is YAML too."""
    return "\n".join(["---", *_yaml(facts), "---", ""])


def _yaml(value: Any) -> list[str]:
    """Return mappings and lists of mappings as lines of blocks."""
    lines: list[str] = []
    for key, inner in value.items():
        if isinstance(inner, list) and inner and isinstance(inner[0], Mapping):
            lines.append(f"{key}:")
            for item in inner:
                first, *rest = _yaml(item)
                lines += [f"- {first}", *(f"  {line}" for line in rest)]
        else:
            lines.append(f"{key}: {json.dumps(inner, ensure_ascii=False)}")
    return lines


def plain(value: object) -> str:
    """Return a value as one line of Markdown without markup, HTML, or control characters."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", visible(" ".join(str(value).split())))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; all cells are made `plain`."""
    lines = [columns, ["---"] * len(columns), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def engine_words(facts: Mapping[str, Any]) -> str:
    """Return back-end, model and revision of an engine, from the facts that a stage's manifest holds of it."""
    revision = facts.get("revision_resolved") or facts.get("revision")
    parts = [facts.get("backend") or "unknown", facts.get("model"), revision and f"revision {revision}"]
    return ", ".join(str(part) for part in parts if part)


def commit_card(folder: Path, text: str) -> bool:
    """Write the card of a folder; False if one is there that was edited or is somebody else's: it stays."""
    path = folder / FILE
    if not _replaceable(path):
        return False
    text = text.rstrip("\n") + "\n\n"
    commit_text(path, text + _MARK.format(_hash(text)))
    return True


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _replaceable(path: Path) -> bool:
    try:
        text = read_text(path, _MOST_BYTES)
    except FileNotFoundError:
        return True
    except (OSError, ValueError) as error:
        if passing(error):
            raise
        return False
    start = text.rfind("<!--")
    return start >= 0 and text[start:] == _MARK.format(_hash(text[:start]))
