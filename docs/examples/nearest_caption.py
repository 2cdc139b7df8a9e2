"""Embed one skeleton file and print the nearest of the captions that the pipeline wrote.

    python nearest_caption.py CLIP WORK RUN

For example: `python nearest_caption.py clip.skeleton work/ntu60 runs/ntu60-xsub-pretrain-0`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from c2vl_pipeline import read_skeleton
from c2vl_training import load_joint_embedding


def rows(stage: Path) -> pa.Table:
    """Read all shards of one stage."""
    return ds.dataset(sorted(map(str, stage.glob("*.parquet")))).to_table()


def nearest(clip: Path, work: Path, run: Path, top: int = 3) -> list[tuple[float, str]]:
    """Return the `top` captions nearest to a clip, each with its cosine."""
    assembled, _ = read_skeleton(clip)  # its joints: (T, M, V, 3)
    space = load_joint_embedding(run)
    embedding = space.skeleton(assembled.joints)  # (D,), of length 1
    vectors = np.stack(rows(work / "embeddings")["language"].to_numpy())
    captions = dict(zip(rows(work / "captions")["caption"].to_pylist(), vectors, strict=True))
    captions.pop(None, None)  # rows without a person
    cosines = space.knowledge("language", np.stack(list(captions.values()))) @ embedding
    texts = list(captions)
    return [(float(cosines[n]), texts[n]) for n in cosines.argsort(descending=True)[:top]]


if __name__ == "__main__":
    for cosine, caption in nearest(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])):
        print(f"{cosine:.2f}  {caption}")
