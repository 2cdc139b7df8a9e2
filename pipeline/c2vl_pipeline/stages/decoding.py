"""How stages open videos: the time limit of a process that may be killed, and the empty scenes of cameras."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from c2vl_manifests.errors import DataError
from c2vl_manifests.schema import Status
from c2vl_pipeline.engines import Image, background
from c2vl_pipeline.readers.video import Deadline, Guard
from c2vl_pipeline.stages.base import Row, ShardContext, hang_mark, row_status

_SCENES = 16
"""Empty scenes held at once; custom videos may have one each, of 6 MB."""


class Decoding:
    """The videos of one shard: guards of the calls into the decoder, and what their cameras see without people."""

    def __init__(self, shard: ShardContext, timeout: float) -> None:
        self._shard = shard
        self._scenes: dict[tuple[str, tuple[int, int]], Image | None] = {}
        self._deadline = Deadline(timeout, hang_mark(shard.folder, shard.number)) if shard.killable else None

    def close(self) -> None:
        """End the thread of the deadline."""
        if self._deadline is not None:
            self._deadline.close()

    def guard(self, relative: str, samples: list[Row]) -> Guard:
        """Return what calls into the decoder run in: nothing, or the deadline of a process that may be killed."""
        if self._deadline is None:
            return nullcontext
        return partial(self._deadline.over, relative, [s["sample_id"] for s in samples])

    def scene(self, camera: str, shape: tuple[int, int]) -> Image | None:
        """Return the camera's empty scene, for engines that need it; its hash goes into the shard's provenance."""
        if (camera, shape) not in self._scenes:
            index = self._shard.index
            samples = index.cameras[camera]
            if len(self._scenes) >= _SCENES:
                del self._scenes[next(iter(self._scenes))]
            made = background.scene(self._shard.folder, index.root, camera, shape, samples, self._reading)
            self._scenes[camera, shape] = made[0] if made else None
            if made:
                name = f"{camera} {shape[1]}x{shape[0]}"
                self._shard.provenance.setdefault("backgrounds", {})[name] = made[1]
        return self._scenes[camera, shape]

    @contextmanager
    def _reading(self, sample: Row) -> Iterator[Guard]:
        """Read the video of a sample, of any shard, for a scene: if that kills this process, the sample is named."""
        name, ids = sample["video"], [sample["sample_id"]]
        if not self._shard.quarantined.isdisjoint(ids):
            raise DataError(f"{name} killed a worker")
        with self._deadline.suspecting(name, ids) if self._deadline else nullcontext():
            yield self.guard(name, [sample])


def nothing_in_range(sample: Row, count: int) -> Row:
    """Return the status of a sample none of whose frames are among the `count` of its video."""
    if count == 0:
        return row_status(Status.DECODE_ERROR, "empty", "no frame of it can be decoded; record or download it again")
    text = f"start_frame {sample['start_frame']} is past the end of the video, which has {count} frames; correct it"
    return row_status(Status.TRUNCATED_VIDEO, "range", text)
