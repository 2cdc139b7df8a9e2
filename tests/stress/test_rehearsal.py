"""The raw folder of a rehearsal: the dataset's names, and captions that repeat like the authors'."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

import rehearsal
from c2vl_manifests.datasets import load_dataset


def test_captions_repeat_within_shards_and_over_everything() -> None:
    said = list(rehearsal.captions(2048))
    assert {len(one) for one in said} == {16}

    def saved(size: int) -> float:
        shards = [said[start : start + size] for start in range(0, len(said), size)]
        return 1 - sum(len({text for sample in shard for text in sample}) for shard in shards) / (16 * len(said))

    assert 0.3 < saved(64) < 0.4 < saved(512) < 0.47 < saved(2048) < 0.57


@pytest.mark.slow
def test_files_bear_the_names_of_the_dataset(tmp_path: Path) -> None:
    rehearsal.make_raw(tmp_path / "raw", 40)
    ids = [*islice(load_dataset("ntu120").expected_ids(), 40)]
    assert sorted(path.name[:20] for path in tmp_path.glob("raw/nturgb+d_rgb/*_rgb.avi")) == sorted(ids)
    assert len({path.stat().st_ino for path in tmp_path.glob("raw/*/*.skeleton")}) == rehearsal.TEMPLATES
