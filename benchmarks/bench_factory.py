"""The factory over many small clips: memory of the driver and of the workers while it runs, and time to resume.

The clips are hard links to a few, 64 x 48 pixels and 20 frames each, so that bookkeeping and not decoding is measured.
Memory is read twice a second; flat means that a stage's last quarter needs what its second quarter needed (the first
holds the start of the workers). Then each finished stage is run again, which must decide that nothing is to do.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.execution import runner
from c2vl_pipeline.execution.workers import Workers
from c2vl_pipeline.stages import caption, crop, embed, index, skeletons
from c2vl_pipeline.synthetic import dataset
from timing import report

MIB = 1 << 20
STAGES = (skeletons.STAGE, crop.STAGE, caption.STAGE, embed.STAGE)


def make_clips(raw: Path, count: int) -> None:
    """Write a synthetic dataset of `count` clips (a multiple of 80), of which 80 are rendered."""
    dataset.generate(raw, classes=8, subjects=10, views=1, repeats=1, size=(64, 48), frames=(20, 20))
    subjects = count // 8
    repeats = next(n for n in range(1, subjects + 1) if subjects % n == 0 and subjects // n < 1000)
    for path in [*raw.glob("*/*_rgb.avi"), *raw.glob("*/*.skeleton")]:
        for copy in range(1, count // 80):
            number = copy * 10 + int(path.name[9:12]) - 1
            subject, repeat = number % (subjects // repeats) + 1, number // (subjects // repeats) + 1
            name = f"{path.name[:8]}P{subject:03d}R{repeat:03d}{path.name[16:]}"
            os.link(path, path.with_name(name))
    description = raw / "synthetic.toml"
    text = description.read_text("utf-8").replace("subjects = 10", f"subjects = {subjects // repeats}")
    description.write_text(text.replace("repeats = 1", f"repeats = {repeats}"), encoding="utf-8")


class Memory:
    """Samples the resident memory of this process and of its largest child while a stage runs."""

    def __init__(self) -> None:
        self.driver: list[float] = []
        self.workers: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while True:
            self.driver.append(own.memory_info().rss / MIB)
            sizes = []
            for child in own.children(recursive=True):
                try:
                    sizes.append(child.memory_info().rss / MIB)
                except psutil.Error:
                    continue
            self.workers.append(max(sizes, default=0.0))
            if self._stop.wait(0.5):
                return

    @staticmethod
    def course(sizes: list[float]) -> str:
        """Medians of the second and the last quarter, and the peak."""
        quarter = max(1, len(sizes) // 4)
        early, late = sizes[quarter : 2 * quarter] or sizes, sizes[-quarter:]
        return f"{statistics.median(early):.0f} -> {statistics.median(late):.0f} MiB, peak {max(sizes):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000, help="a multiple of 80; the goal is stated for 20,000")
    parser.add_argument("--shard-samples", type=int, default=64)
    parser.add_argument("--frames", type=int, default=4, help="planned frames a clip")
    parser.add_argument("--stages", nargs="+", default=[stage.name for stage in STAGES])
    options = parser.parse_args()
    settings = [f"pipeline.shard_samples={options.shard_samples}", f"pipeline.frames={options.frames}"]
    recipe = load_recipe("heuristic", [*settings, "pipeline.crop.engine=skeleton"])
    chosen = [stage for stage in STAGES if stage.name in options.stages]
    with tempfile.TemporaryDirectory() as name:
        raw, work = Path(name) / "raw", Path(name) / "work"
        make_clips(raw, options.clips)
        started = time.perf_counter()
        built, _ = index.build(load_dataset("synthetic"), raw, work, recipe.pipeline, recipe="heuristic")
        print(
            f"{built.table.num_rows:,} clips, {len(built.shard_ranges)} shards: indexed in {time.perf_counter() - started:.1f} s",
            flush=True,
        )
        with Workers(2) as workers:
            for stage in chosen:
                started = time.perf_counter()
                with Memory() as memory:
                    made = runner.run_stage(stage, work, recipe, workers=workers)
                print(
                    f"{stage.name}: {made.rows:,} rows in {time.perf_counter() - started:.0f} s {made.statuses}; driver "
                    f"{memory.course(memory.driver)}; larger worker {memory.course(memory.workers)}",
                    flush=True,
                )
        for stage in chosen:
            times = []
            for _ in range(3):
                started = time.perf_counter()
                runner.run_stage(stage, work, recipe)
                times.append(time.perf_counter() - started)
            report(f"{stage.name}: finding that nothing is to do in {options.clips:,} clips", times)


if __name__ == "__main__":
    main()
