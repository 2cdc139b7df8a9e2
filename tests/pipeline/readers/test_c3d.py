"""C3D: markers by name or in their order, in metres, the second axis up; files are written by the package `c3d`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import Layout, load_layout
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers.arrays import READER
from c2vl_pipeline.readers.files import c3d, read_recording
from c2vl_pipeline.readers.files.base import Recording, Source
from support.other_tools import mocap

pytest.importorskip("c3d")
LAYOUT = Layout("suit", ("hip", "Head", "LASI"), (0, 0, 0))
PLACES = np.random.default_rng(0).uniform(-1000, 1000, (6, 3, 3)).round()
UPRIGHT = (PLACES[..., [0, 2, 1]] * [1, 1, -1] / 1000).astype(np.float32)
"""The same in metres, z up turned to y up."""


def read(path: Path, layout: Layout = LAYOUT) -> Recording:
    return read_recording(Source(path, {}, layout, SkeletonsConfig()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.c3d"


@pytest.mark.parametrize(
    "labels", [["hip", "Head", "LASI"], ["Anna:HIP", "Anna:head", "Anna:LASI"], ["Head", "x", "LASI", "hip", "y"]]
)
def test_markers_are_found_by_their_names(path: Path, labels: list[str]) -> None:
    names = [label.split(":")[-1].lower() for label in labels]
    at = [names.index(name) for name in ("hip", "head", "lasi")]
    places = np.zeros((6, len(labels), 3))
    places[:, at] = PLACES
    mocap(path, labels, places, first=120)
    made = read(path)
    np.testing.assert_allclose(made.joints[:, 0], UPRIGHT, atol=1e-6)
    assert (made.notes, made.sparse) == ((), False)


def test_names_before_a_colon_are_people(path: Path) -> None:
    labels = [f"{person}:{name}" for person in ("Anna", "Ben", "Prop") for name in LAYOUT.names][:-1]
    places = np.concatenate([PLACES, PLACES + 500, PLACES[:, :2]], axis=1)
    mocap(path, labels, places)
    made = read(path)
    assert made.joints.shape == (6, 2, 3, 3)
    np.testing.assert_allclose(
        made.joints[:, 1] - made.joints[:, 0], np.broadcast_to([0.5, 0.5, -0.5], (6, 3, 3)), atol=1e-5
    )


def test_as_many_other_markers_as_joints_are_taken_in_their_order(path: Path) -> None:
    mocap(path, ["*0", "*1", "*2"], PLACES)
    made = read(path)
    np.testing.assert_allclose(made.joints[:, 0], UPRIGHT, atol=1e-6)
    assert made.notes == ("no marker has the name of a joint, so they are taken in their order ('*0' is hip)",)


def test_a_marker_that_was_not_seen_is_missing(path: Path) -> None:
    places = PLACES.copy()
    places[2, 1] = np.nan
    places[4] = np.nan
    mocap(path, [*LAYOUT.names], places)
    joints = read(path).joints[:, 0]
    assert not joints[2, 1].any()
    assert joints[2, [0, 2]].all()
    made = READER.read_joints(path, {}, LAYOUT, 2, SkeletonsConfig())
    assert made.frame_index.tolist() == [0, 1, 2, 3, 5]
    np.testing.assert_allclose(made.joints[1, 0], UPRIGHT[1] - UPRIGHT[0, 0], atol=1e-6)


@pytest.mark.parametrize(("units", "per_metre"), [("m", 1), ("cm", 100), ("mm  ", 1000)])
@pytest.mark.parametrize("scale", [-1.0, 0.5])
def test_lengths_become_metres(path: Path, units: str, per_metre: int, scale: float) -> None:
    mocap(path, [*LAYOUT.names], PLACES, units, scale=scale)
    np.testing.assert_allclose(read(path).joints[:, 0] * per_metre, UPRIGHT * 1000, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("screen", "turned"),
    [
        (("+X", "+Y"), [0, 1, 2]),
        (("+X", "+Z"), [0, 2, -1]),
        (("+Y", "+Z"), [1, 2, 0]),
        (("-Y", "+Z"), [-1, 2, -0.0]),
        (("+X", "-Z"), [0, -2, 1]),
        (None, [0, 2, -1]),
    ],
)
def test_the_axis_that_points_up_is_the_second_one(
    path: Path, screen: tuple[str, str] | None, turned: list[float]
) -> None:
    mocap(path, [*LAYOUT.names], PLACES, screen=screen)
    made = read(path)
    expected = np.stack([np.copysign(1, axis) * PLACES[..., int(abs(axis))] for axis in turned], axis=-1) / 1000
    np.testing.assert_allclose(made.joints[:, 0], expected, atol=1e-6)
    assert made.notes == (() if screen else ("no POINT:Y_SCREEN; z is taken for the axis that points up",))


def test_other_markers_units_axes_and_layouts_are_one_line(path: Path) -> None:
    mocap(path, ["hip", "nose", "LASI"], PLACES)
    with pytest.raises(
        DataError, match=r"no marker is called 'Head', as a joint .*; the 3 markers are hip, nose, LASI: name"
    ):
        read(path)
    with pytest.raises(DataError, match=r"markers in 3D; layout 'coco_17' has 2 coordinates"):
        read(path, load_layout("coco_17"))
    mocap(path, [*LAYOUT.names], PLACES, "inch")
    with pytest.raises(DataError, match=r"POINT:UNITS is 'inch'; expected mm, cm, m: export it"):
        read(path)
    mocap(path, [*LAYOUT.names], PLACES, screen=("+X", "up"))
    with pytest.raises(DataError, match=r"POINT:Y_SCREEN is 'up'; expected \+X"):
        read(path)


def test_damaged_files_and_an_absent_package_are_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mocap(path, [*LAYOUT.names], np.repeat(PLACES, 40, axis=0))
    whole = path.read_bytes()
    for content, says in (
        (whole[: len(whole) // 2], "cut off, "),
        (b"", "not a C3D file, or damaged"),
        (b"nothing of the kind" * 99, "not a C3D file, or damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=says) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(c3d, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs the package c3d, which is not installed; `pip install -e '\.\[c3d\]'`"):
        read(path)
