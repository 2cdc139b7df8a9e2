"""Engines without weights: real signals computed from the data, so that the whole pipeline runs on a laptop.

Every manifest and report names them; they are no substitute for a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from c2vl_manifests.engine import EngineSpec
from c2vl_pipeline.engines import Array, Box, Detector, Encoder, Frame, Image, Options, TextVectors, checked_options


class _Skeleton(Options):
    grow: float = Field(default=0.08, ge=0, le=10)


class _Motion(Options):
    background: Literal["camera", "black"] = "camera"
    threshold: int = Field(default=28, ge=0, le=255)
    """Grey levels that count as a difference."""
    min_area: float = Field(default=0.004, ge=0, le=1)
    """Share of the frame."""


class _Classical(Options):
    image_dim: int = Field(default=256, ge=1)
    text_dim: int = Field(default=256, ge=1)
    seed: int = Field(default=0, ge=0)


class SkeletonDetector(Detector):
    """Finds people by their joints in the image, which NTU's files contain and own 2D joints are: without a model.

    Joints end at the wrist of a hand and the middle of the head, so each box grows by `grow` of its height.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._options = checked_options(spec, _Skeleton)

    def detect(self, frames: Sequence[Frame], query: str) -> list[list[Box]]:
        """Return one box per body, the largest first; the query is not needed."""
        return [self._boxes(frame) for frame in frames]

    def _boxes(self, frame: Frame) -> list[Box]:
        height, width = frame.image.shape[:2]
        boxes = []
        for joints in frame.joints if frame.joints is not None else ():
            seen = joints[np.isfinite(joints).all(axis=1)]
            if len(seen) < 2:
                continue
            grow = self._options.grow * np.ptp(seen[:, 1])
            (x0, y0), (x1, y1) = seen.min(axis=0) - grow, seen.max(axis=0) + grow
            x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)
            if x1 - x0 >= 2 and y1 - y0 >= 2:
                boxes.append(Box(float(x0), float(y0), float(x1), float(y1), 1.0))
        return sorted(boxes, key=lambda b: -(b.x1 - b.x0) * (b.y1 - b.y0))

    def describe(self) -> Mapping[str, Any]:
        """Return the facts that the stage's manifest records."""
        return {"backend": "skeleton", **self._options.model_dump()}


class MotionDetector(Detector):
    """Finds people as the foreground of a fixed camera.

    `background = "camera"`: pixels that differ from the camera's empty scene (`empty_scene`, built once from many
    frames). `background = "black"`: pixels that are not black, for recordings of a person on plain black (a median
    over such a clip would absorb a person who stands still).
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._options = checked_options(spec, _Motion)

    def detect(self, frames: Sequence[Frame], query: str) -> list[list[Box]]:
        """Return boxes of the foreground's components, the largest first; the query is not needed."""
        return [self._boxes(frame) for frame in frames]

    def _boxes(self, frame: Frame) -> list[Box]:
        image = frame.image
        height, width = image.shape[:2]
        if self._options.background == "black":
            difference = image.max(axis=2)
        else:
            scene = frame.background()
            if scene is None or scene.shape != image.shape:
                raise ValueError(
                    f"camera {frame.camera!r} has no empty scene of {width} x {height} pixels: none of its clips can be "
                    "read in this size from its first frame on; convert this clip to one size, or set another "
                    "pipeline.crop.engine"
                )
            difference = cv2.absdiff(image, scene).max(axis=2)
        mask = (cv2.GaussianBlur(difference, (5, 5), 0) > self._options.threshold).astype(np.uint8)
        reach = max(3, height // 40) | 1
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        # clothes of the background's colour split a person; closing upright joins the parts
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3 * reach, reach), np.uint8))
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
        least = self._options.min_area * height * width
        blobs = sorted((s for s in stats[1:] if s[cv2.CC_STAT_AREA] >= least), key=lambda s: -s[cv2.CC_STAT_AREA])
        # a second person is of the first one's size; specks are not people
        return [
            Box(float(x), float(y), float(x + w), float(y + h), float(min(1.0, area / (w * h))))
            for x, y, w, h, area in blobs
            if area >= 0.25 * blobs[0][cv2.CC_STAT_AREA]
        ]

    def describe(self) -> Mapping[str, Any]:
        """Return the facts that the stage's manifest records."""
        return {"backend": "motion", **self._options.model_dump()}


def empty_scene(frames: Sequence[Image], tolerance: int = 18, side: int = 192) -> Image:
    """Return what a fixed camera sees when nobody is there: at each place, the value that keeps coming back.

    A median fails where somebody stands for more than half of the time. But every visitor covers a place once,
    and between any two visitors the background returns; so of all values a place ever had, the one with the most
    separate returns is chosen (then the one seen most often), and the frames that agree with it are averaged by
    their median.

    Args:
        frames: in order of time, one shape (H, W, 3); some tens of them.
        tolerance: grey levels within which two values are the same.
        side: pixels of the longer side at which the choice is made.
    """
    height, width = frames[0].shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    # planes instead of pixels: OpenCV compares them ten times as fast
    small = [np.concatenate(cv2.split(cv2.resize(f, size, interpolation=cv2.INTER_AREA))) for f in frames]
    count = len(small)
    best = np.full(size[::-1], -1, np.int32)
    chosen = np.zeros((count, *best.shape), bool)
    for frame in small:
        planes = (cv2.absdiff(frame, s).reshape(3, *best.shape) for s in small)
        same = np.stack([cv2.blur(cv2.max(cv2.max(a, b), c), (5, 5)) for a, b, c in planes]) <= tolerance
        # two frames without the value end a visit; one is a flicker at somebody's edge
        begins = same.copy()
        begins[1:] &= ~same[:-1]
        begins[2:] &= ~same[:-2]
        score = begins.sum(axis=0) * count + same.sum(axis=0)
        better = score > best
        best[better] = score[better]
        chosen[:, better] = same[:, better]
    rows = np.minimum(np.arange(height) * size[1] // height, size[1] - 1)
    columns = np.repeat(np.minimum(np.arange(width) * size[0] // width, size[0] - 1), 3)
    left_out = np.where(chosen, 0, 255).astype(np.uint8)
    kept = chosen.sum(axis=0)
    swaps = list(_sorting_network(count))
    scene = np.empty_like(frames[0])
    for row in range(size[1]):  # all pixels of a strip that share their choices: values left out become 255, the last
        strip = slice(*np.searchsorted(rows, (row, row + 1)))
        values = [f[strip].reshape(-1, 3 * width) | left_out[n, row, columns] for n, f in enumerate(frames)]
        for low, high in swaps:
            values[low], values[high] = np.minimum(values[low], values[high]), np.maximum(values[low], values[high])
        middle = kept[row, columns][None, None]
        lower, upper = (np.take_along_axis(np.stack(values), at // 2, 0)[0] for at in (middle - 1, middle))
        scene[strip] = (lower // 2 + upper // 2 + (lower & upper & 1)).reshape(-1, width, 3)
    return scene


def _sorting_network(count: int) -> Iterator[tuple[int, int]]:
    """Yield the comparisons of Batcher's odd-even merge sort, (lower place, higher place), for `count` values.

    Whole images go through them at once: ten times as fast as a partition of each pixel's values.
    """
    sizes = [1 << n for n in range((count - 1).bit_length())]
    for merged in sizes:
        for step in (s for s in reversed(sizes) if s <= merged):
            for start in range(step % merged, count - step, 2 * step):
                for low in range(start, min(start + step, count - step)):
                    if low // (2 * merged) == (low + step) // (2 * merged):
                        yield low, low + step


class Classical(Encoder):
    """Encodes crops by HOG and captions by hashed word n-grams, both without any training.

    The histogram of oriented gradients of the crop at 64 x 64 (1,764 values) is brought to `image_dim` by a fixed
    random projection, which keeps inner products; n-grams of one and two words are hashed into `text_dim`.
    """

    _SIDE = 64

    def __init__(self, spec: EngineSpec) -> None:
        self._options = checked_options(spec, _Classical)
        self.image_dim, self.text_dim = self._options.image_dim, self._options.text_dim
        side = (self._SIDE, self._SIDE)
        self._hog = cv2.HOGDescriptor(side, (16, 16), (8, 8), (8, 8), 9)
        rng = np.random.default_rng(self._options.seed)
        shape = (int(self._hog.getDescriptorSize()), self.image_dim)
        self._projection = rng.standard_normal(shape) / np.sqrt(self.image_dim)

    def encode_images(self, images: Sequence[Image]) -> Array:
        """Return L2-normalised vectors of n images, (n, image_dim)."""
        if not images:
            return np.zeros((0, self.image_dim), np.float32)
        small = [cv2.resize(i, (self._SIDE, self._SIDE), interpolation=cv2.INTER_AREA) for i in images]
        grey = [cv2.cvtColor(i, cv2.COLOR_RGB2GRAY) for i in small]
        descriptors = [np.asarray(self._hog.compute(i)).reshape(-1) for i in grey]
        # row by row: a product of matrices rounds by the number of rows, and a row must not depend on its batch
        return _normalised(np.stack([d @ self._projection for d in descriptors]))

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Return L2-normalised vectors of n texts, (n, text_dim); tokens are words, nothing is truncated."""
        from sklearn.feature_extraction.text import HashingVectorizer

        words = np.array([len(t.split()) for t in texts], np.int32)
        if not texts:
            return TextVectors(np.zeros((0, self.text_dim), np.float32), words, np.zeros(0, bool))
        hashed = HashingVectorizer(n_features=self.text_dim, ngram_range=(1, 2)).transform(texts)
        return TextVectors(_normalised(hashed.toarray()), words, np.zeros(len(texts), bool))

    def describe(self) -> Mapping[str, Any]:
        """Return the facts that the stage's manifest records."""
        return {"backend": "classical", **self._options.model_dump()}


def _normalised(vectors: npt.NDArray[Any]) -> Array:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), np.float32)
