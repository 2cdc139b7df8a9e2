"""Ten clips in the files of another tool, from the command line to the packed arrays: those of the same joints as `.npy`."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.layouts import load_layout
from support import other_tools
from support.cli import Cli
from support.other_tools import HEIGHT, IN_METRES, IN_PIXELS, WIDTH, annotation, in_heights, upright, walkers, world

pytestmark = pytest.mark.slow
NAMES = [f"clip{n}" for n in range(10)]


def table(folder: Path, skeletons: list[str]) -> None:
    with (folder / "samples.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample_id", "skeleton", "label", "split_xsub"])
        writer.writerows(
            [n, s, int(n[-1]) % 3, "test" if int(n[-1]) % 2 else "train"] for n, s in zip(NAMES, skeletons, strict=True)
        )


def packed(cli: Cli, folder: Path, layout: str) -> tuple[np.ndarray, ...]:
    work = folder.with_name(f"{folder.name}-work")
    said = cli(
        "c2vl-pipeline", "prompts", "--dataset", "generic", "--data", folder, "--work", work, "--layout", layout,
        "--recipe", "debug", "--workers", "0", "--set", f"pipeline.skeletons.image_size=[{WIDTH},{HEIGHT}]",
        "--set", "pipeline.frames=2",
    )  # fmt: skip
    assert said.code == 0, said.err
    return tuple(np.load(work / "packed" / f"{name}.npy") for name in ("joints", "offsets", "labels", "language"))


def as_npy(cli: Cli, folder: Path, layout: str, clips: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    folder.mkdir()
    for name, clip in zip(NAMES, clips, strict=True):
        np.save(folder / f"{name}.npy", clip)
    table(folder, [f"{name}.npy" for name in NAMES])
    return packed(cli, folder, layout)


def same(made: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    assert expected[0].any()
    for one, other in zip(made, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("tool", IN_PIXELS)
def test_clips_in_pixels(tmp_path: Path, cli: Cli, tool: str) -> None:
    layout, write = IN_PIXELS[tool]
    clips = [walkers(load_layout(layout), n) for n in range(10)]
    (tmp_path / "tool").mkdir()
    table(tmp_path / "tool", [write(tmp_path / "tool", *clip) for clip in zip(NAMES, clips, strict=True)])
    same(packed(cli, tmp_path / "tool", layout), as_npy(cli, tmp_path / "npy", layout, [in_heights(c) for c in clips]))


@pytest.mark.parametrize("form", IN_METRES)
def test_clips_in_metres(tmp_path: Path, cli: Cli, form: str) -> None:
    clips = [world(n) for n in range(10)]
    (tmp_path / "tool").mkdir()
    table(tmp_path / "tool", [IN_METRES[form](tmp_path / "tool", *clip) for clip in zip(NAMES, clips, strict=True)])
    made = packed(cli, tmp_path / "tool", "mediapipe_33")
    same(made, as_npy(cli, tmp_path / "npy", "mediapipe_33", [upright(c) for c in clips]))


def test_annotations_are_a_table_or_stand_for_it_and_come_back(tmp_path: Path, cli: Cli) -> None:
    clips = [walkers(load_layout("coco_17"), n) for n in range(10)]
    expected = as_npy(cli, tmp_path / "npy", "coco_17", [in_heights(c) for c in clips])
    for name in ("set", "samples"):
        folder = tmp_path / name
        folder.mkdir()
        other_tools.pyskl(folder / f"{name}.pkl", [annotation(*clip) for clip in zip(NAMES, clips, strict=True)], 2)
        if name == "set":
            table(folder, ["set.pkl"] * 10)
        same(packed(cli, folder, "coco_17"), expected)
    (tmp_path / "back").mkdir()
    said = cli("c2vl-pipeline", "export", "--work", tmp_path / "set-work", "--out", tmp_path / "back" / "samples.pkl")
    assert (said.code, "10 samples" in said.out) == (0, True), said.err
    made = packed(cli, tmp_path / "back", "coco_17")
    np.testing.assert_allclose(made[0], expected[0], atol=1e-6)
    for one, other in zip(made[1:3], expected[1:3], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_hostile_pickle_is_refused_in_one_line(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "samples.pkl").write_bytes(b"cos\nsystem\n(X\x0d\x00\x00\x00touch /pwned!tR.")
    said = cli("c2vl-pipeline", "index", "--dataset", "generic", "--data", tmp_path, "--work", tmp_path / "w")
    assert said.code == 1
    assert "the name 'os.system' at byte 11, which plain values do not need" in " ".join(said.err.split())
    assert len(said.err.strip().splitlines()) == 1
