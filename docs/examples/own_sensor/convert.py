"""Convert recordings of a custom sensor to a table of samples that the `generic` dataset reads.

    python convert.py RAW OUT

RAW holds one `.skeleton` file and one `_rgb.avi` video per clip, as `c2vl-pipeline synth --out RAW` makes them; here
they stand for a camera with a 2D pose estimator. Replace `read_clip` to read the files of another sensor.

OUT receives what the pipeline needs:

    samples.csv     one row per clip
    poses/*.npy     joints, (frames, people, joints, 2): x and y in image heights, y up, zero where nobody is seen
    mine.toml       the joint layout
    videos          a link to RAW, because paths in samples.csv are relative to its folder
"""

from __future__ import annotations

import csv
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from c2vl_manifests.layouts import KINECT_V2
from c2vl_pipeline.readers.ntu import read_ntu

LAYOUT = Path(__file__).with_name("mine.toml")
IMAGE_HEIGHT = 240
PEOPLE = 2


def read_clip(file: Path) -> npt.NDArray[np.float32]:
    """Return the pixels of all joints of the layout, zero where nobody is seen.

    Shape: (frames, people, joints, 2).
    """
    order = [KINECT_V2.names.index(name) for name in tomllib.loads(LAYOUT.read_text())["joints"]]
    clip = read_ntu(file)
    pixels = np.zeros((clip.frames, PEOPLE, len(order), 2), np.float32)
    for person, track in enumerate(list(clip.tracks.values())[:PEOPLE]):
        assert track.pixels is not None  # read_ntu leaves them out if it is asked to
        pixels[track.frames, person] = track.pixels[:, order]
    return pixels


def to_image_heights(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scale pixels to image heights and turn y to point up; people and joints that are not seen stay zero."""
    seen = pixels.any(axis=3, keepdims=True)
    joints = np.where(seen, pixels / IMAGE_HEIGHT * [1, -1] + [0, 1], 0)
    return joints.astype(np.float32)


def convert(raw: Path, out: Path) -> int:
    """Write `out` from the recordings in `raw` and return the number of clips."""
    (out / "poses").mkdir(parents=True, exist_ok=True)
    shutil.copy(LAYOUT, out)
    if not (out / "videos").exists():
        (out / "videos").symlink_to(raw.resolve())
    rows = []
    for file in sorted(raw.rglob("*.skeleton")):
        name = file.stem  # SsssCcccPpppRrrrAaaa
        np.save(out / "poses" / f"{name}.npy", to_image_heights(read_clip(file)))
        subject = int(name[9:12])
        rows.append(
            {
                "sample_id": name,
                "video": Path("videos") / next(raw.rglob(f"{name}_rgb.avi")).relative_to(raw),
                "skeleton": f"poses/{name}.npy",
                "label": int(name[17:20]),
                "subject": subject,
                "view": int(name[5:8]),
                "split_subjects": "train" if subject % 2 else "test",
            }
        )
    with (out / "samples.csv").open("w", newline="") as handle:
        table = csv.DictWriter(handle, rows[0])
        table.writeheader()
        table.writerows(rows)
    return len(rows)


if __name__ == "__main__":
    print(f"{convert(Path(sys.argv[1]), Path(sys.argv[2]))} clips")
