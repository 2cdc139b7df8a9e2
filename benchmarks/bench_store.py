"""Open a packed set of NTU RGB+D 120's size, 113,945 clips, and take random batches of 400: time and memory.

The joints are a sparse file of zeros (5 GB long, next to nothing on disk), so that the bench runs anywhere; what is
timed is the mapping, the system's page cache and the augmentation, not a disk.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from c2vl_manifests.layouts import KINECT_V2
from c2vl_manifests.machine import keep_freed
from c2vl_manifests.packed import FILE, PackedManifest
from c2vl_manifests.recipe_training import InputConfig
from c2vl_manifests.schema import PACKED_INDEX
from c2vl_training.augmentation import draw
from c2vl_training.clips import Clips
from c2vl_training.dataset import PackedDataset
from timing import Parser, measured, report_spent

CLIPS, BATCH, BATCHES = 113_945, 400, 200


def write(folder: Path) -> None:
    """Write a packed folder of random lengths."""
    rng = np.random.default_rng(0)
    lengths = np.clip(30 + rng.gamma(3, 15, CLIPS), 20, 300).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    np.save(folder / "offsets.npy", offsets)
    shape = (int(offsets[-1]), 3, 2, KINECT_V2.joints)
    with (folder / "joints.npy").open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, {"descr": "<f4", "fortran_order": False, "shape": shape})
        handle.truncate(handle.tell() + 4 * int(np.prod(shape)))
    number = np.arange(CLIPS)
    columns = {
        "sample_id": [f"clip{n:06d}" for n in number],
        "frames": lengths,
        "skeleton_status": ["ok"] * CLIPS,
        "vision_rows": [1] * CLIPS,
        "language_rows": [1] * CLIPS,
        "reason": [None] * CLIPS,
        **{f"{kind}_hash": [f"{kind} {n}" for n in number] for kind in ("joints", "vision", "language")},
        "subject": number % 106,
        "view": number % 3,
        "splits": [[("xsub", "train" if n % 2 else "test")] for n in number],
    }
    pq.write_table(pa.table(columns, schema=PACKED_INDEX), folder / "index.parquet", compression="zstd")
    manifest = PackedManifest(
        dataset="synthetic",
        title="113,945 clips",
        fingerprint="0",
        layout={"name": KINECT_V2.name, "names": KINECT_V2.names, "parents": KINECT_V2.parents, "dims": 3},
        classes=(),
        samples=CLIPS,
        frames=shape[0],
        bodies=2,
        slots=1,
        vision_dim=1,
        language_dim=1,
        engines={},
        second_body="zeros",
        gaps=False,
        recipe="debug",
        overrides=(),
    )
    (folder / FILE).write_text(manifest.model_dump_json())


def peak() -> float:
    """Most memory held so far, mapped pages of files included, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def opened(folder: Path) -> Clips:
    """Open the folder and choose the training split."""
    packed = PackedDataset(folder)
    rows = packed.select("xsub", "train", ("vision", "language")).rows
    return Clips(packed, rows, InputConfig(), torch.device("cpu"))


def main() -> None:
    pairs = Parser(__doc__).parse_args().pairs
    torch.set_num_threads(1)
    keep_freed()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = multiprocessing.get_context("spawn").Process(target=write, args=(folder,))
        writer.start()  # its memory is not ours
        writer.join()
        size = (folder / "joints.npy").stat().st_size / 2**20
        before = peak()
        spent = [measured(partial(opened, folder)) for _ in range(pairs)]
        clips = opened(folder)
        report_spent(f"opening {CLIPS:,} clips ({size:,.0f} MB)", spent, megabytes_more=peak() - before)
        generator = torch.Generator().manual_seed(0)
        times = []
        for _ in range(BATCHES):
            rows = torch.randperm(len(clips), generator=generator)[:BATCH]
            draws = draw(BATCH, clips.config, generator)
            times.append(measured(partial(clips.train, rows, draws)))
        report_spent(f"a random batch of {BATCH}, read and augmented, warm", times[BATCHES // 2 :])


if __name__ == "__main__":
    main()
