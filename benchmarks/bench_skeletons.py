"""NTU `.skeleton` files: the parser and the skeletons stage against the usual loop over lines.

The usual way: `readlines`, a split and two `np.array` for each joint, a dictionary for each body, every clip
padded to 300 frames in one `.npz`. The files are noise in the format of the real ones: 96 frames, one
clip in five with two bodies.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.execution import runner
from c2vl_pipeline.readers.ntu import assemble_ntu, read_ntu
from c2vl_pipeline.stages import index, skeletons
from timing import PROCESSOR, Parser, compare, in_turn, report

FRAMES = 96


def write(path: Path, seed: int, bodies: int) -> None:
    rng = np.random.default_rng(seed)
    lines = [str(FRAMES)]
    for _ in range(FRAMES):
        lines.append(str(bodies))
        for body in range(bodies):
            rows = rng.normal(size=(25, 11)).astype(np.float32)
            rows[:, :3] = rng.random((25, 3)) * (0.3, 1.8, 0.3) + body
            rows[:, 3:7] = rows[:, 3:7] * 100 + 500
            lines += [f"7205759403793110{body} 0 1 1 1 1 0 0.01226808 -0.2004499 2", "25"]
            lines += [" ".join(map(str, row)) + " 2" for row in rows]
    path.write_text("\r\n".join(lines) + "\r\n", newline="")


def usual_read(path: Path) -> tuple[dict[str, dict[str, list[Any]]], int]:
    with path.open() as handle:
        lines = handle.readlines()
    at, valid = 1, 0
    people: dict[str, dict[str, list[Any]]] = {}
    for _ in range(int(lines[0])):
        bodies = int(lines[at])
        at += 1
        for _ in range(bodies):
            name, joints = lines[at].split()[0], int(lines[at + 1])
            at += 2
            places, pixels = np.zeros((joints, 3), np.float32), np.zeros((joints, 2), np.float32)
            for joint in range(joints):
                fields = lines[at].split()
                places[joint] = np.array(fields[:3], dtype=np.float32)
                pixels[joint] = np.array(fields[5:7], dtype=np.float32)
                at += 1
            person = people.setdefault(name, {"joints": [], "pixels": [], "frames": []})
            person["joints"].append(places)
            person["pixels"].append(pixels)
            person["frames"].append(valid)
        valid += bodies > 0
    return people, valid


def narrow(places: np.ndarray) -> bool:
    x, y = places[:, 0], places[:, 1]
    return bool(np.ptp(x) <= 0.8 * np.ptp(y))


def _read_often(path: Path, pixels: bool) -> None:
    for _ in range(10):
        read_ntu(path, pixels=pixels)


def usual_clip(path: Path) -> np.ndarray:
    people, valid = usual_read(path)
    out = np.zeros((valid, 2, 25, 3), np.float32)
    order = list(people.values())
    if len(order) > 1:
        order = [p for p in order if sum(narrow(places) for places in p["joints"]) > 0.3 * len(p["joints"])]
        order.sort(key=lambda p: -np.var(np.concatenate(p["joints"]), axis=0).sum())
    for actor, person in enumerate(order[:2]):
        for frame, places in zip(person["frames"], person["joints"], strict=True):
            out[frame, actor] = places
    origin = out[0, 0, 1].copy()
    for frame in out:
        for actor in range(2):
            if frame[actor].any():
                frame[actor] -= origin
    return out


def ours_clips(paths: list[Path]) -> int:
    config = SkeletonsConfig()
    return sum(len(assemble_ntu(read_ntu(path, pixels=False), config).joints) for path in paths)


def main() -> None:
    pairs = Parser(__doc__).parse_args().pairs
    with tempfile.TemporaryDirectory() as name:
        raw, work = Path(name) / "raw", Path(name) / "work"
        raw.mkdir()
        (raw / "synthetic.toml").write_text(
            'classes = ["a", "b", "c", "d", "e"]\nsubjects = 8\nviews = 3\nrepeats = 1\n'
        )
        paths = [
            raw / f"S001C{c:03d}P{p:03d}R001A{a:03d}.skeleton"
            for c in (1, 2, 3)
            for p in range(1, 9)
            for a in range(1, 6)
        ]
        for number, path in enumerate(paths):
            write(path, number, 2 if number % 5 == 0 else 1)
        one = next(p for n, p in enumerate(paths) if n % 5)
        size = one.stat().st_size / 1000
        for pixels, what in ((True, "joints and pixels"), (False, "joints")):
            compare(
                f"parse one file, {FRAMES} frames, {size:.0f} kB, {what}",
                partial(_read_often, one, pixels),
                lambda: [usual_read(one) for _ in range(10)],
                pairs,
                judged_by=PROCESSOR,
            )

        recipe = load_recipe("heuristic", ["pipeline.shard_samples=512"])
        index.build(load_dataset("synthetic"), raw, work, recipe.pipeline, recipe="heuristic", allow_missing=True)

        def ours() -> None:
            shutil.rmtree(work / "skeletons", ignore_errors=True)
            runner.run_stage(skeletons.STAGE, work, recipe)

        def usual() -> None:
            padded = np.zeros((len(paths), 300, 2, 25, 3), np.float32)
            for row, path in zip(padded, paths, strict=True):
                clip = usual_clip(path)
                row[: len(clip)] = clip
            np.savez(Path(name) / "usual.npz", x=padded)

        compare(f"the stage, {len(paths)} files to a committed shard", ours, usual, pairs)
        halves = [paths[0::2] * 8, paths[1::2] * 8]
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(ours_clips, halves))
            spent = in_turn(
                {
                    "two": lambda: list(pool.map(ours_clips, halves)),
                    "one": lambda: list(pool.map(ours_clips, [[*halves[0], *halves[1]]])),
                },
                pairs,
            )
            # of wall times alone: two processes spare no work
            report(
                "read and assemble in two processes, the usual way being ours in one",
                *([one.wall for one in times] for times in spent.values()),
            )


if __name__ == "__main__":
    main()
