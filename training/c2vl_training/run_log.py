"""Log of a run: metrics.jsonl, histograms.jsonl and TensorBoard's event file.

All is written immediately by the training thread, so that a full disk raises an ordinary OSError. Lines of epochs that
a resumed run repeats are dropped first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from c2vl_manifests.errors import CheckpointError, naming
from c2vl_manifests.files import open_own
from c2vl_manifests.manifest import commit_text
from c2vl_manifests.reading import from_json, read_bytes

Metrics = dict[str, float]
Counts = dict[str, list[int]]
"""`vision/positive`, `language/negative`, ... -> number of similarities in each of `BINS` equal bins of [-1, 1]."""

METRICS = "metrics.jsonl"
HISTOGRAMS = "histograms.jsonl"
BINS = 80


def histogram_epoch(epoch: int, epochs: int) -> bool:
    """True if the similarities of an epoch are counted: the first, the last, and about ten evenly between."""
    return epoch in {0, epochs - 1} or (epoch + 1) % max(1, epochs // 10) == 0


@torch.no_grad()
def count_similarities(S: Tensor, K: Tensor) -> tuple[list[int], list[int]]:
    """Count the similarities of pairs and of non-pairs in `BINS` bins of [-1, 1] (Fig. 4-5).

    Shape: (B, D), (B, D) -> (BINS,), (BINS,)
    """
    similarity = (S.float() @ K.float().T).clamp_(-1, 1)
    every = similarity.histc(BINS, -1, 1)
    pairs = similarity.diagonal().histc(BINS, -1, 1)
    return pairs.int().tolist(), (every - pairs).int().tolist()


def add(counts: Counts, more: Mapping[str, list[int]]) -> None:
    """Add counts in place."""
    for name, new in more.items():
        old = counts.get(name, [0] * len(new))
        counts[name] = [a + b for a, b in zip(old, new, strict=True)]


def read_metrics(folder: Path) -> list[Metrics]:
    """Return the epochs of a run's metrics.jsonl; a line cut off by a kill is skipped."""
    return _read(folder / METRICS)


def read_histograms(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's histograms.jsonl: `epoch`, `low`, `high`, and counts by kind (see `Counts`)."""
    return _read(folder / HISTOGRAMS)


def _read(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    try:
        texts = read_bytes(path).splitlines() if path.is_file() else []
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; delete it") from error
    for line in texts:
        with suppress(ValueError):
            value = from_json(line)
            lines += [value] if isinstance(value, dict) else []
    return lines


class RunLog:
    """The log of one run; opened by the first epoch written, which drops lines of that epoch and later ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._board: _Board | None = None

    def write(self, epoch: int, metrics: Metrics, counts: Counts) -> None:
        """Write the figures of an epoch, and its histograms if it has any."""
        if self._board is None:
            for path in (self._folder / METRICS, self._folder / HISTOGRAMS):
                if path.is_file():
                    lines = [line for line in _read(path) if line["epoch"] < epoch]
                    commit_text(path, "".join(json.dumps(line) + "\n" for line in lines))
            self._board = _Board(self._folder / "tensorboard", epoch)
        _append(self._folder / METRICS, {"epoch": epoch, **metrics})
        if counts:
            _append(self._folder / HISTOGRAMS, {"epoch": epoch, "low": -1.0, "high": 1.0, **counts})
        self._board.write(epoch, metrics, counts)

    def close(self) -> Metrics:
        """Close TensorBoard's file; return the figures of the last epoch."""
        if self._board is not None:
            self._board.close()
        lines = read_metrics(self._folder)
        return {k: v for k, v in lines[-1].items() if k != "epoch"} if lines else {}


def _append(path: Path, line: dict[str, Any]) -> None:
    with naming(path), open_own(path, "a") as handle:
        handle.write(json.dumps(line) + "\n")


class _Board:
    """TensorBoard's event file. torch's SummaryWriter writes from a thread whose errors cannot be caught."""

    def __init__(self, folder: Path, first: int) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._protos = event_pb2
        folder.mkdir(exist_ok=True)
        number = len(list(folder.iterdir()))
        self._path = folder / f"events.out.tfevents.{int(time.time())}.{number:04d}"
        self._file = open_own(self._path, "wb", buffering=0)
        self._writer = RecordWriter(self._file)
        self._event(file_version="brain.Event:2")
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._event(step=first, session_log=session)  # voids later steps in earlier files

    def _event(self, **content: Any) -> None:
        event = self._protos.Event(wall_time=time.time(), **content)
        with naming(self._path):
            self._writer.write(event.SerializeToString())

    def write(self, epoch: int, metrics: Metrics, counts: Counts) -> None:
        from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        limits = [(n + 1) * 2 / BINS - 1 for n in range(BINS)]
        for tag, bins in counts.items():
            middles = [limit - 1 / BINS for limit in limits]
            histogram = HistogramProto(
                min=-1, max=1, num=sum(bins), bucket_limit=limits, bucket=bins,
                sum=sum(c * m for c, m in zip(bins, middles, strict=True)),
                sum_squares=sum(c * m * m for c, m in zip(bins, middles, strict=True)),
            )  # fmt: skip
            values.append(Summary.Value(tag=f"similarity/{tag}", histo=histogram))
        self._event(step=epoch, summary=Summary(value=values))

    def close(self) -> None:
        self._file.close()
