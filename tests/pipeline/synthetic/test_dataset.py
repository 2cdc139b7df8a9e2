"""Synthetic datasets: files, settings, repeatability."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.events import Progress
from c2vl_pipeline.synthetic import dataset, render
from c2vl_pipeline.synthetic.actions import ACTIONS
from c2vl_pipeline.synthetic.dataset import action_names, generate
from c2vl_pipeline.synthetic.render import camera
from support.synthetic import TINY, film, read

NAME = re.compile(r"S001C\d{3}P\d{3}R\d{3}A\d{3}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("synth") / "set", **TINY).root


def skeletons(root: Path) -> list[Path]:
    return sorted((root / "nturgb+d_skeletons").iterdir())


def test_every_clip_has_a_video_and_a_skeleton_of_the_same_length(made: Path) -> None:
    paths = skeletons(made)
    assert len(paths) == 16
    assert len(list((made / "nturgb+d_rgb").iterdir())) == 16
    for path in paths:
        assert NAME.fullmatch(path.stem)
        frames = read(path)
        video = film(made / "nturgb+d_rgb" / f"{path.stem}_rgb.avi")
        assert 8 <= len(frames) <= 12
        assert video.shape == (len(frames), 48, 64, 3)
        for bodies in frames:
            for identity, body in bodies.items():
                assert 72057594037900000 < int(identity) < 72057594038000000
                assert np.isfinite(body).all()
                assert set(body[:, 11]) <= {1, 2}
                assert (body[:, 2] > 1.5).all()
                assert (body[:, 2] < 5).all()


def test_two_person_actions_and_only_these_have_two_bodies(made: Path) -> None:
    for path in skeletons(made):
        action = ACTIONS[int(path.stem[-3:]) - 1]
        most = np.median([len(bodies) for bodies in read(path)])
        assert most == (2 if action.partner else 1)


def test_settings_are_recorded(made: Path) -> None:
    table = tomllib.loads((made / "synthetic.toml").read_text())
    assert table["classes"] == action_names(8)
    assert table | {"classes": 8} == {
        "format": 3, "classes": 8, "subjects": 1, "views": 2, "repeats": 1, "seed": 3, "size": [64, 48],
        "frames": [8, 12], "fps": 30,
    }  # fmt: skip


def test_same_arguments_give_the_same_files_in_any_number_of_processes(made: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", **TINY, workers=2)
    for path in skeletons(made):
        assert (tmp_path / "again/nturgb+d_skeletons" / path.name).read_bytes() == path.read_bytes()
        video = f"nturgb+d_rgb/{path.stem}_rgb.avi"
        assert np.array_equal(film(tmp_path / "again" / video), film(made / video))


def test_another_seed_gives_another_movement(made: Path, tmp_path: Path) -> None:
    other = generate(tmp_path / "other", **(TINY | {"seed": 4, "classes": 1, "views": 1})).root
    assert skeletons(other)[0].read_bytes() != skeletons(made)[0].read_bytes()


def test_colour_coordinates_are_the_projection_of_the_joints(made: Path) -> None:
    for path in skeletons(made):
        eye = camera(3, int(path.stem[5:8]), (64, 48))
        for bodies in read(path):
            for body in bodies.values():
                assert np.abs(eye.project(body[:, :3]) - body[:, 5:7]).max() < 0.01


def test_cameras_of_one_performance_see_the_same_movement(made: Path) -> None:
    eyes = [camera(3, number, (64, 48)) for number in (1, 2)]
    assert np.rad2deg(np.arccos(eyes[0].rotation[2] @ eyes[1].rotation[2])) > 30
    for number in (1, 3, 5):
        both = []
        for view, eye in enumerate(eyes, 1):
            frames = read(made / f"nturgb+d_skeletons/S001C{view:03}P001R001A{number:03}.skeleton")
            seen = np.array([next(iter(bodies.values()))[:, :3] for bodies in frames])
            both.append(seen @ eye.rotation + eye.position)  # back to the world
        apart = both[0] - both[1]
        assert np.median(np.abs(apart[..., 1])) < 0.03, "up and down: across the rays of both cameras"
        assert np.median(np.linalg.norm(apart, axis=-1)) < 0.15, "each errs in depth on its own"


def test_lengths_say_nothing_about_the_class(tmp_path: Path) -> None:
    root = generate(tmp_path / "set", **(TINY | {"classes": 3, "subjects": 3, "repeats": 2, "views": 1})).root
    lengths: dict[str, list[int]] = {}
    for path in skeletons(root):
        lengths.setdefault(path.stem[-4:], []).append(len(read(path)))
    assert lengths["A001"] == lengths["A002"] == lengths["A003"]
    assert len(set(lengths["A001"])) > 1


@pytest.mark.slow
def test_neither_file_sizes_nor_colours_tell_one_class_from_another(tmp_path: Path) -> None:
    """A classifier by length, sizes of both files, and mean and spread of each colour, across subjects, is at chance.

    Of classes with one person, without an object in the hand: a second person and an object are seen.
    """
    bare = [n for n, action in enumerate(ACTIONS[:8], 1) if not action.partner and not action.held]
    root = generate(tmp_path / "set", **(TINY | {"subjects": 40, "views": 1})).root
    facts: dict[int, list[list[float]]] = {number: [] for number in bare}
    for path in skeletons(root):
        if (number := int(path.stem[-3:])) in facts:
            video = root / f"nturgb+d_rgb/{path.stem}_rgb.avi"
            frames = film(video)
            sizes = [len(frames), path.stat().st_size, video.stat().st_size]
            facts[number].append([*map(float, sizes), *frames.mean((0, 1, 2)), *frames.std((0, 1, 2))])
    values = np.array([facts[number] for number in bare])  # (classes, subjects, facts)
    values = (values - values.mean((0, 1))) / (values.std((0, 1)) + 1e-9)
    train, test = values[:, ::2], values[:, 1::2]
    far = np.linalg.norm(test[:, :, None, None] - train[None, None], axis=-1)  # (classes, subjects, classes, subjects)
    answers = far.reshape(*far.shape[:2], -1).argmin(-1) // train.shape[1]
    right = (answers == np.arange(len(bare))[:, None]).mean()
    chance = 1 / len(bare)
    assert right < chance + 3 * np.sqrt(chance * (1 - chance) / answers.size)


def test_a_finished_clip_is_kept_and_a_missing_one_comes_back(made: Path, tmp_path: Path) -> None:
    root = shutil.copytree(made, tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.*") if path.is_file()}
    lost = [skeletons(root)[2], root / "nturgb+d_rgb/S001C002P001R001A005_rgb.avi"]
    content = lost[0].read_bytes()
    for path in lost:
        path.unlink()
    events: list[object] = []
    done = generate(root, **TINY, emit=events.append)
    assert (done.written, done.kept, done.clips) == (2, 14, 16)
    assert lost[0].read_bytes() == content
    redone = {path.stem[:20] for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert redone == {lost[0].stem, lost[1].stem[:20]}
    assert Progress("synth", 16, 16, "clips") in events


def test_a_folder_of_other_settings_is_refused(made: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        generate(made, **(TINY | {"seed": 9}))
    assert str(caught.value) == (
        f"{made} holds a synthetic dataset with seed = 3, expected 9; "
        "choose another folder or repeat the arguments in its synthetic.toml"
    )


def test_a_folder_of_real_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nturgb+d_rgb").mkdir()
    with pytest.raises(ConfigError, match=r"holds nturgb\+d_rgb but no synthetic.toml; expected an empty folder"):
        generate(tmp_path, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["nturgb+d_rgb"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 99}, f"classes = 99; 1 to {len(ACTIONS)} synthetic actions exist; choose a number in this range"),
        ({"subjects": 0}, "subjects = 0; file names have room for 1 to 999; choose a number in this range"),
        ({"views": 0}, "views = 0; file names have room for 1 to 999; choose a number in this range"),
        ({"repeats": -1}, "repeats = -1; file names have room for 1 to 999; choose a number in this range"),
        ({"seed": -1}, "seed = -1; expected 0 or more; choose another seed"),
        ({"size": (63, 48)}, "size = (63, 48); expected even numbers of at least 16; round them"),
        ({"frames": (9, 8)}, "frames = (9, 8); expected shortest <= longest, at least 8; change them"),
        ({"workers": 0}, "workers = 0; at least one process is needed; use workers = 1"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        generate(tmp_path / "set", **(TINY | change))
    assert str(caught.value) == message
    assert not (tmp_path / "set").exists()


def test_a_video_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    images = iter([np.zeros((48, 64, 3), np.uint8)])
    with pytest.raises(OSError, match="cannot be written as Motion JPEG"):
        render.write_video(tmp_path / "absent" / "x_rgb.avi", images, (64, 48))


def test_faults_are_rare_and_short() -> None:
    faults = [dataset._faults(np.random.default_rng(seed), 60) for seed in range(6000)]
    assert 60 < sum(bool(empty or ghost) for empty, ghost in faults) < 150
    assert {len(empty) for empty, _ in faults} == {0, 1, 2, 3}
    assert max(len(ghost) for _, ghost in faults) == 11
    assert all(max(empty, default=0) < 60 and ghost.stop <= 60 for empty, ghost in faults)


def test_faults_reach_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dataset, "_faults", lambda rng, frames: ({1, 2}, range(4, 7)))
    root = generate(tmp_path / "set", **(TINY | {"classes": 1, "views": 1})).root
    counts = [len(bodies) for bodies in read(skeletons(root)[0])]
    assert counts[:8] == [1, 0, 0, 1, 2, 2, 2, 1]
