"""What is done about a shard whose worker died: try again, then halve until the sample that kills is found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from c2vl_manifests.errors import StageError
from c2vl_pipeline.execution.task import Job, hung, killed

AGAIN = 3
"""Times a lone sample may take its worker with it before it is left out: a chance kill is no proof."""

MOST_DEATHS = 60
"""Deaths over one shard after which the machine, not a sample, is to blame."""


STARTS = 3
"""Attempts to start the processes: one that is killed before it has joined takes the whole cluster with it."""


class Recovery:
    """Decides what follows a worker's death: once again, then by halves, then without the sample that kills.

    Args:
        samples: shard number -> its sample ids.
        marks: shard number -> where a worker that killed itself over a hanging file left word.
    """

    def __init__(self, samples: Callable[[int], list[str]], mark: Callable[[int], Path]) -> None:
        self._samples, self._mark = samples, mark
        self._deaths: Counter[tuple[int, tuple[int, int] | None]] = Counter()
        self._open: Counter[int] = Counter()
        self._poison: dict[int, dict[str, tuple[str, str, str]]] = {}
        self._whole: dict[int, Job] = {}

    def died(self, job: Job) -> list[Job]:
        """Return the jobs that take a dead worker's job's place.

        Raises:
            StageError: workers die whatever they are given.
        """
        n = job.number
        if job.span is None:
            self._whole[n] = job
        if hanging := self._hanging(n):
            self._poison.setdefault(n, {}).update(hanging)
            return [self._with_poison(job)]
        self._deaths[n, job.span] += 1
        if sum(count for (number, _), count in self._deaths.items() if number == n) > MOST_DEATHS:
            raise StageError(
                f"workers died {MOST_DEATHS} times over shard {n}, whatever part of it they were given; look for exhausted memory (fewer --workers, "
                "smaller pipeline.shard_samples) or a broken installation, then run the stage again: finished shards are kept"
            )
        start, stop = job.span or (0, len(self._samples(n)))
        if stop - start > 1:
            if job.span is None and self._deaths[n, None] == 1:
                return [self._with_poison(job)]
            middle = (start + stop) // 2
            self._open[n] += 2 if job.span is None else 1
            return [replace(self._with_poison(job), span=span) for span in ((start, middle), (middle, stop))]
        if self._deaths[n, job.span] >= AGAIN:
            (sample,) = self._samples(n)[start:stop]
            text = f"workers died {AGAIN} times over this sample alone; try it again with retry-failed"
            self._poison.setdefault(n, {})[sample] = killed(text)
        return [self._with_poison(job)]

    def finished(self, job: Job) -> list[Job]:
        """Return what a finished piece makes possible: its whole shard, once no other piece is awaited."""
        if job.span is None:
            return []
        self._open[job.number] -= 1
        return [] if self._open[job.number] else [self._with_poison(self._whole[job.number])]

    def _with_poison(self, job: Job) -> Job:
        return replace(job, poison=dict(self._poison.get(job.number, {})) or job.poison)

    def _hanging(self, number: int) -> dict[str, tuple[str, str, str]]:
        mark = self._mark(number)
        try:
            found = json.loads(mark.read_text("utf-8"))
            text = f"reading {found['name']} took more than {found['seconds']:g} s and was given up"
            hanging = {str(sample): hung(text) for sample in found["samples"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        mark.unlink(missing_ok=True)
        known = self._poison.get(number, {})
        return {} if hanging.keys() <= known.keys() else hanging  # left out already: another cause
