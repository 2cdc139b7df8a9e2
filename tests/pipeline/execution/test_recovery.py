"""Search for the samples that kill their worker."""

from __future__ import annotations

import json
from collections import Counter, deque
from pathlib import Path

import pytest

from c2vl_manifests.errors import StageError
from c2vl_pipeline.execution.recovery import ATTEMPTS, MAX_DEATHS, FailureBisector
from c2vl_pipeline.execution.task import ShardTask
from c2vl_pipeline.stages.base import hang_mark

IDS = [f"S001C001P001R001A{n:03d}" for n in range(8)]


class Fleet:
    """Runs tasks in order in a world where some samples kill; counts what was made."""

    def __init__(self, poison: set[int], samples: int = 8, chance: int = 0) -> None:
        self.bisector = FailureBisector(lambda n: IDS[:samples], lambda n: Path("/nonexistent"))
        self.poison, self.samples, self.chance, self.deaths = poison, samples, chance, 0
        self.made: Counter[str] = Counter()
        self.left_out: set[str] = set()

    def run(self) -> None:
        task = ShardTask("m", "w", "i", "r", None, 0, "key", {})
        waiting = deque([task])
        pieces: dict[str, str] = {}
        while waiting:
            task = waiting.popleft()
            ids = IDS[slice(*task.span)] if task.span else IDS[: self.samples]
            todo = [s for s in ids if s not in pieces]
            spoiled = [s for s in todo if IDS.index(s) in self.poison and s not in task.quarantined]
            if spoiled or self.chance > 0:
                self.chance -= 1
                self.deaths += 1
                waiting.extendleft(reversed(self.bisector.died(task)))
                continue
            if task.span is None:
                for sample in ids:
                    self.made[sample] += 1
                    if pieces.get(sample) == "left out" or sample in task.quarantined:
                        self.left_out.add(sample)
                return
            pieces |= {s: "left out" if s in task.quarantined else "made" for s in todo}
            waiting.extendleft(self.bisector.finished(task))
        raise AssertionError("the shard was never finished")


@pytest.mark.parametrize("poison", [set(), {0}, {7}, {3, 4}, {0, 2, 5}, set(range(8))], ids=str)
def test_bisection_finds_exactly_the_samples_that_kill(poison: set[int]) -> None:
    fleet = Fleet(poison)
    fleet.run()
    assert fleet.left_out == {IDS[n] for n in poison}
    assert fleet.made == Counter(IDS)


@pytest.mark.parametrize("chance", [1, 2, 3, 5])
def test_deaths_by_chance_leave_no_sample_out(chance: int) -> None:
    fleet = Fleet(set(), chance=chance)
    fleet.run()
    assert fleet.left_out == set()
    assert fleet.deaths == chance


def test_a_lone_sample_is_tried_again_before_it_is_left_out() -> None:
    fleet = Fleet({0}, samples=1)
    fleet.run()
    assert fleet.deaths == ATTEMPTS
    spared = Fleet(set(), samples=1, chance=ATTEMPTS - 1)
    spared.run()
    assert spared.left_out == set()


def test_workers_that_always_die_end_the_run() -> None:
    bisector = FailureBisector(lambda n: IDS, lambda n: Path("/nonexistent"))
    task = ShardTask("m", "w", "i", "r", None, 5, "key", {})
    for _ in range(MAX_DEATHS):
        bisector.died(task)
    with pytest.raises(StageError, match=f"workers died {MAX_DEATHS} times over shard 5.*fewer --workers"):
        bisector.died(task)


def test_a_file_read_for_a_scene_is_left_out_by_all_shards_when_it_is_named_twice(tmp_path: Path) -> None:
    bisector = FailureBisector(lambda n: IDS, lambda n: hang_mark(tmp_path, n))
    tasks = [ShardTask("m", "w", "i", "r", None, n, "key", {}) for n in range(3)]

    def dies(number: int) -> list[ShardTask]:
        hang_mark(tmp_path, number).write_text(json.dumps({"name": "video.avi", "samples": IDS[4:5]}))
        return bisector.died(tasks[number])

    assert dies(0) == [tasks[0]]  # once is chance
    (again,) = dies(1)
    assert again.span is None
    assert {s: (status, error) for s, (status, error, _) in again.quarantined.items()} == {
        IDS[4]: ("failed", "WorkerDied")
    }
    assert bisector.with_quarantined(tasks[2]).quarantined == again.quarantined
    assert dies(2)[0].span is None  # known already: an ordinary death
    assert list(tmp_path.iterdir()) == []


def test_a_mark_of_a_hanging_file_leaves_out_its_samples_at_once(tmp_path: Path) -> None:
    mark = hang_mark(tmp_path, 3)
    mark.write_text(json.dumps({"seconds": 2.5, "name": "video.avi", "samples": IDS[1:3]}))
    bisector = FailureBisector(lambda n: IDS, lambda n: mark)
    (again,) = bisector.died(ShardTask("m", "w", "i", "r", None, 3, "key", {}))
    assert again.span is None
    text = "reading video.avi took more than 2.5 s and was given up"
    assert again.quarantined == dict.fromkeys(IDS[1:3], ("decode_error", "Timeout", text))
    assert not mark.exists()
