"""Test videos: whole, cut, and in containers that miscount them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

FRAMES = 60


def film(path: Path, frames: int = FRAMES, size: tuple[int, int] = (64, 48), codec: str = "MJPG") -> Path:
    """Noise in which frame n is everywhere about 4 n bright, so that a decoded frame tells its number."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 30, size)
    rng = np.random.default_rng(0)
    for number in range(frames):
        writer.write((rng.integers(0, 4, (size[1], size[0], 3)) + 4 * number).astype(np.uint8))
    writer.release()
    return path


def cut(path: Path, share: float = 0.6) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def _images(frames: int, size: tuple[int, int]) -> Iterator[bytes]:
    """Yield frames as JPEG, of which number n is about 4 n bright in the middle."""
    for number in range(frames):
        image = np.full((size[1], size[0], 3), 2 + 4 * number % 250, np.uint8)
        yield cv2.imencode(".jpg", image)[1].tobytes()


def matroska(
    path: Path,
    times: Sequence[int],
    *,
    length: float | None = -1,
    size: tuple[int, int] = (64, 48),
    cover: bool = False,
) -> Path:
    """Motion JPEG in Matroska: a frame at each time (ms), and the length (ms) that the container states, or none.

    With `cover`, a first video track holds one picture of another size.
    """

    def part(ident: int, *content: bytes) -> bytes:
        body = b"".join(content)
        return ident.to_bytes((ident.bit_length() + 7) // 8, "big") + (0x10000000 | len(body)).to_bytes(4, "big") + body

    def track(number: int, width: int, height: int) -> bytes:
        pixels = part(0xB0, width.to_bytes(2, "big")), part(0xBA, height.to_bytes(2, "big"))
        ids = part(0xD7, bytes([number])), part(0x73C5, bytes([number])), part(0x83, b"\1")
        return part(0xAE, *ids, part(0x86, b"V_MJPEG"), part(0xE0, *pixels))

    def block(number: int, time: int, image: bytes) -> bytes:
        stamp = part(0xE7, time.to_bytes(4, "big"))
        return part(0x1F43B675, stamp, part(0xA3, bytes([0x80 | number, 0, 0, 0x80]), image))

    stated = times[-1] + 33 if length == -1 else length
    facts = [part(0x2AD7B1, (1_000_000).to_bytes(4, "big"))]
    if stated is not None:
        facts.append(part(0x4489, struct.pack(">d", stated)))
    tracks = [track(2, 32, 32), track(1, *size)] if cover else [track(1, *size)]
    blocks = [block(1, at, image) for at, image in zip(times, _images(len(times), size), strict=True)]
    if cover:
        blocks.insert(0, block(2, 0, next(_images(1, (32, 32)))))
    head = part(0x1A45DFA3, part(0x4282, b"matroska"), part(0x4287, b"\4"), part(0x4285, b"\2"))
    path.write_bytes(head + part(0x18538067, part(0x1549A966, *facts), part(0x1654AE6B, *tracks), *blocks))
    return path


def patched(path: Path, box: bytes, at: int, value: bytes) -> Path:
    """Overwrite bytes of the first box of a kind in an MP4 file: `at` counts from behind its name."""
    data = bytearray(path.read_bytes())
    start = data.index(box) + 4 + at
    data[start : start + len(value)] = value
    path.write_bytes(data)
    return path


def faststart(path: Path) -> Path:
    """Move the table of frames of an MP4 file to its beginning, as files for the web have it."""
    data, boxes, at = path.read_bytes(), {}, 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        boxes[data[at + 4 : at + 8]] = data[at : at + length]
        at += length
    moov = bytearray(boxes.pop(b"moov"))
    table = moov.index(b"stco") + 8
    for place in range(table + 4, table + 4 + 4 * int.from_bytes(moov[table : table + 4], "big"), 4):
        moov[place : place + 4] = (int.from_bytes(moov[place : place + 4], "big") + len(moov)).to_bytes(4, "big")
    path.write_bytes(boxes.pop(b"ftyp") + moov + b"".join(boxes.values()))
    return path


def edited(path: Path, skip: int) -> Path:
    """Let the edit list of an MP4 file of `film` skip its first frames, as a cut without re-encoding does."""
    return patched(path, b"elst", 12, (skip * 512).to_bytes(4, "big"))


def turned(path: Path, quarters: int) -> Path:
    """Set the rotation tag of an MP4 file: quarter turns clockwise."""
    a, b, c, d = {0: (1, 0, 0, 1), 1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[quarters]
    matrix = struct.pack(">8i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0)
    return patched(path, b"tkhd", 40, matrix)
