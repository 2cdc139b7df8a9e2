"""Progress of a stage: finished shards, and what the processes note of those that they are making."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress

from c2vl_manifests.events import Progress
from c2vl_manifests.schema import Status
from c2vl_pipeline.stages.base import Stage, in_the_making
from c2vl_pipeline.stages.speed import Speed, rates, summed
from c2vl_pipeline.workspace import Workspace

WATCH_EVERY = 10.0
"""Seconds after which progress within shards is shown."""


@contextmanager
def watching(count: Callable[[], int], show: Callable[[], None]) -> Iterator[None]:
    """Show progress within shards now and then, where the count has changed: one may take an hour."""
    stop = threading.Event()

    def watch() -> None:
        shown = 0
        while not stop.wait(WATCH_EVERY):
            with suppress(Exception):  # the main thread meets a closed terminal too
                if (made := count()) not in {0, shown}:
                    shown = made
                    show()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def progress(
    stage: Stage, index: Workspace, own: Set[int], finished: Set[int], statuses: Mapping[str, int], speed: Speed
) -> Progress:
    """Return how many samples are made of a run's own shards, in part in unfinished ones; its statuses but ok, and speed."""
    made, speeds = in_the_making(index.work / stage.name, own - finished)
    sizes = [stop - start for start, stop in index.shard_ranges]
    done = made + sum(sizes[n] for n in finished)
    bad: dict[str, float | int | str] = {status: count for status, count in statuses.items() if status != Status.OK}
    return Progress(stage.name, done, sum(sizes[n] for n in own), info=bad | rates(summed([speed, *speeds])))
