"""The public interface of the package is small, complete, and imported when used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import c2vl_training


@pytest.mark.parametrize("name", c2vl_training.__all__)
def test_every_public_name_is_there(name):
    assert getattr(c2vl_training, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'learn'"):
        c2vl_training.learn  # noqa: B018


def test_importing_the_package_does_not_import_torch():
    code = "import sys, c2vl_training; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
