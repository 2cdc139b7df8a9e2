"""Clips of packed data as cards: their motion, and crops and captions while the work folder is still around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from c2vl_evaluation.metrics import class_name
from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import C2VLError
from c2vl_manifests.motion import moving
from c2vl_training.dataset import PackedDataset

if TYPE_CHECKING:
    from c2vl_pipeline.browse.cards import Card


def frame_rate(packed: PackedDataset) -> float:
    """Return the frames per second of the recordings; 30 where the dataset's description is not here or has none."""
    try:
        return load_dataset(packed.manifest.dataset).fps or 30
    except C2VLError:
        return 30


def clip_cards(packed: PackedDataset, rows: Sequence[int]) -> list[Card]:
    """Return the cards of some rows of the packed data, in their order, moving as the encoder sees them."""
    from c2vl_pipeline.browse.cards import Card, of_ids

    ids, labels, rate = packed.sample_ids(rows), packed.labels(), frame_rate(packed)
    known = of_ids(packed.folder.parent, ids)
    cards = []
    for row, sample_id in zip(rows, ids, strict=True):
        joints = np.asarray(packed.joints[packed.offsets[row] : packed.offsets[row + 1]]).transpose(0, 2, 3, 1)
        name = class_name(packed.manifest.classes, int(labels[row]))
        card = known.get(sample_id) or Card(sample_id, name)
        seconds = max(len(joints) / rate, 0.5)
        cards.append(replace(card, name=name, bodies=moving(joints, packed.layout), seconds=seconds))
    return cards
