"""Decoding: which frames of a video stand for a sample, and one sequential pass that reads just those.

Containers often advertise a frame more than they hold, and a file cut short still advertises all of them while
OpenCV raises nothing: so both counts are kept, and a frame counts as missing only when it was planned and the
decoder could not give it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from c2vl_manifests.errors import DataError

Image = npt.NDArray[np.uint8]


def plan_frames(start: int, end: int, slots: int) -> list[int]:
    """Return `slots` frame numbers in [start, end): the centres of equal segments.

    *Reading:* the paper does not say which frames it crops; the authors' released captions have 16 a sample.
    A range shorter than `slots` repeats frames, so that every sample has the same number of rows.
    """
    span = max(end - start, 0)
    return [start + min(int((slot + 0.5) * span / slots), span - 1) for slot in range(slots)] if span else []


class Video:
    """One opened video, read forward once.

    Raises:
        DataError: the file is not a video that OpenCV can open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # One thread: workers are the parallelism, and hidden decoder threads would spoil their scaling.
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not self._capture.isOpened():
            raise DataError(
                f"{path}: OpenCV cannot open it as a video ({path.stat().st_size} bytes); download it again"
            )
        self.advertised = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        self.decoded = 0

    def count(self) -> int:
        """Return how many frames to plan over: what the container says, or a full count where it says nothing."""
        if self.advertised == 0:
            with Video(self.path) as other:
                while other._capture.grab():
                    other.decoded += 1
                self.advertised = other.decoded
        return self.advertised

    def frames(self, wanted: Iterable[int]) -> Iterator[tuple[int, Image]]:
        """Yield (number, uint8 RGB (H, W, 3)) of the wanted frames in order; stops where the video ends."""
        numbers = sorted(set(wanted))
        for number in numbers:
            while self.decoded <= number:
                if not self._capture.grab():
                    return
                self.decoded += 1
            ok, image = self._capture.retrieve()
            if not ok:
                return
            yield number, np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exc: object) -> None:
        self._capture.release()


def shape_image(image: Image, aspect: str) -> Image:
    """Apply an aspect policy: `pad` and `squash` give a square, `center_crop` leaves the cut to the model's processor.

    `pad` fills with CLIP's mean colour, which becomes zero after normalisation.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    if aspect == "center_crop" or height == width:
        return image
    if aspect == "squash":
        return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    square = np.full((side, side, 3), (123, 117, 104), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def encode_jpeg(image: Image, quality: int) -> bytes:
    """Encode RGB pixels as JPEG."""
    ok, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not ok:
        raise DataError(f"OpenCV could not encode a crop of shape {image.shape}")
    return bytes(data.tobytes())


def decode_jpeg(data: bytes) -> Image:
    """Decode a stored crop to RGB pixels."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"a stored crop of {len(data)} bytes is not a JPEG; run the crop stage again")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
