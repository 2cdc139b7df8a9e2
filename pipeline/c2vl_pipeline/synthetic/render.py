"""Rendering of the synthetic dataset: a pinhole camera, a room, people with limbs and clothes, a video file.

Arrays: world and camera coordinates (..., 3) in metres; pixels (..., 2) as column, row; images uint8 BGR.
Camera coordinates are a Kinect's: x to the sensor's left, y up, z away. Its pictures are mirrored, and so are these:
columns grow with x, and the left arm of a person who faces the camera is on the left of the picture.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from c2vl_manifests.errors import naming
from c2vl_pipeline.synthetic.actions import Action
from c2vl_pipeline.synthetic.body import FPS, Floats, J, Person

Image = NDArray[np.uint8]

SETUP = 1
SUBJECT, PARTNER, CAMERA, LENGTH, TAKE, SCENE, SENSOR, FAULT = range(8)
"""First part of a random stream's key: the kind of thing drawn from it."""
_AZIMUTHS = (-45, 0, 45, -90, 90, -20, 20, -65, 65)


def stream(*key: int) -> Generator:
    """Return the random stream of a key; equal keys give equal numbers."""
    return np.random.default_rng(list(key))


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. `rotation` (3, 3) has rows left, up, forward of the sensor; `position` (3,) is in metres."""

    rotation: Floats
    position: Floats
    size: tuple[int, int]

    def see(self, world: Floats) -> Floats:
        """Move points (..., 3) from the world into camera coordinates (left of the sensor, up, away), metres."""
        seen: Floats = (world - self.position) @ self.rotation.T
        return seen

    @property
    def focal(self) -> float:
        """Focal length in pixels: the colour camera of a Kinect v2, scaled to the height of the image."""
        return 1060 / 1080 * self.size[1]

    def project(self, seen: Floats) -> Floats:
        """Project camera coordinates (..., 3) to pixels (..., 2): column, row."""
        width, height = self.size
        return pinhole(seen, self.focal, width / 2, height / 2)


def camera(seed: int, number: int, size: tuple[int, int]) -> Camera:
    """Return camera C`number` (1-based) of the only setup: about 3.3 m away, looking slightly down."""
    rng = stream(seed, CAMERA, SETUP, number)
    azimuth = np.deg2rad(_AZIMUTHS[(number - 1) % len(_AZIMUTHS)] + rng.uniform(-6, 6))
    tilt, distance, height = np.deg2rad(rng.uniform(0, 6)), rng.uniform(3.1, 3.5), rng.uniform(1.0, 1.25)
    ahead = np.array([-np.sin(azimuth), 0, np.cos(azimuth)])
    up, left = np.array([0.0, 1.0, 0.0]), np.array([ahead[2], 0, -ahead[0]])
    rotation = np.stack([left, np.cos(tilt) * up + np.sin(tilt) * ahead, np.cos(tilt) * ahead - np.sin(tilt) * up])
    return Camera(rotation, -distance * ahead + height * up, size)


def pinhole(seen: Floats, focal: float, column: float, row: float) -> Floats:
    """Project camera coordinates (..., 3) to pixels (..., 2) about a principal point."""
    depth = np.maximum(seen[..., 2], 0.1)
    return np.stack([column + focal * seen[..., 0] / depth, row - focal * seen[..., 1] / depth], -1)


@lru_cache(maxsize=16)
def _room(seed: int, view: int, size: tuple[int, int]) -> Image:
    """Return what one camera sees without people (H, W, 3).

    Without texture or noise: HOG scales every block to one length, so that faint grain would count as much as a person.
    """
    rng = stream(seed, SCENE, SETUP, view)
    width, height = size
    wall, floor = rng.uniform(90, 200, 3), rng.uniform(60, 150, 3)
    edge = int(height * rng.uniform(0.56, 0.64))
    image = np.empty((height, width, 3))
    image[:edge], image[edge:] = wall, floor
    for _ in range(int(rng.integers(4, 8))):  # posters, doors, shelves
        x, y = int(rng.uniform(0, width)), int(rng.uniform(0, edge))
        corner = (x + int(rng.uniform(0.08, 0.3) * width), min(edge, y + int(rng.uniform(0.1, 0.5) * height)))
        shade = (wall * rng.uniform(0.6, 1.2) + rng.normal(0, 20, 3)).tolist()
        cv2.rectangle(image, (x, y), corner, shade, -1)
    return image.clip(0, 255).astype(np.uint8)


_LIMBS = (
    ("hip", "knee", 0.075, "trousers"),
    ("knee", "ankle", 0.055, "trousers"),
    ("ankle", "foot", 0.045, "shoes"),
    ("shoulder", "elbow", 0.048, "shirt"),
    ("elbow", "wrist", 0.038, "sleeve"),
    ("wrist", "hand", 0.04, "skin"),
)
_OBJECTS = {"cup": (0.09, 0.07), "phone": (0.12, 0.035), "ball": (0.0, 0.13)}
"""Half length and radius in metres: larger than life, since a crop becomes 64 pixels high for HOG."""


@dataclass(frozen=True)
class Part:
    """One shape to draw: a disc, a thick line or a filled outline through `points`, `radius` metres thick."""

    points: tuple[int, ...]
    radius: float
    colour: tuple[int, int, int]

    def paint(self, frame: Image, corners: NDArray[np.int32], scale: float) -> None:
        """Draw with `corners` (k, 2) in eighths of a pixel and `scale` pixels per metre."""
        wide = max(1, round(2 * self.radius * scale))
        if len(corners) == 1:
            size = max(8, round(8 * self.radius * scale))
            cv2.circle(frame, corners[0].tolist(), size, self.colour, -1, cv2.LINE_AA, 3)
        elif len(corners) == 2:
            cv2.line(frame, corners[0].tolist(), corners[1].tolist(), self.colour, wide, cv2.LINE_AA, 3)
        else:
            cv2.fillConvexPoly(frame, corners, self.colour, cv2.LINE_AA, 3)
            cv2.polylines(frame, [corners], True, self.colour, wide, cv2.LINE_AA, 3)


class Scene:
    """Everything drawn of one performance: points over time in world coordinates, and shapes through them."""

    def __init__(self) -> None:
        self.points: list[Floats] = []
        self.parts: list[Part] = []

    def add(self, points: list[Floats], radius: float, colour: tuple[int, int, int]) -> None:
        """Add a part through points (T, 3)."""
        first = len(self.points)
        self.points += points
        self.parts.append(Part(tuple(range(first, len(self.points))), radius, colour))

    def person(self, who: Person, body: Floats) -> None:
        """Add a person with joints `body` (T, 25, 3)."""

        def at(*names: str) -> list[Floats]:
            return [body[:, J[name]] for name in names]

        colours = who.colours | {"sleeve": who.colours["shirt" if who.long_sleeves else "skin"]}
        for side, light in (("left", 1.0), ("right", 0.84)):
            for upper, lower, radius, cloth in _LIMBS:
                b, g, r = (int(light * 0.94 * c) for c in colours[cloth])
                self.add(at(f"{upper}_{side}", f"{lower}_{side}"), radius * who.bulk, (b, g, r))
        trunk = at("shoulder_left", "shoulder_right", "hip_right", "hip_left")
        self.add(trunk, 0.05 * who.bulk, colours["shirt"])
        self.add(at("spine_shoulder", "spine_base"), 0.105 * who.bulk, colours["shirt"])
        self.add(at("spine_shoulder", "head"), 0.045, colours["skin"])
        head, top = at("head", "neck")
        back = 0.035 * _ahead(body)
        self.add([head - back + 0.25 * (head - top)], 0.056 * who.height, colours["hair"])
        self.add([head + back], 0.052 * who.height, colours["skin"])

    def thing(self, kind: str, where: Floats, colour: tuple[int, int, int]) -> None:
        """Add a small object of `kind` around `where` (T, 3)."""
        half, radius = _OBJECTS[kind]
        up = np.array([0.0, half, 0.0])
        self.add([where - up, where + up] if half else [where], radius, colour)

    def stool(self, who: Person, body: Floats, colour: tuple[int, int, int]) -> None:
        """Add a stool behind the feet of a performer: every scene has one, used or not."""
        low = int(np.argmin(body[:, J["spine_base"], 1]))  # a person who sits down does it here
        ahead, leg = _ahead(body)[low : low + 1], who.thigh + who.shank
        feet = (body[low : low + 1, J["ankle_left"]] + body[low : low + 1, J["ankle_right"]]) / 2
        seat = (feet - 0.42 * leg * ahead) * [1, 0, 1] + [0, 0.5 * leg - 0.06, 0]
        aside = np.stack([-ahead[:, 2], ahead[:, 1], ahead[:, 0]], -1)
        corners = [seat + 0.16 * (x * aside + y * ahead) for x, y in ((1, 1), (1, -1), (-1, -1), (-1, 1))]
        corners = [corner.repeat(len(body), 0) for corner in corners]
        for corner in corners:
            self.add([corner, corner * [1, 0, 1]], 0.018, colour)
        self.add(corners, 0.02, colour)


def _ahead(body: Floats) -> Floats:
    """Return the horizontal unit vector (T, 3) that the shoulders of `body` (T, 25, 3) face."""
    left = (body[:, J["shoulder_left"]] - body[:, J["shoulder_right"]]) * [1, 0, 1]
    left /= np.linalg.norm(left, axis=-1, keepdims=True) + 1e-9
    return np.stack([-left[:, 2], left[:, 1], left[:, 0]], -1)


def build_scene(action: Action, people: tuple[Person, Person], bodies: list[Floats], rng: Generator) -> Scene:
    """Return the scene of people, the held object, a stool, and up to two unrelated objects."""
    scene, who, frames = Scene(), people[0], len(bodies[0])
    colours = [(int(c[0]), int(c[1]), int(c[2])) for c in rng.uniform(30, 230, (4, 3))]
    kinds = rng.permutation(list(_OBJECTS))[: int(rng.integers(0, 3))]
    places = rng.uniform([-1.2, 0.0, 0.5], [1.2, 0.9, 1.2], (2, 3))
    for kind, place, colour in zip(kinds, places, colours[2:], strict=False):
        scene.thing(str(kind), place[None].repeat(frames, 0), colour)
    scene.stool(who, bodies[0], colours[0])
    for person, body in zip(people, bodies, strict=False):
        scene.person(person, body)
    if action.held:
        side = "left" if who.left_handed else "right"
        grip = bodies[0][:, J[f"hand_{side}"]] + 0.03 * _ahead(bodies[0])
        scene.thing(action.held, grip, colours[1])
    return scene


def film(scene: Scene, eye: Camera, seed: int, view: int) -> Iterator[Image]:
    """Yield the frames (H, W, 3) that camera `view` sees; the same array every time."""
    room = _room(seed, view, eye.size)
    seen = eye.see(np.stack(scene.points, 1))
    pixels = (8 * eye.project(seen)).round().clip(-30000, 30000).astype(np.int32)
    depth = np.stack([seen[:, part.points, 2].mean(1) for part in scene.parts], 1)
    order = np.argsort(-depth, 1, kind="stable").tolist()
    scale = (eye.focal / np.maximum(depth, 0.3)).tolist()
    corners = [list(np.ascontiguousarray(pixels[:, part.points])) for part in scene.parts]
    frame = np.empty_like(room)
    for t, nearer in enumerate(order):
        np.copyto(frame, room)
        for i in nearer:
            scene.parts[i].paint(frame, corners[i][t], scale[t][i])
        yield frame


@contextmanager
def replacing(path: Path, name: str) -> Iterator[Path]:
    """Yield a temporary file called `name`; it becomes `path` on success and is deleted on failure."""
    partial = path.with_name(name)
    with naming(path, partial):
        partial.unlink(missing_ok=True)  # a link would lead the writer elsewhere
        try:
            yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_video(path: Path, images: Iterator[Image], size: tuple[int, int]) -> None:
    """Encode `images` as Motion JPEG and check that the file is complete.

    OpenCV does not report a full disk; the container is then shorter than it states, or states nothing.
    """
    with replacing(path, f".partial-{path.name}") as partial:
        writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"MJPG"), FPS, size)
        if not writer.isOpened():
            raise OSError(f"{partial}: cannot be written as Motion JPEG; is the folder writable, the disk full?")
        for image in images:
            writer.write(image)
        writer.release()
        with partial.open("rb") as file:
            header = file.read(8)
        length = partial.stat().st_size
        if header[:4] != b"RIFF" or int.from_bytes(header[4:], "little") + 8 != length:
            raise OSError(f"{partial}: only {length} bytes of the video were written; is the disk full?")
