"""Missing joints of clips."""

from __future__ import annotations

import numpy as np
import pytest

from c2vl_manifests.joints import missing_joints
from c2vl_manifests.layouts import KINECT_V2, LAYOUTS, Layout

COCO = LAYOUTS["coco_17"]


def clip_of(layout: Layout, bodies: int = 2, frames: int = 6) -> np.ndarray:
    """A clip whose origin is zero in its first frame, as readers leave it."""
    shape = (frames, bodies, layout.joints, layout.dims)
    joints = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return joints - joints[0, 0, layout.anchor]


@pytest.mark.parametrize("layout", [COCO, KINECT_V2, LAYOUTS["kinect_v1"]], ids=lambda layout: layout.name)
def test_only_single_joints_of_bodies_that_are_there_are_missing(layout: Layout) -> None:
    clip = clip_of(layout)
    assert not missing_joints(clip, layout).any()
    clip[2:4, 0, 5] = 0
    clip[3, 1] = 0  # nobody
    clip[4, 0, layout.anchor] = 0
    assert np.argwhere(missing_joints(clip, layout)).tolist() == [[2, 0, 5], [3, 0, 5], [4, 0, layout.anchor]]


def test_an_origin_that_never_moves_is_a_place() -> None:
    clip = clip_of(KINECT_V2)
    clip[:, :, KINECT_V2.anchor] = 0  # every frame was centred on it
    assert not missing_joints(clip, KINECT_V2).any()


def test_a_centre_on_which_every_frame_was_centred_is_a_place() -> None:
    clip = clip_of(KINECT_V2)
    clip[:, :, KINECT_V2.centre] = 0
    assert not missing_joints(clip, KINECT_V2).any()
    clip[0, 0, KINECT_V2.centre] = 1
    assert missing_joints(clip, KINECT_V2).sum() == 2 * 6 - 1


def test_a_repeated_body_has_its_origin_where_the_first_one_has_it() -> None:
    clip = clip_of(KINECT_V2, bodies=1)
    assert not missing_joints(np.concatenate([clip, clip], axis=1), KINECT_V2).any()
