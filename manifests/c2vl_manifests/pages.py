"""Self-contained HTML pages: templates, one script, pictures as data URIs, nothing that tells folders and hosts.

Every value is escaped: text from data never becomes markup. A template extends the shell, `shared/page.html.j2`, which
holds the look and the script; `shared/card.html.j2` draws a sample as a card.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


def _read(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text("utf-8")


@cache
def _script() -> dict[str, str]:
    """Return the script of every page, and the source by which a page's policy admits it and no other."""
    text = _read(__package__, "shared/page.js")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"text": text, "source": f"'sha256-{digest}'"}


@cache
def _environment(package: str) -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _read(__package__ if name.startswith("shared/") else package, name)),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def render(
    package: str, template: str, /, filters: Mapping[str, Callable[..., Any]] | None = None, **context: Any
) -> str:
    """Fill a template and return the page.

    Args:
        package: package that holds the template, e.g. `c2vl_evaluation.paper`.
        template: path of its file in the package, e.g. `paper.html.j2`.
        filters: functions that the template applies with `|`.
        context: values of the template's variables.

    Raises:
        jinja2.UndefinedError: the template uses a variable that `context` lacks.
    """
    environment = _environment(package)
    environment.filters.update(filters or {})
    return environment.get_template(template).render(script=_script(), **context)


_FILES = "c|cc|cpp|csv|cu|h|html|js|json|jsonl|log|py|toml|tsv|txt|xml|ya?ml"
_HOSTS = re.compile(
    r"""(?<=://)[^\s/'"]+"""  # of a web address
    r"""|(?<=\bhost=)['"]?[^\s,'")]+['"]?"""  # as urllib3 writes it
    r"""|(?<![\w.+/-])[\w.+-]+@[\w.-]*\w"""  # with a user
    r"""|\[[0-9a-fA-F:.]+\](?=:\d)"""  # an address of version 6, with a port
    r"""|(?<![\w.])(?:\d{2,3}(?:\.\d{1,3}){3}(?!\w|\.\d)|\d(?:\.\d{1,3}){3}(?=:\d))"""  # of version 4
    rf"""|(?<![\w…/\\.:-])(?=[\d.]*[A-Za-z])(?![\w.-]*\.(?:{_FILES}):)"""
    r"""[A-Za-z\d](?:[\w.-]*[A-Za-z\d])?(?=:(?:22|80|443|\d{4,5})(?![\w:]))"""  # with a port
)
"""Hosts, also without `://`. Not so `org/model@main`, `opencv 4.14.0.94`, `reader.py:1200`, `table.csv:1200: …`, `epoch:12`."""


def shorten_paths(text: str | None) -> str:
    """Replace each path in a text by `…/` and its last part, and hosts: pages travel, folders and machines do not.

    A name alone, without user or port, cannot be told from other words and stays.
    """
    text = _HOSTS.sub("…", text or "")
    return re.sub(r"(?<![\w…])(?<!:/)(?:[A-Za-z]:)?(?:[\\/][^\s\\/:'\"]+)+[\\/](?=[^\s\\/])", "…/", text)


def portable(value: Any) -> Any:
    """Return a value of JSON with `shorten_paths` in all its texts; a text that is a whole path may hold spaces too."""
    if isinstance(value, Mapping):
        return {key: portable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [portable(inner) for inner in value]
    if not isinstance(value, str):
        return value
    whole = value.startswith(("/", "~", "../")) and ":" not in value  # otherwise a message, such as `file:line: reason`
    return f"…/{PurePath(value).name}" if whole else shorten_paths(value)


def jpeg_data_uri(jpeg: bytes | None, size: tuple[int, int]) -> str | None:
    """Return a JPEG scaled to fit `size` (width, height) as a data URI; None if it cannot be decoded."""
    from PIL import Image

    if not jpeg:
        return None
    try:
        image = Image.open(io.BytesIO(jpeg))
        image.draft("RGB", size)  # decodes at a fraction of the size: a gallery holds hundreds
        small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    small.thumbnail(size)
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"
