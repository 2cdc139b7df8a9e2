"""Skeletons from videos against a Kinect's: UTD-MHAD's depth videos, which show the person on black.

For each of BlazePose's networks: share of frames in which the person is found; PA-MPJPE over the 12 joints of the limbs (mean
distance after the best rotation, shift and scale of each frame); what a frame costs, beside decoding it alone: a pair is a
clip. Then colour videos, where BlazePose's own detector is installed: every tenth frame, drawn with `--draw`. Skipped where
the data or the weights (`make weights`) are absent.

    python benchmarks/bench_pose.py --data UTD_MHAD --videos VIDEOS --draw drawn
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.layouts import KINECT_V1, Layout
from c2vl_manifests.recipe import PoseConfig
from c2vl_manifests.recipe_loading import engine_preset
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Frame
from c2vl_pipeline.readers import read_skeleton
from c2vl_pipeline.readers.video import Video
from c2vl_pipeline.stages.pose import read_video
from timing import SHARED, Parser, Spent, report_spent, timed

Points = npt.NDArray[np.floating[Any]]

LIMBS = [f"{j}_{s}" for j in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle") for s in ("left", "right")]


def aligned_error(found: Points, truth: Points) -> float:
    """Return the mean distance of points (n, 3) after the best similarity transform, without reflection."""
    a, b = found - found.mean(axis=0), truth - truth.mean(axis=0)
    u, s, vt = np.linalg.svd(a.T @ b)
    s[-1] *= (sign := np.sign(np.linalg.det(u @ vt)))
    u[:, -1] *= sign
    return float(np.linalg.norm(a @ (u @ vt) * (s.sum() / max((a**2).sum(), 1e-12)) - b, axis=1).mean())


def limbs(joints: Points, layout: Layout) -> Points:
    return joints[:, 0, [layout.names.index(name) for name in LIMBS]]


def config_of(model: Path, **more: Any) -> PoseConfig:
    """Return BlazePose with the detector that UTD-MHAD's description names; joints of any score are compared."""
    engine = engine_preset("blazepose") | {"model": str(model), "detector": engine_preset("heuristic")}
    return PoseConfig.model_validate({"engine": engine, "joint_score": 0.0, **more})


def main() -> None:
    parser = Parser(__doc__, pairs=8)
    parser.add_argument("--data", type=Path, default=SHARED / "utd_mhad")
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--mirrored", choices=("as-described", "false"), default="as-described")
    parser.add_argument("--videos", type=Path, default=SHARED / "videos")
    parser.add_argument("--draw", type=Path, help="folder for frames with boxes and joints")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    against_kinect(options)
    colour(options)


def colour(options: argparse.Namespace) -> None:
    """Report, for each colour video, in how many frames somebody is found and what a frame costs."""
    model, detector = (options.weights / f"pose_{name}.tflite" for name in ("landmark_full", "detection"))
    videos = sorted(path for path in options.videos.glob("*.*") if path.suffix in {".mkv", ".mp4"})
    needed = {
        f"{model} (make weights)": model.is_file(),
        f"{detector} (make weights)": detector.is_file(),
        f"{options.videos}/*.mkv or *.mp4 (--videos)": videos,
        "the package ai-edge-litert (pip install '.[blazepose]')": importlib.util.find_spec("ai_edge_litert"),
    }
    if skipped("colour videos", needed):
        return
    table = engine_preset("blazepose") | {"model": str(model)}
    spec = EngineSpec.model_validate(table | {"detector": table["detector"] | {"model": str(detector)}})
    estimator, finder = engines.load(spec), engines.load_detector(spec)

    def look(frames: list[Frame]) -> tuple[Any, Any]:
        boxes = finder.detect(frames, "person")
        return boxes[0], estimator.estimate(frames, boxes)[0]

    for path in videos:
        spent: list[Spent] = []
        decoding: list[Spent] = []
        found, total = 0, timed(partial(decode, path), decoding)
        with Video(path) as video:
            for number, image in video.frames(range(0, total, 10)):
                boxes, people = timed(partial(look, [Frame(image, path.stem, 0)]), spent)
                found += bool(people)
                if options.draw:
                    draw(options.draw / f"{path.stem}-{number:05d}.png", image, boxes, people)
        report_spent(
            f"detector and estimator on a frame of {path.name}",
            spent,
            frames=len(spent),
            with_somebody=found,
            decoding_seconds_a_frame=decoding[0].processor / total,
        )


def skipped(what: str, needed: Mapping[str, object]) -> bool:
    """Return whether something needed is absent, and print what."""
    absent = [name for name, there in needed.items() if not there]
    if absent:
        print(f"{what} skipped, absent: {'; '.join(absent)}")
    return bool(absent)


def decode(path: Path) -> int:
    """Decode a video to its end and return how many frames it has."""
    with Video(path) as video:
        return video.drain()


def draw(path: Path, image: Any, boxes: Any, people: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    for box in boxes:
        cv2.rectangle(picture, (int(box.x0), int(box.y0)), (int(box.x1), int(box.y1)), (0, 255, 255), 2)
    for person in people:
        for x, y, score in person.pixels:
            cv2.circle(picture, (int(x), int(y)), 3, (0, 255, 0) if score >= 0.3 else (0, 0, 255), -1)
    cv2.imwrite(str(path), picture)


def against_kinect(options: argparse.Namespace) -> None:
    """Report, for each network, how it compares with the Kinect's joints of UTD-MHAD."""
    models = sorted(options.weights.glob("pose_landmark_*.tflite"), key=lambda path: path.stat().st_size)
    videos = sorted((options.data / "Depth_video").glob("*_depth.mp4"))
    needed = {
        f"{options.weights}/pose_landmark_*.tflite (make weights)": models,
        f"{options.data}/Depth_video/*_depth.mp4 (--data)": videos,
    }
    if skipped("depth videos", needed):
        return
    chosen = [videos[n * len(videos) // options.pairs] for n in range(options.pairs)]
    dataset = load_dataset("utd-mhad")
    for model in models:
        config = config_of(model, mirrored=False if options.mirrored == "false" else None)
        errors: list[float] = []
        spent: list[Spent] = []
        decoding: list[Spent] = []
        found = frames = 0
        for path in chosen:
            frames += timed(partial(decode, path), decoding)
            made, layout = timed(partial(read_video, path, config, dataset, bodies=1), spent)
            name = path.name.removesuffix("_depth.mp4")
            truth, _ = read_skeleton(options.data / "Skeleton" / f"{name}_skeleton.mat", own="utd")
            found += len(made.joints)
            at = {int(n): place for place, n in enumerate(truth.frame_index)}
            both = [(n, at[int(f)]) for n, f in enumerate(made.frame_index) if int(f) in at]
            mine, theirs = limbs(made.joints, layout), limbs(truth.joints, KINECT_V1)
            errors += [1000 * aligned_error(mine[n], theirs[m]) for n, m in both]
        facts: dict[str, Any] = {"frames": frames, "found": found / frames}
        if errors:
            facts |= {"pa_mpjpe_mm": float(np.mean(errors)), "median_pa_mpjpe_mm": float(np.median(errors))}
        for what, times in (("processor", spent), ("decoding", decoding)):
            facts[f"{what}_seconds_a_frame"] = sum(one.processor for one in times) / frames
        report_spent(f"{model.name} on a depth video, mirrored {options.mirrored}", spent, **facts)


if __name__ == "__main__":
    main()
