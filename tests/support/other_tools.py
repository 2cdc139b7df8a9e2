"""Joints as other tools write them: for each form a writer, and the array that `.npy` would hold for the same joints."""

from __future__ import annotations

import csv
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from c2vl_manifests.layouts import Layout, load_layout

WIDTH, HEIGHT = 512, 256
"""Powers of two, so that shares of them are exact."""
_COLUMNS = ("x", "y", "z", "visibility")


def walkers(layout: Layout, seed: int, frames: int = 24) -> np.ndarray:
    """Two people who walk through the image, the first one larger; the second comes later. Shape: (T, 2, V, 2), pixels."""
    rng = np.random.default_rng(seed)
    shape = rng.uniform(-1, 1, (2, layout.joints, 2)) * [[[30, 90]], [[15, 45]]]
    steps = np.arange(frames)[:, None] * np.array([3, 0])
    places = np.stack([np.add((120, 120), steps), np.subtract((420, 150), steps)], axis=1)[:, :, None]
    pixels = np.round((places + shape + rng.normal(0, 0.5, (frames, 2, layout.joints, 2))) * 8) / 8
    pixels[:5, 1] = 0
    pixels[7, 0, 3] = 0  # one joint that was not found
    return pixels


def in_heights(pixels: np.ndarray) -> np.ndarray:
    """The joints of `walkers` as `.npy` holds them."""
    seen = pixels.any(axis=-1, keepdims=True)
    return np.where(seen, pixels / HEIGHT * [1, -1] + [0, 1], 0).astype(np.float32)


def people_of(pixels: np.ndarray, frame: int, rng: random.Random) -> list[np.ndarray]:
    """The people of a frame in any order, (V, 3) with a score."""
    found = [np.column_stack([one, np.where(one.any(axis=1), 0.75, 0)]) for one in pixels[frame] if one.any()]
    rng.shuffle(found)
    return found


def openpose(folder: Path, name: str, pixels: np.ndarray) -> str:
    (folder / name).mkdir()
    rng = random.Random(0)
    for frame in range(len(pixels)):
        people = [{"pose_keypoints_2d": one.ravel().tolist()} for one in people_of(pixels, frame, rng)]
        text = json.dumps({"version": 1.3, "people": people})
        (folder / name / f"{name}_{frame:012d}_keypoints.json").write_text(text)
    return name


def alphapose(folder: Path, name: str, pixels: np.ndarray) -> str:
    rng, entries = random.Random(0), []
    for frame in range(len(pixels)):
        entries += [
            {"image_id": f"{frame}.jpg", "category_id": 1, "keypoints": one.ravel().tolist(), "score": 2.5}
            for one in people_of(pixels, frame, rng)
        ]
    (folder / f"{name}.json").write_text(json.dumps(entries))
    return f"{name}.json"


def mmpose(folder: Path, name: str, pixels: np.ndarray) -> str:
    rng = random.Random(0)
    frames = [
        {
            "frame_id": n,
            "instances": [
                {"keypoints": one[:, :2].tolist(), "keypoint_scores": one[:, 2].tolist()}
                for one in people_of(pixels, n, rng)
            ],
        }
        for n in range(len(pixels))
    ]
    (folder / f"{name}.json").write_text(json.dumps({"meta_info": {}, "instance_info": frames}))
    return f"{name}.json"


def mediapipe_image(folder: Path, name: str, pixels: np.ndarray) -> str:
    rng = random.Random(0)
    frames = [
        {
            "pose_landmarks": [
                [
                    {"x": x / WIDTH, "y": y / HEIGHT, "z": 0.0, "visibility": v}
                    for x, y, v in np.round(one * 64).astype(int) / 64
                ]
                for one in people_of(pixels, n, rng)
            ]
        }
        for n in range(len(pixels))
    ]
    (folder / f"{name}.json").write_text(json.dumps({"frames": frames}))
    return f"{name}.json"


def matlab(folder: Path, name: str, pixels: np.ndarray) -> str:
    scipy.io.savemat(folder / f"{name}.mat", {"joints": in_heights(pixels)}, do_compression=True)
    return f"{name}.mat"


def annotation(name: str, pixels: np.ndarray) -> dict[str, Any]:
    """One annotation of pyskl's form."""
    return {
        "frame_dir": name,
        "label": np.int64(int(name[-1]) % 3),
        "img_shape": (HEIGHT, WIDTH),
        "original_shape": (HEIGHT, WIDTH),
        "total_frames": len(pixels),
        "keypoint": pixels.swapaxes(0, 1).astype(np.float32),
        "keypoint_score": np.where(pixels.any(axis=-1), 0.75, 0).swapaxes(0, 1).astype(np.float16),
    }


def pyskl(path: Path, annotations: list[dict[str, Any]], protocol: int = 4) -> None:
    names = [one["frame_dir"] for one in annotations]
    splits = {"xsub_train": names[::2], "xsub_val": names[1::2]}
    path.write_bytes(pickle.dumps({"split": splits, "annotations": annotations}, protocol))


IN_PIXELS: dict[str, tuple[str, Callable[[Path, str, np.ndarray], str]]] = {
    "OpenPose": ("body_25", openpose),
    "AlphaPose": ("halpe_26", alphapose),
    "COCO results": ("coco_17", alphapose),
    "MMPose": ("coco_17", mmpose),
    "MediaPipe": ("mediapipe_33_2d", mediapipe_image),
    "MATLAB": ("coco_17", matlab),
}
"""Tool -> the layout of its joints, and what writes them."""


def world(seed: int, frames: int = 20) -> np.ndarray:
    """World landmarks of one person, as MediaPipe gives them: metres about the hips, y down. Shape: (T, 33, 3)."""
    joints = np.random.default_rng(seed).normal(size=(frames, 33, 3)).round(3)
    names = load_layout("mediapipe_33").names
    left, right = names.index("hip_left"), names.index("hip_right")
    joints[:, right] = -joints[:, left]
    joints[:, names.index("nose"), 1] = -3
    return joints


def upright(landmarks: np.ndarray) -> np.ndarray:
    """World landmarks as `.npy` holds them."""
    return (landmarks * [1, -1, -1]).astype(np.float32)


def world_json(folder: Path, name: str, landmarks: np.ndarray) -> str:
    (folder / f"{name}.json").write_text(json.dumps(landmarks.tolist()))
    return f"{name}.json"


def world_long(folder: Path, name: str, landmarks: np.ndarray) -> str:
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", "landmark", *_COLUMNS])
        for frame, person in enumerate(landmarks):
            writer.writerows([frame, n, *one, 0.9] for n, one in enumerate(person.tolist()))
    return f"{name}.csv"


def world_wide(folder: Path, name: str, landmarks: np.ndarray) -> str:
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f"{axis}{n}" for n in range(1, 34) for axis in "xyzv"])
        for person in landmarks:
            writer.writerow([value for one in person.tolist() for value in (*one, 0.9)])
    return f"{name}.csv"


def mocap(
    path: Path,
    labels: list[str],
    places: np.ndarray,
    units: str = "mm",
    screen: tuple[str, str] | None = ("+X", "+Z"),
    scale: float = -1.0,
    first: int = 1,
) -> None:
    """Write markers (T, markers, 3) as C3D; NaN is a marker that was not seen."""
    import c3d

    writer = c3d.Writer(point_rate=100.0, point_scale=scale, point_units=units)
    writer.set_point_labels(labels)
    writer.set_analog_labels(["EMG"])
    writer.set_start_frame(first)
    if screen is not None:
        writer.set_screen_axis(*screen)
    for frame in places:
        seen = np.isfinite(frame).all(axis=1)
        points = np.zeros((len(labels), 5), np.float32)
        points[:, :3], points[:, 3:] = np.where(seen[:, None], frame, 0), np.where(seen, 0, -1)[:, None]
        writer.add_frames((points, np.zeros((0, 0))))
    with path.open("wb") as file:
        writer.write(file)


IN_METRES = {"JSON": world_json, "long CSV": world_long, "wide CSV": world_wide}
"""Form of MediaPipe's world landmarks -> what writes it."""
