"""`c2vl-pipeline synth`: a synthetic dataset in the format of NTU RGB+D, for demonstrations and tests.

Kinematic people perform parametric actions (`actions`, `body`) before synchronised cameras. Every clip becomes
a rendered `_rgb.avi` and a `.skeleton` whose colour coordinates are the exact projections of its joints.
Nothing but the movement, a held object and a partner tells the class: clip lengths come from a random stream
without the action; body, clothes, scene, cameras and recording faults from streams that never read the class.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.events import Emit, Note, Progress, silent
from c2vl_manifests.reading import from_toml, read_text
from c2vl_pipeline.synthetic.actions import ACTIONS, perform
from c2vl_pipeline.synthetic.body import FPS, Floats, J, Person
from c2vl_pipeline.synthetic.render import (
    FAULT,
    LENGTH,
    PARTNER,
    SCENE,
    SENSOR,
    SETUP,
    SUBJECT,
    TAKE,
    Camera,
    build_scene,
    camera,
    film,
    pinhole,
    replacing,
    stream,
    write_video,
)

FORMAT = 3
"""Increased whenever the same arguments would give other files."""

_LOW, _TRACKED = 1, 2
_DEPTH_BIAS = 0.08
"""Standard deviation of a joint's depth over clips, metres."""
_FIRST_ID = 72057594037900000


@dataclass(frozen=True)
class Settings:
    """The arguments of `generate` that determine the files."""

    classes: int
    subjects: int
    views: int
    repeats: int
    seed: int
    size: tuple[int, int]
    frames: tuple[int, int]

    def table(self) -> dict[str, Any]:
        """Return the content of `synthetic.toml`."""
        return {
            "format": FORMAT, "classes": action_names(self.classes), "subjects": self.subjects,
            "views": self.views, "repeats": self.repeats, "seed": self.seed, "size": list(self.size),
            "frames": list(self.frames), "fps": FPS,
        }  # fmt: skip


@dataclass(frozen=True)
class Synthetic:
    """Result of `generate`: the folder, and the numbers of clips written and kept."""

    root: Path
    written: int
    kept: int

    @property
    def clips(self) -> int:
        """Number of clips in the folder."""
        return self.written + self.kept


def action_names(n: int) -> list[str]:
    """Return the names of the first `n` actions, in class order.

    Raises:
        ConfigError: `n` is below 1 or above the number of actions.
    """
    if not 1 <= n <= len(ACTIONS):
        raise ConfigError(f"classes = {n}; 1 to {len(ACTIONS)} synthetic actions exist; choose a number in this range")
    return [action.name for action in ACTIONS[:n]]


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
    """Write a synthetic dataset, or complete one begun with the same arguments.

    Args:
        out: folder; gets `nturgb+d_rgb/`, `nturgb+d_skeletons/` and `synthetic.toml`.
        classes: number of actions, see `action_names`.
        subjects: number of performers; `views` cameras film each one `repeats` times per action.
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
    numbers = product(*(range(1, count + 1) for count in (subjects, repeats, classes)))
    jobs = [(out, settings, p, r, a) for p, r, a in numbers]
    written, total = 0, len(jobs) * views
    for done, count in enumerate(_run(jobs, workers), 1):
        written += count
        emit(Progress("synth", done * views, total, "clips"))
    emit(Note(f"{total} synthetic clips in {out}: {written} written, {total - written} kept"))
    return Synthetic(out, written, total - written)


def _check(settings: Settings, workers: int) -> None:
    """Raise ConfigError for an argument out of range."""
    action_names(settings.classes)
    for name in ("subjects", "views", "repeats"):
        if not 1 <= (value := getattr(settings, name)) <= 999:
            raise ConfigError(f"{name} = {value}; file names have room for 1 to 999; choose a number in this range")
    if settings.seed < 0:
        raise ConfigError(f"seed = {settings.seed}; expected 0 or more; choose another seed")
    if min(settings.size) < 16 or any(side % 2 for side in settings.size):
        raise ConfigError(f"size = {settings.size}; expected even numbers of at least 16; round them")
    if not 8 <= settings.frames[0] <= settings.frames[1]:
        raise ConfigError(f"frames = {settings.frames}; expected shortest <= longest, at least 8; change them")
    if workers < 1:
        raise ConfigError(f"workers = {workers}; at least one process is needed; use workers = 1")


def _claim(out: Path, settings: Settings) -> None:
    """Write the settings to the folder before the first clip, or check that it holds the same settings."""
    path, table = out / "synthetic.toml", settings.table()
    folders = ("nturgb+d_rgb", "nturgb+d_skeletons")
    if path.exists():
        try:
            stored = from_toml(read_text(path))
        except ValueError as error:
            raise ConfigError(f"{path}: not TOML ({error}); delete {out} or choose another folder") from error
        if stored.get("format") != table["format"]:
            raise ConfigError(
                f"{out} holds a synthetic dataset of format {stored.get('format')!r}, expected {table['format']}: another "
                "version made it; delete the folder, or choose another"
            )
        for key, value in table.items():
            if stored.get(key) != value:
                raise ConfigError(
                    f"{out} holds a synthetic dataset with {key} = {stored.get(key)!r}, expected {value!r}; "
                    "choose another folder or repeat the arguments in its synthetic.toml"
                )
    else:
        for folder in folders:
            if (out / folder).exists():
                raise ConfigError(
                    f"{out} holds {folder} but no synthetic.toml; expected an empty folder; choose another"
                )
        out.mkdir(parents=True, exist_ok=True)
        lines = (f"{k} = {str(v).replace(chr(39), chr(34))}\n" for k, v in table.items())
        with replacing(path, f"{path.name}.partial") as partial:
            partial.write_text("".join(lines), encoding="utf-8", newline="\n")
    for folder in folders:
        (out / folder).mkdir(exist_ok=True)


def _child() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent ends its children


_CHUNK = 4


def _run(jobs: list[tuple[Path, Settings, int, int, int]], workers: int) -> Iterator[int]:
    """Run `_performance` on every job, in order; yield the number of clips that each wrote."""
    workers = min(workers, -(-len(jobs) // _CHUNK))
    if workers == 1:
        yield from (_performance(*job) for job in jobs)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_child)
    try:
        yield from pool.map(_performance, *zip(*jobs, strict=True), chunksize=_CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)


@lru_cache(maxsize=256)
def _person(*key: int) -> Person:
    return Person.draw(stream(*key))


def _performance(out: Path, settings: Settings, subject: int, repeat: int, number: int) -> int:
    """Write the missing clips of one performance from all cameras; return their number."""
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
    length = int(stream(seed, LENGTH, *key[:3]).integers(shortest, longest, endpoint=True))
    people = (_person(seed, SUBJECT, subject), _person(seed, PARTNER, *key[:3]))
    bodies = perform(action, *people, stream(seed, TAKE, *key), length)
    scene = build_scene(action, people, bodies, stream(seed, SCENE, *key))
    for view, video, skeleton in missing:
        eye, rng = camera(seed, view, settings.size), stream(seed, SENSOR, *key, view)
        write_video(video, film(scene, eye, seed, view), settings.size)
        tracks = [_sense(eye.see(body), rng) for body in bodies]
        text = _skeleton_text(tracks, eye, rng, stream(seed, FAULT, *key, view))
        with replacing(skeleton, f"{skeleton.name}.partial") as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
    return len(missing)


# ---------------------------------------------------------------------------------------------- skeleton file


def _sense(seen: Floats, rng: Generator) -> tuple[Floats, NDArray[np.int64]]:
    """Measure joints (T, 25, 3) as a depth sensor does: jitter, drift, depth errors, guesses of hidden joints.

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
    # time of flight errs along the ray, which no picture shows: a bias of the whole clip, and drift
    along = (rng.normal(0, _DEPTH_BIAS, (1, joints, 1)) + 3 * drift[..., 2:]) * (seen / seen[..., 2:])
    return seen + drift + along + jitter, np.where(low, _LOW, _TRACKED)


def _faults(rng: Generator, frames: int) -> tuple[set[int], range]:
    """Draw recording faults: frames without a body and frames with a ghost body; usually none."""
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
        shape = tracks[0][0][:1].repeat(frames, 0) * [1, 0.4, 1] + faults.uniform([-1, -0.3, 0.3], [1, 0, 0.8])
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
    """Return the lines of one body, one string per frame; positions are rounded before projection."""
    joints = joints.round(7)
    depth = pinhole(joints, 365.0, 256.0, 212.0)
    across = joints[:, J["shoulder_left"]] - joints[:, J["shoulder_right"]]
    half = (np.pi + np.arctan2(across[:, 2], -across[:, 0]))[:, None].repeat(joints.shape[1], 1) / 2
    # the heading, for every joint: from a body that looks along z; half a turn for one that faces the sensor
    turn = np.stack([np.cos(half), 0 * half, np.sin(half), 0 * half], -1)
    rows = np.concatenate([joints, depth, eye.project(joints), turn, state[..., None]], -1)
    spine = joints[:, J["spine_shoulder"]] - joints[:, J["spine_base"]]
    lean = np.clip(np.stack([spine[:, 0], -spine[:, 2]], -1) / np.abs(spine[:, 1:2] + 1e-6), -1, 1)
    row = "\n%.7f %.7f %.7f %.4f %.4f %.4f %.4f %.6f %.6f %.6f %.6f %d"
    template = f"{identity} 0 1 1 1 1 0 %.6f %.6f 2\n25" + row * joints.shape[1]
    return [template % (*lean[t], *rows[t].ravel()) for t in range(len(joints))]
