"""Rendering of synthetic people."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from c2vl_pipeline.synthetic.dataset import generate
from c2vl_pipeline.synthetic.render import replacing
from support.synthetic import TINY, film, read


def test_the_drawn_person_is_where_the_joints_are(tmp_path: Path) -> None:
    options = TINY | {"classes": 3, "views": 1, "size": (320, 240)}
    root = generate(tmp_path / "set", **options).root
    frames = read(root / "nturgb+d_skeletons/S001C001P001R001A003.skeleton")
    video = film(root / "nturgb+d_rgb/S001C001P001R001A003_rgb.avi").astype(float)
    change = cv2.GaussianBlur(np.abs(video[-1] - video[0]).sum(-1), (0, 0), 2) > 40
    rows, columns = np.nonzero(change)
    pixels = np.concatenate([next(iter(frames[t].values()))[:, 5:7] for t in (0, -1)])
    assert len(rows) > 200
    assert columns.min() > pixels[:, 0].min() - 25
    assert columns.max() < pixels[:, 0].max() + 25
    assert rows.min() > pixels[:, 1].min() - 25


def test_a_link_under_the_temporary_name_is_not_written_through(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("kept")
    (tmp_path / "x.partial").symlink_to(theirs)
    with replacing(tmp_path / "x", "x.partial") as partial:
        partial.write_text("ours")
    assert (theirs.read_text(), (tmp_path / "x").read_text(), (tmp_path / "x").is_symlink()) == ("kept", "ours", False)
