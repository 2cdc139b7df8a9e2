"""Files of weights for TensorFlow Lite: where they are, and the one line that says what is wrong with one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_pipeline.engines import setting

_MOST_BYTES = 1 << 28


def located(spec: EngineSpec, expected: str) -> Path:
    """Return the file of an engine's weights.

    Args:
        spec: of the engine.
        expected: names of the files that do.

    Raises:
        EngineError: One line: none is named, it is absent, or of an impossible size.
    """
    if not spec.model:
        raise refusal(spec, "no file is named", expected)
    path = Path(spec.model).expanduser()
    if not path.is_file():
        raise refusal(spec, "no such file", expected)
    if not 0 < path.stat().st_size <= _MOST_BYTES:
        raise refusal(spec, f"{path.stat().st_size:,} bytes, expected some megabytes", expected)
    return path


def refusal(spec: EngineSpec, problem: str, expected: str) -> EngineError:
    """Return the error about a file of weights."""
    return EngineError(
        f"{setting(spec)}.model = {spec.model!r}: {problem}; expected {expected}: `make weights` fetches it, "
        f"`--set {setting(spec)}.model=FILE` names another place"
    )


@contextmanager
def silent() -> Iterator[None]:
    """Drop what LiteRT writes to the standard error by itself while it makes a network: it has no setting for that."""
    try:
        kept = os.dup(2)
    except OSError:  # nobody listens
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
