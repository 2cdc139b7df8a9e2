"""Journal of a captioner: answers of an unfinished shard, so that a killed run asks for none of them again."""

from __future__ import annotations

import json
import time
import uuid
import zlib
from collections.abc import Iterable
from io import BufferedWriter

from c2vl_manifests.errors import naming
from c2vl_manifests.manifest import sync
from c2vl_manifests.reading import MOST_FILE, from_json, read_bytes
from c2vl_pipeline.engines import Caption
from c2vl_pipeline.stages.base import ShardContext


class Journal:
    """Answers of an unfinished shard, one per line with a checksum; torn or damaged lines are ignored.

    Each process writes a new file and reads those of all: `.shard-00012-<key>-<random>.journal`. They are removed when
    the shard is committed, and by a later run under another key.
    """

    SYNC_EVERY = 5.0
    """Seconds between two syncs to disk: what a power cut loses; a killed process loses nothing that was written."""

    def __init__(self, shard: ShardContext) -> None:
        stem = f".shard-{shard.number:05d}-{shard.key[:12]}-"
        self.answers: dict[tuple[str, int], Caption] = {}
        for path in sorted(shard.folder.glob(f"{stem}*.journal")):
            self.answers |= dict(self._read(read_bytes(path, MOST_FILE)))
        self._path = shard.folder / f"{stem}{uuid.uuid4().hex[:12]}.journal"
        self._file: BufferedWriter | None = None
        self._synced = time.monotonic()

    @staticmethod
    def _read(data: bytes) -> Iterable[tuple[tuple[str, int], Caption]]:
        for line in data.split(b"\n"):
            checksum, _, text = line.partition(b" ")
            if not text or checksum != b"%08x" % zlib.crc32(text):
                continue
            try:
                sample_id, slot, answer, tokens = from_json(text)
                answered = (str(sample_id), int(slot)), Caption(str(answer), tokens)
            except (ValueError, TypeError):
                continue
            yield answered

    def write(self, answered: Iterable[tuple[tuple[str, int], Caption]]) -> None:
        """Append the answers of one batch."""
        with naming(self._path):
            self._write(answered)

    def _write(self, answered: Iterable[tuple[tuple[str, int], Caption]]) -> None:
        if self._file is None:
            self._file = self._path.open("xb")
        for (sample_id, slot), answer in answered:
            text = json.dumps([sample_id, slot, answer.text, answer.tokens]).encode()
            self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self._file.flush()
        if time.monotonic() - self._synced > self.SYNC_EVERY:
            sync(self._file.fileno())
            self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()
