"""The crop stage with the `skeleton` engine on 2 workers against 2 simultaneous bare OpenCV loops.

Same 1920 x 1080 MPEG-4 clips, same frames, one decoder thread a process. Both sides are warm: the workers have
made every shard once, the bare loops have read every clip once, and neither's start is in the time. Both decode each
clip to its end: the crop stage compares what is there with what the container advertises. Beside the wall time
stands the ratio of the processor time of all processes concerned, which other work on the machine disturbs less.

Frames per second of processor time follow: of the stage, of the bare loops, and of one `ffmpeg` that decodes the same
files to nothing on one thread, where it is installed.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.execution import runner
from c2vl_pipeline.execution.workers import Workers
from c2vl_pipeline.readers.video import plan_frames
from c2vl_pipeline.stages import crop, index
from c2vl_pipeline.synthetic import dataset
from timing import Parser, count, measured, report_spent

PROCESSES = 2

NOISE = 3.8
"""Grey levels of sensor noise: gives the clips the bits a frame of the real ones (136 GB in 56,880 clips), without
which decoding, and so the bare loop, would be too cheap."""


def make_clips(raw: Path, clips: int) -> None:
    """Write `clips` clips in NTU's naming, size, kind of codec and bitrate; every eighth is rendered, the rest are copies."""
    made = raw.parent / "made"
    noise = np.random.default_rng(0).normal(0, NOISE, (1200, 2100, 3)).round().astype(np.int16)
    dataset.generate(made, classes=4, subjects=1, views=2, repeats=1, size=(1920, 1080), frames=(90, 90), workers=2)
    raw.mkdir()
    for video in sorted((made / "nturgb+d_rgb").iterdir()):
        source, target = cv2.VideoCapture(str(video)), raw / video.name
        writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"XVID"), 30, (1920, 1080))
        number = 0
        while (frame := source.read())[0]:
            top, left = number * 37 % 120, number * 53 % 180
            noisy = frame[1] + noise[top : top + 1080, left : left + 1920]
            writer.write(np.clip(noisy, 0, 255).astype(np.uint8))
            number += 1
        writer.release()
        skeleton = made / "nturgb+d_skeletons" / video.name.replace("_rgb.avi", ".skeleton")
        shutil.copy(skeleton, raw)
        for copy in range(2, clips // 8 + 1):
            for path in (target, raw / skeleton.name):
                shutil.copy(path, raw / path.name.replace("P001", f"P{copy:03d}"))
    shutil.rmtree(made)


def bare(videos: Sequence[str], slots: int) -> None:
    """Read the videos once for each line on standard input and answer with a line: the child's side."""
    cv2.setNumThreads(1)
    for _ in sys.stdin:
        for path in videos:
            capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
            wanted = set(plan_frames(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), slots))
            number = 0
            while capture.grab():
                if number in wanted:
                    capture.retrieve()
                number += 1
            capture.release()
        print("read", flush=True)


class BareLoops:
    """Processes that each hold a part of the videos and read it when told to."""

    def __init__(self, videos: Sequence[Path], slots: int) -> None:
        self._children = [
            subprocess.Popen(
                [sys.executable, __file__, "--bare", str(slots), *map(str, videos[part::PROCESSES])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for part in range(PROCESSES)
        ]

    def __call__(self) -> None:
        """Read all videos once."""
        for child in self._children:
            _pipe(child.stdin).write("\n")
            _pipe(child.stdin).flush()
        for child in self._children:
            if not _pipe(child.stdout).readline():
                raise RuntimeError("a bare loop died")

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            _pipe(child.stdin).close()
            child.wait()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def decode_to_nothing(ffmpeg: str, videos: Sequence[Path], listing: Path) -> None:
    """Have one `ffmpeg` decode all videos, one after another."""
    listing.write_text("".join(f"file '{video}'\n" for video in videos))
    source = ["-threads", "1", "-f", "concat", "-safe", "0", "-i", str(listing)]
    subprocess.run([ffmpeg, "-nostdin", "-v", "error", *source, "-an", "-vsync", "0", "-f", "null", "-"], check=True)


def measure(raw: Path, work: Path, recipe: Recipe, pairs: int) -> None:
    """Time the stage and the bare loops in turn; print medians, the ratio of each pair, and frames per second and core."""
    ffmpeg = shutil.which("ffmpeg")
    built, _ = index.build(load_dataset("ntu60"), raw, work, recipe.pipeline, recipe=recipe.name, only_present=True)
    videos = [raw / name for name in built.table.column("video").to_pylist()]
    usual = BareLoops(videos, recipe.pipeline.frames)
    with Workers(PROCESSES) as workers:

        def ours() -> None:
            runner.run_stage(crop.STAGE, work, recipe, workers=workers)

        def clear() -> None:
            shutil.rmtree(work / "crops", ignore_errors=True)

        times, plain = [], []
        for pair in range(pairs + 1):
            clear()
            times.append((measured(ours), measured(usual)))
            if ffmpeg:
                plain.append(measured(lambda: decode_to_nothing(ffmpeg, videos, work / "videos.txt")))
            if pair == 0:
                times.clear()  # that one warmed all
                plain.clear()
        frames = _frames_decoded(work)
    usual.close()
    sides = {"stage": [own for own, _ in times], "bare loops": [theirs for _, theirs in times], "ffmpeg": plain}
    speeds: dict[str, Any] = {
        f"{name}: frames a second and core": frames / statistics.median(one.processor for one in spent)
        for name, spent in sides.items()
        if spent
    }
    report_spent(
        f"crop stage, {len(videos)} clips of 1920 x 1080, crops up to {recipe.pipeline.crop.max_side} pixels, "
        f"{PROCESSES} workers",
        *zip(*times, strict=True),
        baseline=f"{PROCESSES} bare loops",
        **speeds,
    )
    if not ffmpeg:
        print("  no ffmpeg is installed: its frames a second are not measured")


def _frames_decoded(work: Path) -> int:
    """Return how many frames the videos of a stage's shards have."""
    table = pa.concat_tables(
        pq.read_table(shard, columns=["sample_id", "frames_decoded"]) for shard in (work / "crops").glob("*.parquet")
    )
    return sum(dict(zip(*(column.to_pylist() for column in table.columns), strict=True)).values())


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--clips", type=count, default=24)
    parser.add_argument("--max-side", type=count, nargs="+", default=[224, 672], help="of a stored crop, pixels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        raw = Path(name) / "raw"
        make_clips(raw, options.clips)
        for side in options.max_side:
            settings = [f"pipeline.crop.max_side={side}", "pipeline.shard_samples=4"]
            measure(raw, Path(name) / f"work-{side}", load_recipe("heuristic", settings), options.pairs)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        bare(sys.argv[3:], int(sys.argv[2]))
    else:
        main()
