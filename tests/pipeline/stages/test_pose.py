"""Skeletons from videos: rows of whatever the videos show, one decoding for all samples, and what depends on them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import C2VLError, ConfigError, EngineError, StageError
from c2vl_manifests.layouts import LAYOUTS, load_layout
from c2vl_manifests.packed import read_packed_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.engines import Box, Frame, Person
from c2vl_pipeline.engines.heuristic import MotionDetector
from c2vl_pipeline.execution import runner
from c2vl_pipeline.execution.keys import stage_inputs
from c2vl_pipeline.maintenance.status import survey
from c2vl_pipeline.readers.video import Video
from c2vl_pipeline.stages import STAGES, crop, index, pack, pose, skeletons, stages_of
from c2vl_pipeline.stages.base import ShardContext
from c2vl_pipeline.stages.pose import Seen, assemble, other_side, read_video
from c2vl_pipeline.workspace import load, stored_joints, stored_pixels
from support.cli import Cli
from support.factory import rows
from support.pose import figure, film, settings, tiny_blazepose
from support.video import cut

PLACES = [[(20 + n, 30)] for n in range(30)]
"""A white square of 40 pixels in each frame: its corner."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_blazepose(tmp_path / "tiny.tflite")


def recipe_of(model: Path, *overrides: str) -> Recipe:
    return load_recipe("debug", [*settings(model), *overrides])


def own(folder: Path, *lines: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "samples.csv").write_text("\n".join(["sample_id,video,start_frame,end_frame", *lines]) + "\n")
    return folder


def poses_of(folder: Path, work: Path, recipe: Recipe) -> dict[str, dict[str, Any]]:
    index.build(load_dataset("generic"), folder, work, recipe.pipeline, recipe="debug", allow_missing=True)
    assert runner.run_stage(pose.STAGE, work, recipe, max_failures=1.0).complete
    return {row["sample_id"]: row for row in rows(work, "skeletons")}


# ------------------------------------------------------------------------------------------------- rows


def test_joints_are_in_image_heights_and_their_pixels_lie_on_the_person(tmp_path: Path, model: Path) -> None:
    folder = own(tmp_path / "own", "a,x.avi,,")
    film(folder / "x.avi", PLACES)
    row = poses_of(folder, tmp_path / "w", recipe_of(model))["a"]
    assert (row["status"], row["frames"], row["frames_in_file"], row["bodies"]) == ("ok", 30, 30, 1)
    layout = load_layout("mediapipe_33_2d")
    pixels = stored_pixels(row, layout)
    for n, ((x, y),) in enumerate(PLACES):
        expected = np.array([x + 20, y + 20]) + (figure()[:33, :2] - 128) * 40 / 256
        assert pixels(n, 120)[0] == pytest.approx(expected, abs=2.5)  # JPEG and the detector's blur
    flat = np.stack([pixels(n, 120) for n in range(30)]) / 120 * (1, -1)
    assert stored_joints(row, layout) == pytest.approx(flat - flat[0, 0, layout.anchor], abs=1e-5)
    assert pixels(30, 120) is None


def test_frames_without_anybody_are_left_out_and_counted(tmp_path: Path, model: Path) -> None:
    folder = own(tmp_path / "own", "a,x.avi,,", "b,x.avi,8,20")
    film(folder / "x.avi", [[], [], *PLACES[:10], [], [], [], *PLACES[10:20]])
    found = poses_of(folder, tmp_path / "w", recipe_of(model))
    assert found["a"]["frame_index"] == [*range(2, 12), *range(15, 25)]
    assert found["a"]["frames_in_file"] == 25
    assert found["b"]["frame_index"] == [*range(8, 12), *range(15, 20)]


def test_a_video_without_people_is_one_row_with_its_reason(tmp_path: Path, model: Path) -> None:
    folder = own(tmp_path / "own", "a,x.avi,,", "b,y.avi,,")
    film(folder / "x.avi", [[]] * 12)
    film(folder / "y.avi", PLACES)
    row = poses_of(folder, tmp_path / "w", recipe_of(model))["a"]
    assert (row["status"], row["error"]) == ("no_person", "nobody was found in any of 12 frames")
    assert (row["frames"], row["joints"], row["pixels"]) == (0, b"", b"")


def test_two_people_keep_their_places_while_a_third_is_left_out(tmp_path: Path, model: Path) -> None:
    folder = own(tmp_path / "own", "a,x.avi,,")
    film(folder / "x.avi", [[(5, 10), (60, 60 + n // 4), *([(115, 20)] if n < 5 else [])] for n in range(20)])
    row = poses_of(folder, tmp_path / "w", recipe_of(model))["a"]
    assert row["bodies"] == 2
    pixels = stored_pixels(row, load_layout("mediapipe_33_2d"))
    middles = np.array([pixels(n, 120)[..., 0].mean(axis=1) for n in range(20)])
    assert np.ptp(middles, axis=0) == pytest.approx([0, 0], abs=2)
    assert sorted(middles[0]) == pytest.approx(np.sort([25, 80]) + (figure()[:33, 0] - 128).mean() * 40 / 256, abs=2)


def test_a_video_is_decoded_once_for_all_its_samples(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own(tmp_path / "own", "a,x.avi,,10", "b,x.avi,5,25", "c,x.avi,20,")
    film(folder / "x.avi", PLACES)
    opened: Counter[str] = Counter()
    opening = Video.__init__

    def counting(self: Video, path: Path, *args: Any) -> None:
        opened[path.name] += 1
        opening(self, path, *args)

    monkeypatch.setattr(Video, "__init__", counting)
    together = poses_of(folder, tmp_path / "w", recipe_of(model))
    assert opened == {"x.avi": 1}
    for sample in "abc":
        line = next(one for one in (folder / "samples.csv").read_text().splitlines() if one.startswith(sample))
        alone = own(tmp_path / sample, line)
        film(alone / "x.avi", PLACES)
        assert poses_of(alone, tmp_path / f"w{sample}", recipe_of(model))[sample] == together[sample]


def test_progress_counts_the_samples_of_a_long_video_as_they_pass(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own(tmp_path / "own", "a,x.avi,,10", "b,x.avi,5,25", "c,x.avi,20,", "d,y.avi,,5", "e,y.avi,5,10")
    film(folder / "x.avi", PLACES)
    film(folder / "y.avi", PLACES[:10])
    noted: list[int] = []
    monkeypatch.setattr(ShardContext, "note_done", lambda self, samples: noted.append(samples))
    poses_of(folder, tmp_path / "w", recipe_of(model))
    assert noted == [1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("frames", [0, 30])
def test_a_video_that_cannot_be_read_is_one_row(tmp_path: Path, model: Path, frames: int) -> None:
    folder = own(tmp_path / "own", "a,x.avi,,", "b,y.avi,,", "c,z.avi,,", "d,,,")
    film(folder / "x.avi", PLACES[:frames])
    cut(folder / "x.avi")
    (folder / "z.avi").write_bytes(b"")
    found = poses_of(folder, tmp_path / "w", recipe_of(model))
    assert found["a"]["status"] == ("truncated_video" if frames else "decode_error")
    assert found["b"]["status"] == found["d"]["status"] == "missing_video"
    assert found["c"]["status"] == "decode_error"
    assert all(row["error"] and "\n" not in row["error"] for row in found.values())


def test_a_range_past_the_end_is_named(tmp_path: Path, model: Path) -> None:
    folder = own(tmp_path / "own", "a,x.avi,10,60", "b,x.avi,50,60", "c,x.avi,10,31")
    film(folder / "x.avi", PLACES)
    found = poses_of(folder, tmp_path / "w", recipe_of(model))
    assert (found["a"]["status"], found["a"]["error_class"]) == ("truncated_video", "range")
    assert "end_frame 60 is past the end of the video, which has 30 frames" in found["a"]["error"]
    assert "start_frame 50 is past the end" in found["b"]["error"]
    assert found["c"]["status"] == "ok"  # one frame more or less is common


def test_a_video_whose_size_changes_is_read_by_each_frames_own_size(tmp_path: Path, model: Path) -> None:
    folder = own(tmp_path / "own", "a,x.avi,,")
    pictures = []
    for n in range(12):
        image = np.zeros((120, 160, 3), np.uint8)
        image[30:70, 20:60] = 255
        pictures.append(cv2.resize(image, (320, 240)) if n > 5 else image)
    changing(folder / "x.avi", pictures)
    row = poses_of(folder, tmp_path / "w", recipe_of(model))["a"]
    assert row["status"] == "ok"
    joints = stored_joints(row, load_layout("mediapipe_33_2d"))
    assert joints == pytest.approx(np.broadcast_to(joints[:1], joints.shape), abs=0.03)


def changing(path: Path, pictures: Sequence[np.ndarray[Any, Any]]) -> None:
    """Write an AVI of JPEGs whose header states the size of the first; each is of its own size."""
    film(path, [[]] * len(pictures))
    data = path.read_bytes()
    movi = data.index(b"movi")
    chunks = b""
    for picture in pictures:
        jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
        chunks += b"00dc" + len(jpeg).to_bytes(4, "little") + jpeg + b"\0" * (len(jpeg) % 2)
    body = data[12 : movi - 8] + b"LIST" + (4 + len(chunks)).to_bytes(4, "little") + b"movi" + chunks
    path.write_bytes(b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"AVI " + body)


def test_a_frame_on_which_the_engine_fails_costs_its_sample(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own(tmp_path / "own", "a,x.avi,0,10", "b,x.avi,10,")
    film(folder / "x.avi", PLACES)
    detect, calls = MotionDetector.detect, iter(range(1000))

    def failing(self: Any, frames: Sequence[Frame], query: str) -> Any:
        if next(calls) in {4, 5}:  # the second time alone
            raise RuntimeError("upset")
        return detect(self, frames, query)

    monkeypatch.setattr(MotionDetector, "detect", failing)
    found = poses_of(folder, tmp_path / "w", recipe_of(model))
    assert (found["a"]["status"], found["a"]["error_class"], found["a"]["error"]) == ("failed", "RuntimeError", "upset")
    assert found["b"]["status"] == "ok"


def test_between_two_runs_of_the_detector_people_are_followed(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own(tmp_path / "own", "a,x.avi,,")
    film(folder / "x.avi", [[], [], *PLACES[:20]])
    runs: list[int] = []
    detect = MotionDetector.detect

    def counting(self: Any, frames: Sequence[Frame], query: str) -> Any:
        runs.append(len(frames))
        return detect(self, frames, query)

    monkeypatch.setattr(MotionDetector, "detect", counting)
    every = poses_of(folder, tmp_path / "w", recipe_of(model, "pose.threshold=0.1"))["a"]
    assert len(runs) == 22
    runs.clear()
    some = poses_of(folder, tmp_path / "v", recipe_of(model, "pose.threshold=0.1", "pipeline.pose.detect_every=5"))["a"]
    assert len(runs) == 2 + 4  # in every frame until somebody is there, then in every fifth
    assert some["frame_index"] == every["frame_index"]


def test_rows_of_a_sample_do_not_depend_on_the_sample_before_it(tmp_path: Path, model: Path) -> None:
    folder, recipe = own(tmp_path / "own", "b,x.avi,7,"), recipe_of(model, "pipeline.pose.detect_every=5")
    film(folder / "x.avi", PLACES)
    alone = poses_of(folder, tmp_path / "w", recipe)["b"]
    own(folder, "a,x.avi,0,7", "b,x.avi,7,")
    assert poses_of(folder, tmp_path / "v", recipe)["b"] == alone


def test_errors_of_the_detector_name_its_own_settings(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(self: Any, frames: Sequence[Frame], query: str) -> Any:
        raise EngineError("no such label (pipeline.crop.query)")

    monkeypatch.setattr(MotionDetector, "detect", refusing)
    folder = own(tmp_path / "own", "a,x.avi,,")
    film(folder / "x.avi", PLACES[:2])
    with pytest.raises(EngineError, match=r"no such label \(pipeline\.pose\.query\)"):
        poses_of(folder, tmp_path / "w", recipe_of(model))


# ------------------------------------------------------------------------------------------------ joints


def person(layout_joints: int, seed: int = 0, score: float = 0.9) -> Person:
    rng = np.random.default_rng(seed)
    pixels = np.column_stack([rng.uniform(10, 100, (layout_joints, 2)), np.full(layout_joints, score)])
    return Person(pixels.astype(np.float32), 0.9, rng.uniform(-1, 1, (layout_joints, 3)).astype(np.float32))


def seen(people: Sequence[Person]) -> Seen:
    return Seen({n: [p] for n, p in enumerate(people)}, dict.fromkeys(range(len(people)), (200, 300)))


@pytest.mark.parametrize("name", ["coco_17", "mediapipe_33", "kinect_v2"])
def test_every_joint_of_a_side_has_its_twin(name: str) -> None:
    layout = LAYOUTS[name]
    order = other_side(layout)
    assert [order[at] for at in order] == [*range(layout.joints)]
    for joint, other in zip(layout.names, (layout.names[at] for at in order), strict=True):
        assert other == joint.replace("left", "@").replace("right", "left").replace("@", "right")


@pytest.mark.parametrize("mirrored", [False, True])
def test_axes_and_sides_follow_the_mirror(mirrored: bool) -> None:
    layout, one = LAYOUTS["mediapipe_33"], person(33)
    made, pixels = assemble(seen([one]), (0, None), layout, 2, mirrored, 0.3)
    assert one.world is not None
    order = other_side(layout) if mirrored else [*range(33)]
    expected = one.world[order] * ((1, -1, 1) if mirrored else (1, -1, -1))
    assert made.joints[0, 0] == pytest.approx(expected - expected[layout.anchor], abs=1e-6)
    assert pixels[0, 0] == pytest.approx(one.pixels[order])
    if mirrored:  # a mirror turns a right hand to a left one: so do the axes, and the names turn it back
        assert np.linalg.det(np.diag([1, -1, 1])) == -np.linalg.det(np.diag([1, -1, -1]))


def test_joints_of_a_low_score_are_missing() -> None:
    layout, one = LAYOUTS["coco_17"], person(17)
    one.pixels[5:9, 2] = 0.2
    made, pixels = assemble(seen([one, person(17, 1)]), (0, None), layout, 2, False, 0.3)
    assert not made.joints[0, 0, 5:9].any()
    assert not pixels[0, 0, 5:9].any()
    assert made.joints[1, 0, 5:9].any(axis=1).all()


def test_a_span_is_cut_out_of_what_was_seen() -> None:
    people = [person(17, n) for n in range(10)]
    made, pixels = assemble(seen(people), (3, 7), LAYOUTS["coco_17"], 1, False, 0.3)
    assert made.frame_index.tolist() == [3, 4, 5, 6]
    assert [one[0] for one in pixels] == [pytest.approx(people[n].pixels) for n in range(3, 7)]


# ----------------------------------------------------------------------------- the stage among the others


@pytest.fixture
def made(tmp_path: Path, model: Path) -> tuple[Path, Recipe]:
    """A work folder, and the recipe it was made with, up to the packed arrays."""
    folder, recipe = own(tmp_path / "own", "a,x.avi,,", "b,y.avi,,"), recipe_of(model)
    film(folder / "x.avi", PLACES)
    film(folder / "y.avi", PLACES[::-1])
    work = tmp_path / "w"
    poses_of(folder, work, recipe)
    for stage in stages_of(load(work)).values():
        runner.run_stage(stage, work, recipe)
    pack.run(work, recipe)
    return work, recipe


def test_crops_are_taken_around_the_joints_that_were_found(made: tuple[Path, Recipe]) -> None:
    work, _ = made
    found = {row["sample_id"]: row for row in rows(work, "skeletons")}
    layout = load(work).layout
    for row in rows(work, "crops"):
        assert row["status"] == "ok"
        joints = stored_pixels(found[row["sample_id"]], layout)(row["frame_index"], 120)
        x0, y0, x1, y1 = row["box"]
        assert joints is not None
        assert ((joints >= (x0, y0)) & (joints <= (x1, y1))).all()
    manifest = json.loads((work / "crops" / "stage.json").read_text())
    assert manifest["provenance"]["joints_from_videos"] is True


def test_packed_data_name_the_estimator(made: tuple[Path, Recipe]) -> None:
    packed = read_packed_manifest(made[0] / "packed")
    assert packed.engines["skeletons"]["backend"] == "blazepose"
    assert packed.engines["skeletons"]["detector"]["backend"] == "motion"
    assert packed.layout["name"] == "mediapipe_33_2d"


def test_crops_by_joints_follow_the_joints_and_others_do_not(made: tuple[Path, Recipe], model: Path) -> None:
    work, recipe = made
    assert {entry.stage: entry.state for entry in survey(work, recipe)}["crops"] == "complete"
    other = recipe_of(model, "pipeline.pose.joint_score=0.99")
    runner.run_stage(pose.STAGE, work, other, max_failures=1.0)
    states = {entry.stage: entry for entry in survey(work, other)}
    assert states["crops"].why == {"the skeletons it was made from changed": 1}
    assert crop.STAGE.upstream(recipe_of(model, "pipeline.crop.engine=motion")) == ()
    assert crop.STAGE.upstream(load_recipe("debug")) == ()


@pytest.mark.parametrize(
    "setting",
    ["pipeline.pose.query=man", "pipeline.pose.detect_every=2", "pipeline.pose.joint_score=0.5", "pipeline.pose.mirrored=true",
     "pose.threshold=0.7", "pose.detector.options.threshold=99"],
)  # fmt: skip
def test_every_setting_is_part_of_the_key(made: tuple[Path, Recipe], model: Path, setting: str) -> None:
    work, recipe = made
    assert keys(work, recipe) != keys(work, recipe_of(model, setting))
    assert keys(work, recipe) == keys(work, recipe_of(model, "pipeline.pose.timeout=9", "pose.detector.batch_size=3"))


def test_weights_in_another_folder_are_the_same(made: tuple[Path, Recipe], model: Path, tmp_path: Path) -> None:
    work, recipe = made
    moved = tmp_path / "elsewhere" / model.name
    moved.parent.mkdir()
    moved.write_bytes(model.read_bytes())
    assert keys(work, recipe) == keys(work, recipe_of(moved))
    moved.write_bytes(model.read_bytes() + b"\0")
    assert keys(work, recipe) != keys(work, recipe_of(moved))


def test_what_the_dataset_settles_is_part_of_the_key(made: tuple[Path, Recipe]) -> None:
    work, recipe = made
    index = load(work)
    settled = [
        replace(index, dataset=index.dataset.model_copy(update={"mirrored": True})),
        replace(index, bodies=index.bodies + 1),
    ]
    for other in settled:
        assert pose.STAGE.config(recipe, other) != pose.STAGE.config(recipe, index)


def keys(work: Path, recipe: Recipe) -> dict[str, Any]:
    from c2vl_pipeline.execution.keys import engine_facts

    return stage_inputs(pose.STAGE, load(work), recipe, engine_facts(pose.STAGE, load(work), recipe))


def test_poses_are_complete_where_the_weights_are_not(made: tuple[Path, Recipe], model: Path) -> None:
    work, recipe = made
    model.unlink()
    assert {entry.state for entry in survey(work, recipe)} == {"complete"}
    for other in ("pose.threshold=0.9", "pose.detector.options.threshold=9"):
        assert survey(work, recipe_of(model, other))[0].state == "stale"


def test_a_recipe_without_pose_is_what_it_was() -> None:
    for name in ("paper", "small", "heuristic", "debug"):
        plain = load_recipe(name)
        assert plain.pipeline.pose is None
        assert '"pose"' not in plain.model_dump_json()
        assert '"detector":{' not in plain.model_dump_json()
    assert [stage.command for stage in STAGES.values()] == ["skeletons", "crop", "caption", "embed"]


def test_the_index_names_the_joints_of_the_estimator_and_no_skeleton_files(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    film(folder / "x.avi", PLACES)
    np.save(folder / "x.npy", np.ones((3, 25, 3)))
    (folder / "samples.csv").write_text("sample_id,video,skeleton\na,x.avi,x.npy\nb,x.avi,gone.npy\n")
    made, findings = index.build(
        load_dataset("generic"), folder, tmp_path / "w", recipe_of(model).pipeline, recipe="debug"
    )
    assert made.layout.name == "mediapipe_33_2d"
    assert made.joints_from_videos
    assert findings.errors() == []
    assert made.table.column("skeleton").null_count == 2
    with pytest.raises(ConfigError, match="the joints come from the videos, and 'blazepose' gives mediapipe_33_2d"):
        index.build(
            load_dataset("generic"),
            folder,
            tmp_path / "v",
            recipe_of(model).pipeline,
            recipe="debug",
            layout="kinect_v2",
        )


def test_index_names_an_order_of_arrays_only_where_there_are_arrays(tmp_path: Path, model: Path, cli: Cli) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    film(folder / "x.avi", PLACES)
    (folder / "samples.csv").write_text("sample_id,video\na,x.avi\n")
    words = ["c2vl-pipeline", "index", "--dataset", "generic", "--data", folder, "--allow-missing"]
    files = cli(*words, "--work", tmp_path / "files", "--recipe", "debug")
    videos = cli(*words, "--work", tmp_path / "videos", "--recipe", "video-only", "--set", f"pose.model={model}")
    assert "in the order of the arrays" in files.out
    assert (videos.code, videos.err) == (0, "")
    assert "in the order of the arrays" not in videos.out


def test_mismatches_of_index_recipe_and_command_are_one_line(made: tuple[Path, Recipe], model: Path) -> None:
    work, recipe = made
    with pytest.raises(StageError, match="takes joints from the videos: run `c2vl-pipeline pose"):
        runner.run_stage(skeletons.STAGE, work, recipe)
    with pytest.raises(StageError, match="takes joints from the videos, and this recipe does not"):
        runner.run_stage(crop.STAGE, work, load_recipe("debug"))
    with pytest.raises(
        StageError, match=r"made for joints of mediapipe_33_2d in 2D, and 'blazepose' gives mediapipe_33 in 3D"
    ):
        runner.run_stage(pose.STAGE, work, recipe_of(model, "pose.dims=3"))
    with pytest.raises(EngineError, match="'skeleton' finds people by their joints, which are to be found"):
        runner.run_stage(pose.STAGE, work, recipe_of(model, "pose.detector=skeleton"))
    with pytest.raises(C2VLError, match=r"pipeline\.pose\.engine\.detector\.options\.side is not an option"):
        runner.run_stage(pose.STAGE, work, recipe_of(model, "pose.detector.options.side=3"), overwrite=True)


def test_an_index_of_files_takes_no_pose(work: Path, model: Path) -> None:
    with pytest.raises(StageError, match="takes joints from the skeleton files: run `c2vl-pipeline skeletons"):
        runner.run_stage(pose.STAGE, work, recipe_of(model))


def test_a_lone_video_gives_the_skeleton_of_the_stage(tmp_path: Path, model: Path) -> None:
    folder, recipe = own(tmp_path / "own", "a,x.avi,,"), recipe_of(model)
    film(folder / "x.avi", PLACES)
    row = poses_of(folder, tmp_path / "w", recipe)["a"]
    assert recipe.pipeline.pose is not None
    alone, layout = read_video(folder / "x.avi", recipe.pipeline.pose, load_dataset("generic"), 2)
    assert alone.joints.tobytes() == row["joints"]
    assert layout.name == "mediapipe_33_2d"


def test_boxes_that_are_looked_at_are_few(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own(tmp_path / "own", "a,x.avi,0,2")
    film(folder / "x.avi", PLACES)
    monkeypatch.setattr(
        MotionDetector, "detect", lambda self, frames, query: [[Box(20, 30, 60, 70, 1)] * 50 for _ in frames]
    )
    asked: list[int] = []
    from c2vl_pipeline.engines.blazepose import BlazePose

    def estimate(self: Any, frames: Any, boxes: Any) -> Any:
        asked.extend(map(len, boxes))
        return [[] for _ in frames]

    monkeypatch.setattr(BlazePose, "estimate", estimate)
    poses_of(folder, tmp_path / "w", recipe_of(model))
    assert asked == [8, 8]
