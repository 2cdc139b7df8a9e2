"""Common parts of both Grounding DINO engines: the query's wording, batches of frames, boxes from results."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from c2vl_pipeline.engines import Box, Frame, Image

Results = Sequence[Mapping[str, Any]]
"""Per image: `boxes` (n, 4) in pixels, `scores` (n,) and `text_labels`, as transformers' post-processing returns."""


def phrase(query: str) -> str:
    """Return the query as the model was trained to read it: lower case, one final dot."""
    return query.lower().strip(" .") + "."


def detect(
    frames: Sequence[Frame], parts: Callable[[int], Iterable[slice]], run: Callable[[list[Image]], Results]
) -> list[list[Box]]:
    """Return the boxes of each frame, best first, in pixels of that frame and clipped to it.

    Frames of one size share a batch. Frames of different sizes do not: the backbone's windows mix padding
    into the picture, and a frame's boxes would depend on its neighbours in the batch.

    Args:
        frames: of any sizes.
        parts: cuts n frames of one size into batches.
        run: the network on a batch of images of one size.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, frame in enumerate(frames):
        groups.setdefault(frame.image.shape[:2], []).append(i)
    boxes: list[list[Box]] = [[] for _ in frames]
    for (height, width), members in groups.items():
        for part in parts(len(members)):
            batch = members[part]
            for i, result in zip(batch, run([frames[i].image for i in batch]), strict=True):
                boxes[i] = _boxes(result, height, width)
    return boxes


def _boxes(result: Mapping[str, Any], height: int, width: int) -> list[Box]:
    corners = np.clip(result["boxes"].double().cpu().numpy(), 0, [width, height, width, height])
    scores, labels = result["scores"].tolist(), result["text_labels"]
    if not scores:  # transformers 5 decodes no labels into one empty label
        return []
    boxes = [
        Box(x0, y0, x1, y1, score)
        for (x0, y0, x1, y1), score, label in zip(corners.tolist(), scores, labels, strict=True)
        if x1 > x0 and y1 > y0 and re.search(r"\w", re.sub(r"\[[A-Z]+\]", "", label))
    ]
    return sorted(boxes, key=lambda box: -box.score)
