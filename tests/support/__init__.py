"""Helpers shared by tests."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The folder of the project."""

SHARED = Path(os.environ.get("C2VL_SHARED", ROOT.parent / "shared" / "data"))
"""The folder of real data; tests that need it are skipped where it is absent."""
