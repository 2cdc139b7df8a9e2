"""Videos: which frames represent a sample, one sequential pass that decodes them, and crops as JPEG.

The number of frames that a container advertises is a guess: often one more than there are, with a variable frame rate
or an edit list many more or fewer, or none at all. A truncated file still advertises all, and OpenCV raises nothing.
So callers plan frames by the advertised number, which costs one pass where it is right, and record both counts. Where
the counts differ (`Video.miscounted`), they plan again over the frames that exist.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from c2vl_manifests.errors import DataError
from c2vl_manifests.files import open_own

# damaged files become rows; OpenCV and FFmpeg would also print a line for each
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)

Image = npt.NDArray[np.uint8]


def plan_frames(start: int, end: int, slots: int) -> list[int]:
    """Return `slots` frame numbers in [start, end): the centres of equal segments.

    *Reading:* the paper does not say which frames it crops; the authors' released captions have 16 per sample.
    A range shorter than `slots` repeats frames, so that every sample has the same number of rows.
    """
    span = max(end - start, 0)
    return [start + min(int((slot + 0.5) * span / slots), span - 1) for slot in range(slots)] if span else []


class Deadline:
    """Kill this process if a call into the decoder takes too long: nothing gentler ends a native call.

    For worker processes, which are restarted. A file records what hung.

    Args:
        seconds: limit for a single call (opening, reading on to the next frame).
        mark: file that receives the seconds, the video's name and the sample ids, as JSON.
    """

    _POLL = 0.2

    def __init__(self, seconds: float, mark: Path) -> None:
        self._seconds, self._mark = seconds, mark
        self._due: tuple[float, dict[str, Any]] | None = None
        self._stop = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def over(self, name: str, samples: Iterable[str]) -> Iterator[None]:
        """Limit the time of the calls in this context."""
        self._due = time.monotonic() + self._seconds, {"name": name, "samples": list(samples)}
        try:
            yield
        finally:
            self._due = None

    @contextmanager
    def suspecting(self, name: str, samples: Iterable[str]) -> Iterator[None]:
        """Name a video in the mark while it is read, without seconds: if it crashes this process, it is to blame."""
        with suppress(OSError):
            self._note({"name": name, "samples": list(samples)})
        try:
            yield
        finally:
            self._mark.unlink(missing_ok=True)

    def _note(self, facts: dict[str, Any]) -> None:
        with open_own(self._mark, "w") as mark:
            json.dump(facts, mark)

    def close(self) -> None:
        """End the watching thread."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(self._POLL):
            due = self._due
            if due is not None and time.monotonic() > due[0]:
                with suppress(OSError):  # full disk: bisection then finds the samples
                    self._note({"seconds": self._seconds} | due[1])
                os.kill(os.getpid(), signal.SIGKILL)


Guard = Callable[[], AbstractContextManager[None]]

_MOST_PIXELS = 1 << 27
"""Of a frame, which takes 3 bytes for each; 8K has 33 million."""
_MOST_FRAMES = 10_000_000
"""A container that advertises more than four days of frames states no number."""


class Video:
    """One opened video, read forward once.

    Args:
        path: of the file.
        guard: makes the context of each call into the decoder (see `Deadline.over`).

    Raises:
        DataError: the file is not a video that OpenCV can open.
    """

    def __init__(self, path: Path, guard: Guard = nullcontext) -> None:
        self.path, self._guard = path, guard
        with guard():
            # one thread: the workers are parallel, and decoder threads would spoil their scaling
            self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not self._capture.isOpened():
            raise DataError(
                f"{path}: OpenCV finds no video in it that it can decode ({path.stat().st_size} bytes); if a player shows "
                "one, convert it to MP4 (H.264), else download it again"
            )
        width, height = (int(self._capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > _MOST_PIXELS:
            self._capture.release()
            raise DataError(f"{path}: frames of {width} x {height} pixels; expected up to {_MOST_PIXELS:,} pixels")
        self.shape = height, width
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.advertised = int(count) if 0 < count <= _MOST_FRAMES else 0
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = round(fps, 3) if 0 < fps < 10_000 else None
        self.decoded = 0
        self._decoded_bgr: Image | None = None

    def count(self) -> int:
        """Return the advertised number of frames; if the container states none, decode and count them."""
        if self.advertised == 0:
            with Video(self.path, self._guard) as other:
                self.advertised = other.drain()
        return self.advertised

    def drain(self) -> int:
        """Read to the end and return the total number of decoded frames."""
        while self._grab():
            pass
        return self.decoded

    def miscounted(self, planned: Sequence[int] = ()) -> bool:
        """Return whether a plan by the advertised number must be made again over `decoded` frames; after `drain`.

        One frame more or less is common, moves no planned frame by more than one, and is left.
        """
        return abs(self.advertised - self.decoded) > 1 or (bool(planned) and max(planned) >= self.decoded)

    def _grab(self) -> bool:
        with self._guard():
            there = self._capture.grab()
        self.decoded += there
        return bool(there)

    def frames(self, wanted: Iterable[int], *, lent: bool = False) -> Iterator[tuple[int, Image]]:
        """Yield (number, uint8 RGB (H, W, 3)) of the wanted frames in order, until the video ends.

        With `lent`, yield the decoder's own BGR buffer, valid until the next frame: converting a whole frame costs a
        fifth of decoding it, which callers that need only a part save.
        """
        numbers = sorted(set(wanted))
        for number in numbers:
            while self.decoded <= number:
                if not self._grab():
                    return
            with self._guard():
                # one buffer for all frames: allocating 6 MB costs more than filling it
                ok, image = self._capture.retrieve(self._decoded_bgr)
            if not ok:
                return
            self._decoded_bgr = np.asarray(image, np.uint8)
            yield (number, self._decoded_bgr if lent else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8))

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exc: object) -> None:
        self._capture.release()


FILL = (122, 116, 104)
"""CLIP's mean of (0.48145466, 0.4578275, 0.40821073) in grey levels, rounded down."""


def shape_image(image: Image, aspect: str) -> Image:
    """Apply an aspect policy: `pad` and `squash` give a square, `center_crop` leaves cropping to the model's processor.

    `pad` fills with CLIP's mean colour, which becomes nearly zero after normalisation.

    *Reading:* the paper does not say how a crop becomes a square. LLaVA-1.5 was trained with this padding, with the
    mean colour rounded down: (122, 116, 104), not the nearest (123, 117, 104).
    """
    height, width = image.shape[:2]
    side = max(height, width)
    if aspect == "center_crop" or height == width:
        return image
    if aspect == "squash":
        return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    square = np.full((side, side, 3), FILL, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def limit_side(image: Image, most: int) -> Image:
    """Reduce an image whose longer side has more than `most` pixels to that size."""
    side = max(image.shape[:2])
    if side <= most:
        return image
    size = (max(1, round(image.shape[1] * most / side)), max(1, round(image.shape[0] * most / side)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def encode_jpeg(image: Image, quality: int, *, bgr: bool = False) -> bytes:
    """Encode RGB (or BGR) pixels as JPEG."""
    return _encoded(image if bgr else cv2.cvtColor(image, cv2.COLOR_RGB2BGR), ".jpg", cv2.IMWRITE_JPEG_QUALITY, quality)


def encode_png(image: Image) -> bytes:
    """Encode RGB pixels as PNG, which loses nothing."""
    return _encoded(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), ".png")


def _encoded(bgr: npt.NDArray[Any], suffix: str, *settings: int) -> bytes:
    ok, data = cv2.imencode(suffix, bgr, settings)
    if not ok:
        raise DataError(f"OpenCV could not encode a crop of shape {bgr.shape}")
    return bytes(data.tobytes())


def decode_jpeg(data: bytes) -> Image:
    """Decode a stored crop to RGB pixels."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # more pixels than OPENCV_IO_MAX_IMAGE_PIXELS
        image = None
    if image is None:
        raise DataError(f"a stored crop of {len(data)} bytes is not a JPEG, or too large; run the crop stage again")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
