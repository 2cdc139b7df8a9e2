"""Pages from templates: one HTML file that needs nothing else; what others wrote is text in it, never markup."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import jinja2


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )


def render(package: str, template: str, /, **context: Any) -> str:
    """Fill a template.

    Args:
        package: where it lies, e.g. `c2vl_evaluation.paper`.
        template: name of its file, e.g. `paper.html.j2`.
        context: what it speaks of.

    Raises:
        jinja2.UndefinedError: it speaks of something that is not in `context`.
    """
    source = files(package).joinpath(template).read_text("utf-8")
    return _environment().from_string(source).render(context)
