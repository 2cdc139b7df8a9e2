"""A made-up dataset in the layout of NTU RGB+D, for demonstrations, continuous integration and scale tests.

Kinematic people perform parametric actions (`synth_actions`) before synchronised cameras. Every clip becomes
a rendered `_rgb.avi` and a `.skeleton` whose colour coordinates are the exact projections of its joints.
Nothing but the movement, a held object and a partner tells the class: clip lengths come from a random stream
without the action; body, clothes, scene, cameras and recording faults from streams that never read the class.
"""

from __future__ import annotations

import multiprocessing
import os
import tomllib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.events import Emit, Note, Progress, silent
from c2vl_pipeline.synth_actions import ACTIONS, FPS, Action, Floats, J, Person, perform

FORMAT = 1
"""Raised whenever the same arguments would give other files."""

SETUP = 1
_SUBJECT, _PARTNER, _CAMERA, _LENGTH, _TAKE, _SCENE, _SENSOR, _FAULT = range(8)
_AZIMUTHS = (-45, 0, 45, -90, 90, -20, 20, -65, 65)
_LOW, _TRACKED = 1, 2
_FIRST_ID = 72057594037900000
_Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Settings:
    """The arguments of `generate` that decide the bytes."""

    classes: int
    subjects: int
    views: int
    repeats: int
    seed: int
    size: tuple[int, int]
    frames: tuple[int, int]

    def table(self) -> dict[str, Any]:
        """Return what `synthetic.toml` says."""
        return {
            "format": FORMAT, "classes": action_names(self.classes), "subjects": self.subjects,
            "views": self.views, "repeats": self.repeats, "seed": self.seed, "size": list(self.size),
            "frames": list(self.frames), "fps": FPS,
        }  # fmt: skip


@dataclass(frozen=True)
class Synthetic:
    """What `generate` made: the folder, the class names, and how many clips were written and kept."""

    root: Path
    classes: tuple[str, ...]
    written: int
    kept: int

    @property
    def clips(self) -> int:
        """Number of clips in the folder."""
        return self.written + self.kept


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. `rotation` (3, 3) has rows right, up, forward; `position` (3,) is in metres."""

    rotation: Floats
    position: Floats
    size: tuple[int, int]

    def see(self, world: Floats) -> Floats:
        """Move points (..., 3) from the world into camera coordinates (right, up, away), metres."""
        seen: Floats = (world - self.position) @ self.rotation.T
        return seen

    @property
    def focal(self) -> float:
        """Focal length in pixels: the colour camera of a Kinect v2, scaled to the height of the image."""
        return 1060 / 1080 * self.size[1]

    def project(self, seen: Floats) -> Floats:
        """Project camera coordinates (..., 3) to pixels (..., 2): column, row."""
        width, height = self.size
        return _pinhole(seen, self.focal, width / 2, height / 2)


def action_names(n: int) -> list[str]:
    """Return the names of the first `n` actions, in class order.

    Raises:
        ConfigError: `n` is below 1 or above the number of actions there are.
    """
    if not 1 <= n <= len(ACTIONS):
        raise ConfigError(
            f"classes = {n}; 1 to {len(ACTIONS)} synthetic actions exist; ask for a number of these"
        )
    return [action.name for action in ACTIONS[:n]]


def camera(seed: int, number: int, size: tuple[int, int]) -> Camera:
    """Return camera C`number` (1-based) of the only setup: 3.3 m or so away, looking slightly down."""
    rng = _rng(seed, _CAMERA, SETUP, number)
    azimuth = np.deg2rad(_AZIMUTHS[(number - 1) % len(_AZIMUTHS)] + rng.uniform(-6, 6))
    tilt, distance, height = np.deg2rad(rng.uniform(0, 6)), rng.uniform(3.1, 3.5), rng.uniform(1.0, 1.25)
    ahead = np.array([-np.sin(azimuth), 0, np.cos(azimuth)])
    up, right = np.array([0.0, 1.0, 0.0]), np.array([ahead[2], 0, -ahead[0]])
    rotation = np.stack(
        [right, np.cos(tilt) * up + np.sin(tilt) * ahead, np.cos(tilt) * ahead - np.sin(tilt) * up]
    )
    return Camera(rotation, -distance * ahead + height * up, size)


def generate(
    out: Path,
    *,
    classes: int = 8,
    subjects: int = 8,
    views: int = 3,
    repeats: int = 2,
    seed: int = 0,
    size: tuple[int, int] = (320, 240),
    frames: tuple[int, int] = (48, 72),
    workers: int = 1,
    emit: Emit = silent,
) -> Synthetic:
    """Write a synthetic dataset, or finish one that the same arguments began.

    Args:
        out: folder; gets `nturgb+d_rgb/`, `nturgb+d_skeletons/` and `synthetic.toml`.
        classes: number of actions, see `action_names`.
        subjects: number of performers; `views` cameras film each of them, `repeats` times an action.
        views: number of synchronised cameras.
        repeats: performances of an action by a subject.
        seed: at least 0; the same arguments give the same skeleton bytes and the same frames.
        size: width and height of the video, pixels, both even.
        frames: shortest and longest clip, frames, inclusive.
        workers: processes.
        emit: receives Progress in clips.

    Returns:
        The folder and its counts; clips that were already complete are kept.

    Raises:
        ConfigError: an argument is out of range, or `out` holds another dataset.
        OSError: a file could not be written.
    """
    settings = Settings(classes, subjects, views, repeats, seed, size, frames)
    _check(settings, workers)
    _claim(out, settings)
    jobs = [
        (out, settings, p, r, a)
        for p in range(1, subjects + 1)
        for r in range(1, repeats + 1)
        for a in range(1, classes + 1)
    ]
    written, total = 0, len(jobs) * views
    for done, count in enumerate(_run(jobs, workers), 1):
        written += count
        emit(Progress("synth", done * views, total, "clips"))
    emit(Note(f"{total} synthetic clips in {out}: {written} written, {total - written} kept"))
    return Synthetic(out, tuple(action_names(classes)), written, total - written)


def _check(settings: Settings, workers: int) -> None:
    """Refuse arguments out of range, each in one line."""
    action_names(settings.classes)
    for name, top in (("subjects", 999), ("views", 999), ("repeats", 999)):
        if not 1 <= (value := getattr(settings, name)) <= top:
            raise ConfigError(
                f"{name} = {value}; file names have room for 1 to {top}; ask for a number of these"
            )
    if settings.seed < 0:
        raise ConfigError(f"seed = {settings.seed}; a seed is 0 or more; choose another")
    if min(settings.size) < 16 or any(side % 2 for side in settings.size):
        raise ConfigError(f"size = {settings.size}; width and height are even and at least 16; round them")
    if not 8 <= settings.frames[0] <= settings.frames[1]:
        raise ConfigError(
            f"frames = {settings.frames}; expected shortest <= longest, at least 8; change them"
        )
    if workers < 1:
        raise ConfigError(f"workers = {workers}; at least one process is needed; use workers = 1")


def _claim(out: Path, settings: Settings) -> None:
    """Bind the folder to the settings before the first clip, or make sure that it already is."""
    path, table = out / "synthetic.toml", settings.table()
    if not path.exists():
        for folder in ("nturgb+d_rgb", "nturgb+d_skeletons"):
            if (out / folder).exists():
                raise ConfigError(
                    f"{out} holds {folder} but no synthetic.toml; expected an empty folder; choose another"
                )
    else:
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not TOML ({error}); delete {out} or choose another folder") from error
        for key, value in table.items():
            if found.get(key) != value:
                raise ConfigError(
                    f"{out} holds a synthetic dataset with {key} = {found.get(key)!r}, expected {value!r}; "
                    "choose another folder or repeat the arguments in its synthetic.toml"
                )
    out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        lines = (f"{k} = {str(v).replace(chr(39), chr(34))}\n" for k, v in table.items())
        with _replacing(path, f"{path.name}.partial") as partial:
            partial.write_text("".join(lines), encoding="utf-8", newline="\n")
    for folder in ("nturgb+d_rgb", "nturgb+d_skeletons"):
        (out / folder).mkdir(exist_ok=True)


@contextmanager
def _replacing(path: Path, name: str) -> Iterator[Path]:
    """Give a neighbour called `name` to write to; it becomes `path` on success and disappears on failure."""
    partial = path.with_name(name)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _run(jobs: list[tuple[Path, Settings, int, int, int]], workers: int) -> Iterator[int]:
    """Run `_performance` on every job, in order, and yield how many clips each wrote."""
    if workers == 1:
        yield from (_performance(*job) for job in jobs)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=cv2.setNumThreads, initargs=(1,))
    try:
        yield from pool.map(_performance, *zip(*jobs, strict=True), chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def _rng(*key: int) -> Generator:
    return np.random.default_rng(list(key))


@lru_cache(maxsize=256)
def _person(*key: int) -> Person:
    return Person.draw(_rng(*key))


def _performance(out: Path, settings: Settings, subject: int, repeat: int, number: int) -> int:
    """Write the missing clips of one performance, all cameras; return how many were missing."""
    seed, action = settings.seed, ACTIONS[number - 1]
    key = (SETUP, subject, repeat, number)
    missing = []
    for view in range(1, settings.views + 1):
        name = f"S{SETUP:03}C{view:03}P{subject:03}R{repeat:03}A{number:03}"
        video = out / "nturgb+d_rgb" / f"{name}_rgb.avi"
        skeleton = out / "nturgb+d_skeletons" / f"{name}.skeleton"
        if not (video.exists() and skeleton.exists()):
            missing.append((view, video, skeleton))
    if not missing:
        return 0
    shortest, longest = settings.frames
    length = int(_rng(seed, _LENGTH, *key[:3]).integers(shortest, longest, endpoint=True))
    people = (_person(seed, _SUBJECT, subject), _person(seed, _PARTNER, *key[:3]))
    bodies = perform(action, *people, _rng(seed, _TAKE, *key), length)
    stage = _set_stage(action, people, bodies, _rng(seed, _SCENE, *key))
    for view, video, skeleton in missing:
        eye, rng = camera(seed, view, settings.size), _rng(seed, _SENSOR, *key, view)
        _write_video(video, _film(stage, eye, seed, view), settings.size)
        tracks = [_sense(eye.see(body), rng) for body in bodies]
        text = _skeleton_text(tracks, eye, rng, _rng(seed, _FAULT, *key, view))
        with _replacing(skeleton, f"{skeleton.name}.partial") as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
    return len(missing)


# ---------------------------------------------------------------------------------------------- skeleton file


def _pinhole(seen: Floats, focal: float, column: float, row: float) -> Floats:
    depth = np.maximum(seen[..., 2], 0.1)
    return np.stack([column + focal * seen[..., 0] / depth, row - focal * seen[..., 1] / depth], -1)


def _sense(seen: Floats, rng: Generator) -> tuple[Floats, NDArray[np.int64]]:
    """Measure joints (T, 25, 3) as a Kinect does: jitter, drift, and guesses where the body hides a joint.

    Returns the noisy joints and the tracking state (T, 25).
    """
    frames, joints = seen.shape[:2]
    trunk = seen[:, J["spine_mid"]][:, None]
    hidden = (seen[..., 2] - trunk[..., 2] > 0.05) & (np.abs(seen[..., 0] - trunk[..., 0]) < 0.14)
    slow = rng.normal(0, 1, (2 + frames // 6, joints, 3))  # one draw every six frames, interpolated
    at = np.arange(frames) / 6
    below, share = at.astype(int), (at % 1)[:, None, None]
    slow = (1 - share) * slow[below] + share * slow[below + 1]
    low = (rng.random((2 + frames // 6, joints))[below] < 0.02) | (
        hidden & (rng.random((2 + frames // 6, joints))[below] < 0.5)
    )
    low[:, [J["spine_base"], J["spine_mid"], J["spine_shoulder"], J["neck"], J["head"]]] = False
    reach = np.ones(joints)
    reach[[J[f"{part}_{s}"] for part in ("hand_tip", "thumb", "hand") for s in ("left", "right")]] = 2.0
    reach[[J[f"{part}_{s}"] for part in ("foot", "ankle") for s in ("left", "right")]] = 1.6
    drift = np.where(low, 0.06, 0.014 * reach)[..., None] * slow
    jitter = rng.normal(0, 0.004, seen.shape) * reach[:, None]
    return seen + drift + jitter, np.where(low, _LOW, _TRACKED)


def _faults(rng: Generator, frames: int) -> tuple[set[int], range]:
    """Draw recording faults: frames without any body, frames of a ghost body; mostly none of either."""
    empty: set[int] = set()
    if rng.random() < 1 / 120:
        start = int(rng.integers(0, frames - 3))
        empty = set(range(start, start + int(rng.integers(1, 4))))
    ghost = range(0)
    if rng.random() < 1 / 120:
        start = int(rng.integers(0, max(1, frames - 11)))
        ghost = range(start, min(frames, start + int(rng.integers(2, 12))))
    return empty, ghost


def _skeleton_text(
    tracks: list[tuple[Floats, NDArray[np.int64]]], eye: Camera, rng: Generator, faults: Generator
) -> str:
    """Return the text of a `.skeleton` file: bodies (T, 25, 3) in camera coordinates with their states."""
    frames = len(tracks[0][0])
    empty, ghost = _faults(faults, frames)
    order, first = rng.permutation(len(tracks)), _FIRST_ID
    blocks = [_body_blocks(*tracks[int(i)], eye, first + int(rng.integers(1, 99999))) for i in order]
    spans = [range(frames) for _ in blocks]
    if ghost:
        shape = tracks[0][0][:1].repeat(frames, 0) * [1, 0.4, 1] + faults.uniform(
            [-1, -0.3, 0.3], [1, 0, 0.8]
        )
        wobble = shape + faults.normal(0, 0.03, shape.shape)
        state = np.full(shape.shape[:2], _LOW)
        blocks.append(_body_blocks(wobble, state, eye, _FIRST_ID + int(faults.integers(1, 99999))))
        spans.append(ghost)
    lines = [str(frames)]
    for t in range(frames):
        present = [b[t] for b, span in zip(blocks, spans, strict=True) if t in span and t not in empty]
        lines += [str(len(present)), *present]
    return "\n".join(lines) + "\n"


def _body_blocks(joints: Floats, state: NDArray[np.int64], eye: Camera, identity: int) -> list[str]:
    """Return the lines of one body, one string a frame; positions are rounded before they are projected."""
    joints = joints.round(7)
    depth = _pinhole(joints, 365.0, 256.0, 212.0)
    across = joints[:, J["shoulder_left"]] - joints[:, J["shoulder_right"]]
    yaw = np.arctan2(across[:, 2], across[:, 0])[:, None].repeat(joints.shape[1], 1) / 2
    turn = np.stack([np.cos(yaw), 0 * yaw, np.sin(yaw), 0 * yaw], -1)  # the heading, for every joint
    rows = np.concatenate([joints, depth, eye.project(joints), turn, state[..., None]], -1)
    spine = joints[:, J["spine_shoulder"]] - joints[:, J["spine_base"]]
    lean = np.clip(np.stack([spine[:, 0], -spine[:, 2]], -1) / np.abs(spine[:, 1:2] + 1e-6), -1, 1)
    row = "\n%.7f %.7f %.7f %.4f %.4f %.4f %.4f %.6f %.6f %.6f %.6f %d"
    template = f"{identity} 0 1 1 1 1 0 %.6f %.6f 2\n25" + row * joints.shape[1]
    return [template % (*lean[t], *rows[t].ravel()) for t in range(len(joints))]


# -------------------------------------------------------------------------------------------------- rendering


@lru_cache(maxsize=16)
def _room(seed: int, view: int, size: tuple[int, int]) -> tuple[_Image, _Image]:
    """Return what one camera sees without people (H, W, 3) and its noise (8, H, W, 3) to be added."""
    rng = _rng(seed, _SCENE, SETUP, view)
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
    for cells in (8, 40):
        grain = rng.normal(0, 7, (cells, cells, 1)).astype(np.float32)
        image += cv2.resize(grain, size, interpolation=cv2.INTER_CUBIC)[..., None]
    noise = rng.normal(3, 2, (8, height, width, 3)).clip(0, 12).astype(np.uint8)
    return image.clip(0, 243).astype(np.uint8), noise


_LIMBS = (
    ("hip", "knee", 0.075, "trousers"),
    ("knee", "ankle", 0.055, "trousers"),
    ("ankle", "foot", 0.045, "shoes"),
    ("shoulder", "elbow", 0.048, "shirt"),
    ("elbow", "wrist", 0.038, "sleeve"),
    ("wrist", "hand", 0.04, "skin"),
)
_OBJECTS = {"cup": (0.045, 0.032), "phone": (0.07, 0.02), "ball": (0.0, 0.06)}  # half length, radius


@dataclass(frozen=True)
class Part:
    """One thing to draw: a disc, a thick line or a filled outline through `points`, `radius` metres thick."""

    points: tuple[int, ...]
    radius: float
    colour: tuple[int, int, int]

    def paint(self, frame: _Image, corners: NDArray[np.int32], scale: float) -> None:
        """Draw with `corners` (k, 2) in eighths of a pixel and `scale` pixels a metre."""
        wide = max(1, round(2 * self.radius * scale))
        if len(corners) == 1:
            size = max(8, round(8 * self.radius * scale))
            cv2.circle(frame, corners[0].tolist(), size, self.colour, -1, cv2.LINE_AA, 3)
        elif len(corners) == 2:
            cv2.line(frame, corners[0].tolist(), corners[1].tolist(), self.colour, wide, cv2.LINE_AA, 3)
        else:
            cv2.fillConvexPoly(frame, corners, self.colour, cv2.LINE_AA, 3)
            cv2.polylines(frame, [corners], True, self.colour, wide, cv2.LINE_AA, 3)


class Stage:
    """All that is drawn of one performance: points over time, in world coordinates, and parts of them."""

    def __init__(self) -> None:
        self.points: list[Floats] = []
        self.parts: list[Part] = []

    def add(self, points: list[Floats], radius: float, colour: tuple[int, int, int]) -> None:
        """Add a part through points (T, 3)."""
        self.parts.append(
            Part(tuple(range(len(self.points), len(self.points) + len(points))), radius, colour)
        )
        self.points += points

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
        """Put a stool behind the feet of a performer: it is there in every scene, used or not."""
        low = int(np.argmin(body[:, J["spine_base"], 1]))  # whoever sits down does it here
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
    """Horizontal unit vector (T, 3) in which the shoulders of `body` (T, 25, 3) face."""
    left = (body[:, J["shoulder_left"]] - body[:, J["shoulder_right"]]) * [1, 0, 1]
    left /= np.linalg.norm(left, axis=-1, keepdims=True) + 1e-9
    return np.stack([left[:, 2], left[:, 1], -left[:, 0]], -1)


def _set_stage(action: Action, people: tuple[Person, Person], bodies: list[Floats], rng: Generator) -> Stage:
    """Gather people, the held object, a stool, and up to two objects that belong to nobody."""
    stage, who, frames = Stage(), people[0], len(bodies[0])
    colours = [(int(c[0]), int(c[1]), int(c[2])) for c in rng.uniform(30, 230, (4, 3))]
    kinds = rng.permutation(list(_OBJECTS))[: int(rng.integers(0, 3))]
    places = rng.uniform([-1.2, 0.0, 0.5], [1.2, 0.9, 1.2], (2, 3))
    for kind, place, colour in zip(kinds, places, colours[2:], strict=False):
        stage.thing(str(kind), place[None].repeat(frames, 0), colour)
    stage.stool(who, bodies[0], colours[0])
    for person, body in zip(people, bodies, strict=False):
        stage.person(person, body)
    if action.held:
        side = "left" if who.left_handed else "right"
        grip = bodies[0][:, J[f"hand_{side}"]] + 0.03 * _ahead(bodies[0])
        stage.thing(action.held, grip, colours[1])
    return stage


def _film(stage: Stage, eye: Camera, seed: int, view: int) -> Iterator[_Image]:
    """Yield the frames (H, W, 3) that camera `view` sees; the same array every time."""
    room, noise = _room(seed, view, eye.size)
    seen = eye.see(np.stack(stage.points, 1))
    pixels = (8 * eye.project(seen)).round().clip(-30000, 30000).astype(np.int32)
    depth = np.stack([seen[:, part.points, 2].mean(1) for part in stage.parts], 1)
    order, scale = (
        np.argsort(-depth, 1, kind="stable").tolist(),
        (eye.focal / np.maximum(depth, 0.3)).tolist(),
    )
    corners = [list(np.ascontiguousarray(pixels[:, part.points])) for part in stage.parts]
    frame = np.empty_like(room)
    for t, nearer in enumerate(order):
        np.copyto(frame, room)
        for i in nearer:
            stage.parts[i].paint(frame, corners[i][t], scale[t][i])
        cv2.add(frame, noise[t % len(noise)], dst=frame)
        yield frame


def _write_video(path: Path, images: Iterator[_Image], size: tuple[int, int]) -> None:
    """Encode `images` as Motion JPEG and check that all of it is on the disk.

    OpenCV does not report a full disk, but then the container is shorter than it says, or says nothing.
    """
    with _replacing(path, f".partial-{path.name}") as partial:
        writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"MJPG"), FPS, size)
        if not writer.isOpened():
            raise OSError(
                f"{partial}: cannot be written as Motion JPEG; is the folder writable, the disk full?"
            )
        for image in images:
            writer.write(image)
        writer.release()
        with partial.open("rb") as file:
            header = file.read(8)
        length = partial.stat().st_size
        if header[:4] != b"RIFF" or int.from_bytes(header[4:], "little") + 8 != length:
            raise OSError(f"{partial}: only {length} bytes of the video arrived; is the disk full?")
