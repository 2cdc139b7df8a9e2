"""The public interface of the pipeline."""

from __future__ import annotations

import subprocess
import sys

import pytest

import c2vl_pipeline


def test_every_public_name_is_there() -> None:
    for name in c2vl_pipeline.__all__:
        assert getattr(c2vl_pipeline, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = c2vl_pipeline.nothing


def test_the_package_alone_loads_nothing_heavy() -> None:
    code = "import sys, c2vl_pipeline; print([m for m in ('numpy', 'pyarrow', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
