"""The crop stage with the `skeleton` engine against a bare OpenCV loop over the same frames, one process each."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import cv2
from timing import compare

from c2vl_manifests.config import load_recipe
from c2vl_manifests.datasets import load_dataset
from c2vl_pipeline import crop, index, runner, synth
from c2vl_pipeline.video import plan_frames


def main() -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        raw, work = Path(name) / "raw", Path(name) / "work"
        synth.generate(raw, classes=4, subjects=4, views=2, repeats=1, size=(960, 540))
        recipe = load_recipe("embedded")
        built, _ = index.build(load_dataset("synthetic"), raw, work, recipe.pipeline, recipe="embedded")
        videos = [raw / row["video"] for row in built.table.to_pylist()]

        def ours() -> None:
            shutil.rmtree(work / "crops", ignore_errors=True)
            runner.run(crop.STAGE, work, recipe)

        def usual() -> None:
            for path in videos:
                capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
                wanted = set(
                    plan_frames(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), recipe.pipeline.frames)
                )
                for number in range(max(wanted) + 1):
                    capture.grab()
                    if number in wanted:
                        capture.retrieve()
                capture.release()

        compare(f"crop stage, {len(videos)} clips of 960 x 540", ours, usual)


if __name__ == "__main__":
    main()
