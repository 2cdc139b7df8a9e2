"""Clips of packed data as cards."""

from __future__ import annotations

import shutil

import numpy as np

from c2vl_evaluation.clips import clip_cards
from c2vl_manifests.motion import moving
from c2vl_training.dataset import PackedDataset


def test_clips_move_as_they_are_packed_and_show_the_prompts_of_their_sample(work):
    packed = PackedDataset(work)
    rows = [9, 2, 9]
    cards = clip_cards(packed, rows)
    assert [card.sample_id for card in cards] == packed.sample_ids(rows)
    for row, card in zip(rows, cards, strict=True):
        joints = packed.joints[packed.offsets[row] : packed.offsets[row + 1]].transpose(0, 2, 3, 1)
        assert card.bodies == moving(np.asarray(joints), packed.layout)
        assert card.name == packed.manifest.classes[packed.labels()[row]]
        assert card.command == f"c2vl-pipeline explain {card.sample_id} --work {work.name}"
        assert len(card.crops) == 4
        assert card.captions


def test_clips_without_their_work_folder_still_move(work, tmp_path):
    shutil.copytree(work / "packed", tmp_path / "packed")
    (card,) = clip_cards(PackedDataset(tmp_path), [3])
    assert card.bodies
    assert card.name
    assert (card.command, list(card.crops), card.sample) == ("", [], {})
