"""Synthetic actions: bones, sides, kinds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from c2vl_manifests.layouts import KINECT_V2
from c2vl_pipeline.synthetic.actions import ACTIONS, perform
from c2vl_pipeline.synthetic.body import Person
from c2vl_pipeline.synthetic.dataset import action_names


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
def test_bones_keep_their_length_and_feet_stay_above_the_floor(action: Any) -> None:
    people = [Person.draw(np.random.default_rng(seed)) for seed in (1, 2)]
    for body in perform(action, people[0], people[1], np.random.default_rng(5), 40):
        assert body.shape == (40, 25, 3)
        assert body[..., 1].min() > -0.02
        limbs = [
            (c, p) for c, p in KINECT_V2.bones if KINECT_V2.names[c].startswith(("elbow", "knee", "ankle", "head"))
        ]
        for child, parent in limbs:
            length = np.linalg.norm(body[:, child] - body[:, parent], axis=-1)
            assert np.ptp(length) < 1e-6


@pytest.mark.parametrize("name", ["wave", "drink", "kick"])
def test_left_handers_use_the_other_side(name: str) -> None:
    action = next(action for action in ACTIONS if action.name == name)
    right = replace(Person.draw(np.random.default_rng(1)), left_handed=False)
    joint = "ankle" if name == "kick" else "hand"
    moved = {}
    for hand, who in (("right", right), ("left", replace(right, left_handed=True))):
        (body,) = perform(action, who, who, np.random.default_rng(6), 60)
        height = {s: body[:, KINECT_V2.names.index(f"{joint}_{s}"), 1].max() for s in ("left", "right")}
        moved[hand] = max(height, key=lambda side, h=height: h[side])
    assert moved == {"left": "left", "right": "right"}


def test_the_first_eight_actions_cover_the_kinds() -> None:
    first = ACTIONS[:8]
    assert any(action.held for action in first)
    assert any(action.partner for action in first)
    assert {"sit down", "stand up", "wave", "point"} <= set(action_names(8))
    assert len(set(action_names(len(ACTIONS)))) == len(ACTIONS) >= 16
