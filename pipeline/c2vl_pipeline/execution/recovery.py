"""Recovery from the death of a worker: try again, then halve the shard until the sample that kills is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from c2vl_manifests.errors import StageError
from c2vl_manifests.reading import read_json
from c2vl_manifests.schema import Status
from c2vl_pipeline.execution.task import ShardTask
from c2vl_pipeline.stages.base import MAX_ERROR

ATTEMPTS = 3
"""Times a lone sample may take its worker with it before it is quarantined: a chance kill is no proof."""

MAX_DEATHS = 60
"""Deaths over one shard after which the machine, not a sample, is to blame."""

Quarantine = dict[str, tuple[Status, str, str]]
"""Sample id -> status, error class and text of its rows."""


class FailureBisector:
    """Replaces the task of a dead worker: by itself once, then by its halves, then without the sample that kills.

    Args:
        samples: returns the sample ids of a shard.
        mark: returns the path at which a worker names the samples of a file that hung, or that it reads for others.
    """

    def __init__(self, samples: Callable[[int], list[str]], mark: Callable[[int], Path]) -> None:
        self._samples, self._mark = samples, mark
        self._deaths: Counter[tuple[int, tuple[int, int] | None]] = Counter()
        self._pieces_left: Counter[int] = Counter()
        self._suspected: Counter[str] = Counter()
        self._quarantined: Quarantine = {}
        self._whole: dict[int, ShardTask] = {}

    def died(self, task: ShardTask) -> list[ShardTask]:
        """Return the tasks that replace one whose worker died.

        Raises:
            StageError: workers die with every part of the shard.
        """
        n = task.number
        if task.span is None:
            self._whole[n] = task
        if named := self._named(n):
            self._quarantined.update(named)
            return [self.with_quarantined(task)]
        self._deaths[n, task.span] += 1
        if sum(count for (number, _), count in self._deaths.items() if number == n) > MAX_DEATHS:
            raise StageError(
                f"workers died {MAX_DEATHS} times over shard {n}, with every part of it; look "
                "for exhausted memory (fewer --workers, smaller pipeline.shard_samples) or a broken "
                "installation, then run the stage again: finished shards are kept"
            )
        start, stop = task.span or (0, len(self._samples(n)))
        if stop - start > 1:
            if task.span is None and self._deaths[n, None] == 1:
                return [self.with_quarantined(task)]
            middle = (start + stop) // 2
            self._pieces_left[n] += 2 if task.span is None else 1
            return [replace(self.with_quarantined(task), span=span) for span in ((start, middle), (middle, stop))]
        if self._deaths[n, task.span] >= ATTEMPTS:
            (sample,) = self._samples(n)[start:stop]
            text = f"workers died {ATTEMPTS} times over this sample alone; try it again with `c2vl-pipeline prompts --retry-failed`"
            self._quarantined[sample] = (Status.FAILED, "WorkerDied", text[:MAX_ERROR])
        return [self.with_quarantined(task)]

    def finished(self, task: ShardTask) -> list[ShardTask]:
        """Return the task of the whole shard if a finished piece was its last one, else nothing."""
        if task.span is None:
            return []
        self._pieces_left[task.number] -= 1
        return [] if self._pieces_left[task.number] else [self.with_quarantined(self._whole[task.number])]

    def with_quarantined(self, task: ShardTask) -> ShardTask:
        """Return a task that knows all samples found so far: files are also read for samples of other shards."""
        return replace(task, quarantined={**task.quarantined, **self._quarantined})

    def _named(self, number: int) -> Quarantine:
        """Return the samples of a file that took the worker with it, as its mark names them; empty without one.

        A file that hung is proven (the mark has the seconds); one that was being read for an empty scene is suspected,
        and proven when it is named again.
        """
        mark = self._mark(number)
        try:
            facts = read_json(mark)
            name, seconds = str(facts["name"]), facts.get("seconds")
            if seconds is None:
                text = f"reading {name} for the empty scene of its camera killed workers; try it again with `c2vl-pipeline prompts --retry-failed`"
                status = (Status.FAILED, "WorkerDied", text[:MAX_ERROR])
            else:
                text = f"reading {name} took more than {seconds:g} s and was given up"
                status = (Status.DECODE_ERROR, "Timeout", text[:MAX_ERROR])
            named: Quarantine = {str(sample): status for sample in facts["samples"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        mark.unlink(missing_ok=True)
        self._suspected[name] += 1
        proven = seconds is not None or self._suspected[name] > 1
        # quarantined already: another cause
        return named if proven and not named.keys() <= self._quarantined.keys() else {}
