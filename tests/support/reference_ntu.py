"""NTU RGB+D the slow way: `.skeleton` files made at random, and their assembly one sentence at a time.

Written from the design's description of what the field does (datasets.md, steps 1 to 4), with plain lists and
loops; nothing of the package is used. `make` writes the files, `read` and `assemble` say what must come out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

KINDS = (
    "one", "two", "three", "four", "returning", "short", "all short", "noisy", "empty frames", "overlapping",
    "ties", "zeros", "anything",
)  # fmt: skip


def place(rng: np.random.Generator, frames: int, scale: float, wide: float) -> np.ndarray:
    """One body over some frames, (frames, 25, 3): upright but for a share `wide` of its frames."""
    size = np.where(rng.random((frames, 1, 1)) < wide, (2.0, 0.5, 0.3), (0.3, 1.8, 0.3))
    walk = rng.normal(size=3) + np.cumsum(rng.normal(size=(frames, 1, 3)) * scale, axis=0)
    return rng.random((25, 3)) * size + walk + rng.normal(size=(frames, 25, 3)) * 0.01


def plan(rng: np.random.Generator, kind: str) -> tuple[int, list[tuple[list[int], np.ndarray]]]:
    """Return the number of frames, and of each body when it is seen and its joints."""
    total = int(rng.integers(14, 40))
    people = {"one": 1, "two": 2, "three": 3, "four": 4}.get(kind) or int(rng.integers(1, 5))
    bodies: list[tuple[list[int], np.ndarray]] = []
    if kind == "overlapping":
        total = int(rng.integers(40, 60))
        at = 0
        while at < total - 14:  # one after the other, a few frames apart or shared
            stop = min(at + int(rng.integers(12, 20)), total)
            bodies.append(([*range(at, stop)], place(rng, stop - at, 0.1, 0)))
            at = max(stop + int(rng.integers(-2, 3)), 0)
        when = [*range(int(rng.integers(0, 20)), total)]
        bodies.append((when, place(rng, len(when), float(rng.choice([0.01, 0.5])), 0)))
        return total, bodies
    for _ in range(people):
        start = int(rng.integers(0, 4)) if rng.random() < 0.5 else 0
        when = [*range(start, total if rng.random() < 0.5 else total - int(rng.integers(0, total - start)))]
        if kind in {"returning", "anything"}:
            gap = sorted(rng.integers(0, total, 2).tolist())
            when = [n for n in when if not gap[0] <= n < gap[1]]
        if kind == "all short" or (kind in {"short", "anything"} and rng.random() < 0.5):
            when = when[: int(rng.integers(1, 13 if kind == "short" else 12))]
        wide = float(rng.choice([0.1, 0.6, 0.7, 0.75, 1.0])) if kind in {"noisy", "anything"} else 0.0
        when = when or [int(rng.integers(0, total))]
        joints = place(rng, len(when), float(rng.choice([0.01, 0.1, 1.0])), wide)
        if kind == "zeros":
            joints[rng.random(len(when)) < 0.2] = 0
        bodies.append((when, joints))
    if kind == "ties":  # the same movement again, elsewhere in time
        when, joints = bodies[int(rng.integers(len(bodies)))]
        shift = int(rng.integers(0, 20))
        bodies.append(([n + shift for n in when], joints))
        total = max(total, max(n for seen, _ in bodies for n in seen) + 1)
    if kind in {"empty frames", "anything"}:
        empty = set(rng.integers(0, total, 6).tolist())
        bodies = [
            ([n for n in when if n not in empty], joints[[n not in empty for n in when]]) for when, joints in bodies
        ]
        bodies = [b for b in bodies if b[0]]
        total += int(rng.integers(0, 3))
    return total, bodies


def make(rng: np.random.Generator, kind: str) -> str:
    """Return the text of a `.skeleton` file."""
    total, bodies = plan(rng, kind)
    names = [72057594037931101 + int(n) for n in rng.permutation(100)[: len(bodies)]]
    rest = "277.419 191.8218 %.7g %.7g -0.2059419 0.05349901 0.9692109 -0.1239193 2"
    line = f"%.{rng.integers(3, 10)}g %.7f %.9g {rest}\n"
    pixels = rng.random((25, 2)) * 1000
    at = [dict(zip(when, joints, strict=True)) for when, joints in bodies]
    text = [f"{total}\n"]
    for number in range(total):
        present = [who for who in range(len(bodies)) if number in at[who]]
        text.append(f"{len(present)}\n")
        for who in rng.permutation(present) if len(present) > 1 else present:
            rows = np.concatenate([at[who][number], pixels], axis=1)
            text.append(f"{names[who]} 0 1 1 1 1 0 0.02764709 0.05745083 2\n25\n")
            text.append(line * 25 % tuple(rows.reshape(-1).tolist()))
    return "".join(text)


@dataclass
class Person:
    """One body id: a (25, 3) array a frame, the index of each among the valid frames, and its motion."""

    joints: list[np.ndarray] = field(default_factory=list)
    interval: list[int] = field(default_factory=list)
    motion: float = 0.0


def read(path: Path) -> list[dict[str, np.ndarray]]:
    """Return one dict a frame: body id to its 25 lines of numbers, (25, 12) float32."""
    lines = iter(path.read_text().split("\n"))
    frames = []
    for _ in range(int(next(lines))):
        bodies = {}
        for _ in range(int(next(lines))):
            name = next(lines).split()[0]
            rows = [next(lines).split() for _ in range(int(next(lines)))]
            bodies[name] = np.array([[np.float32(float(token)) for token in row] for row in rows])
        frames.append(bodies)
    return frames


def variance(joints: list[np.ndarray]) -> float:
    """Sum over x, y, z of the variance over all joints of all frames, in float32."""
    return float(np.var(np.concatenate(joints), axis=0).sum())


def good(joints: np.ndarray) -> bool:
    """Whether a body at one instant is no wider than 0.8 of its height."""
    width = joints[:, 0].max() - joints[:, 0].min()
    height = joints[:, 1].max() - joints[:, 1].min()
    return float(width) <= 0.8 * float(height)


def denoised(people: list[Person], happened: Counter[str]) -> list[Person]:
    """Step 2 up to the order by motion."""
    for person in people:
        person.motion = variance(person.joints)
    long = [p for p in people if len(p.joints) > 11]
    happened["short body deleted"] += len(long) < len(people)
    if not long:
        happened["every body short"] += 1
        long = [max(people, key=lambda p: len(p.joints))]
    people = long
    for person in list(people):
        if len(people) == 1:
            break
        fine = [joints for joints in person.joints if good(joints)]
        bad = (len(person.joints) - len(fine)) / len(person.joints)
        if bad >= 0.69754:
            people = [p for p in people if p is not person]
            happened["wide body deleted"] += 1
        elif bad > 0:
            happened["motion lowered"] += variance(fine) < person.motion
            person.motion = min(person.motion, variance(fine))
    if len(people) > 1:
        motions = [p.motion for p in people]
        happened["tie in motion"] += len(set(motions)) < len(motions)
        people = sorted(people, key=lambda p: p.motion, reverse=True)
    return people


def acted(people: list[Person], valid: int, happened: Counter[str]) -> np.ndarray:
    """The rest of step 2: who is actor 1, who joins whom. Returns (valid, 2, 25, 3)."""
    out = np.zeros((valid, 2, 25, 3), np.float32)
    spans = [[people[0].interval[0], people[0].interval[-1]], [0, 0]]
    for number, person in enumerate(people):
        first, last = person.interval[0], person.interval[-1]
        if number == 0:
            actor = 0
        elif min(spans[0][1], last) - max(spans[0][0], first) <= 0:
            actor = 0
            happened["joins actor 1"] += 1
            happened["shares one frame"] += min(spans[0][1], last) == max(spans[0][0], first)
        elif min(spans[1][1], last) - max(spans[1][0], first) <= 0:
            actor = 1
            happened["joins actor 2"] += 1
        else:
            happened["dropped"] += 1
            continue
        for offset, joints in enumerate(person.joints):
            out[first + offset, actor] = joints
        spans[actor] = [min(spans[actor][0], first), max(spans[actor][1], last)]
    return out


def assemble(
    frames: list[dict[str, np.ndarray]], copy: bool, most: int, happened: Counter[str]
) -> tuple[np.ndarray, list[int]]:
    """Return the joints, (T, 2, 25, 3) float32, and the file frame of each; counts what `happened`."""
    valid = [number for number, bodies in enumerate(frames) if bodies]
    happened["empty frame"] += len(valid) < len(frames)
    found: dict[str, Person] = {}
    for index, number in enumerate(valid):
        for name, rows in frames[number].items():
            person = found.setdefault(name, Person())
            person.joints.append(rows[:, :3])
            person.interval.append(person.interval[-1] + 1 if person.interval else index)
            happened["vanished and returned"] += person.interval[-1] != index
    people = list(found.values())
    if len(people) >= 2:
        people = denoised(people, happened)
    out = acted(people, len(valid), happened) if people else np.zeros((0, 2, 25, 3), np.float32)
    numbers = [number for number, rows in zip(valid, out, strict=True) if rows.sum() != 0]
    happened["frame of zeros"] += len(numbers) < len(valid)
    out = np.array([rows for rows in out if rows.sum() != 0], np.float32).reshape(-1, 2, 25, 3)
    origin = next((rows[0, 1].copy() for rows in out if rows[0].any()), np.zeros(3, np.float32))
    for rows in out:
        for who in range(2):
            if rows[who].any():
                rows[who] -= origin
    if len(people) == 1:
        happened["one person"] += 1
        if copy:
            out[:, 1] = out[:, 0]
    return out[:most], numbers[:most]
