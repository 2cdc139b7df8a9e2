"""The page "Add an encoder", followed from an empty file to a trained and loaded network."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
import torch

from c2vl_manifests.errors import ConfigError
from c2vl_training import encoders, load_encoder
from c2vl_training.trainer import train
from support.encoders import HAND
from support.packed import sticks
from support.training import run

PAGE = Path(__file__).parents[2] / "docs" / "contributing" / "add-an-encoder.md"


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the page's module into a folder of the package, and its line into the registry."""
    module, line = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    folder = tmp_path / "encoders"
    folder.mkdir()
    (folder / "pooled.py").write_text(module, "utf-8")
    monkeypatch.setattr(encoders, "__path__", [*encoders.__path__, str(folder)])
    for name, builder in ast.literal_eval(f"{{{line.strip()}}}").items():
        monkeypatch.setitem(encoders.ENCODERS, name, builder)
    monkeypatch.delitem(sys.modules, "c2vl_training.encoders.pooled", raising=False)


@pytest.mark.usefixtures("registered")
def test_the_encoder_of_the_page_trains_is_saved_and_loaded(tmp_path):
    data = sticks(tmp_path / "packed")
    train(run(data, tmp_path / "run", 'training.encoder={name="pooled",width=6}'))
    loaded = load_encoder(tmp_path / "run")
    assert type(loaded.module).__name__ == "Pooled"
    assert loaded.module(torch.randn(2, 3, 8, 5, 1)).shape == (2, 6)
    size = encoders.count(loaded.module, 3, 8, 5, 1)
    assert size.parameters == 15 * 2 + 15 * 6 + 6 + 6 * 6 + 6
    assert size.macs == 8 * (15 * 6 + 6 * 6)


@pytest.mark.usefixtures("registered")
def test_it_has_a_width_and_no_blocks():
    assert encoders.build("pooled", HAND).dim == 256
    with pytest.raises(ConfigError, match="encoder 'pooled' has no blocks"):
        encoders.build("pooled", HAND, blocks=((4, 1),))


def test_the_page_is_at_most_one_screen_and_a_half():
    assert len(PAGE.read_text("utf-8").splitlines()) <= 75
