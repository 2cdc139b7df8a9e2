"""Graphs of joints: adjacency and distances."""

from __future__ import annotations

import numpy as np
import pytest

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.layouts import KINECT_V1, KINECT_V2, Layout
from c2vl_training.encoders.graph import adjacency, directed, distances, hops_from_centre
from support.layouts import EACH, mirrored

CHAIN = Layout("chain", ("a", "b", "c", "d"), (0, 0, 1, 2))
ALONE = Layout("alone", ("a",), (0,))
LAYOUTS = [KINECT_V1, KINECT_V2, CHAIN, ALONE]
KINDS = ["stgcn", "proper"]


def naive(layout: Layout, kind: str) -> np.ndarray:
    """Follow the text: distances, column sums, then every pair of linked joints by its two distances."""
    V = layout.joints
    far = 10**6
    distance = np.full(V, far)
    for joint in range(V):
        at, steps = joint, 0
        while at != layout.centre:
            at, steps = layout.parents[at], steps + 1
        if kind == "proper" or steps <= 1:
            distance[joint] = steps
    linked = {(j, j) for j in range(V)} | set(layout.bones) | {(p, c) for c, p in layout.bones}
    A = np.zeros((3, V, V))
    for source, target in linked:
        weight = 1 / sum((other, target) in linked for other in range(V))
        outward = distance[source] < distance[target]
        A[0 if source == target else 1 + outward, source, target] = weight
    return A


@pytest.mark.parametrize(("kind", "counts"), [("stgcn", [25, 40, 8]), ("proper", [25, 24, 24])])
def test_subsets_of_the_25_joints_have_the_published_sizes(kind, counts):
    assert [np.count_nonzero(A) for A in adjacency(KINECT_V2, kind)] == counts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_matches_naive_reference(layout, kind):
    A = adjacency(layout, kind)
    assert A.dtype == np.float32
    np.testing.assert_allclose(A, naive(layout, kind), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_columns_sum_to_one_and_subsets_do_not_overlap(layout, kind):
    A = adjacency(layout, kind)
    np.testing.assert_allclose(A.sum(axis=(0, 1)), 1.0, rtol=1e-6)
    assert (np.count_nonzero(A, axis=0) <= 1).all()
    assert np.count_nonzero(A) == layout.joints + 2 * len(layout.bones)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_both_kinds_hold_the_same_graph(layout):
    np.testing.assert_array_equal(adjacency(layout, "stgcn").sum(0), adjacency(layout, "proper").sum(0))


def test_centripetal_messages_come_from_further_out():
    hops = hops_from_centre(KINECT_V2)
    A = adjacency(KINECT_V2, "proper")
    for subset, sign in ((1, 1), (2, -1)):
        source, target = np.nonzero(A[subset])
        assert (hops[source] - hops[target] == sign).all()


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(ConfigError, match="unknown graph 'spatial'; use one of stgcn, proper"):
        adjacency(KINECT_V2, "spatial")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_directed_graph_follows_bones_and_shares_out_what_a_joint_sends(layout):
    A = directed(layout)
    assert A.shape == (3, layout.joints, layout.joints)
    assert A.dtype == np.float32
    children = [sum(p == j for _, p in layout.bones) for j in range(layout.joints)]
    expected = np.zeros_like(A)
    for j in range(layout.joints):
        expected[0, j, j] = 1
    for child, parent in layout.bones:
        expected[1, child, parent] = 1
        expected[2, parent, child] = 1 / children[parent]
    np.testing.assert_allclose(A, expected)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_distances_match_naive_reference(layout, frames):
    V, scales = layout.joints, 6
    far = np.full((V, V), 10**6)
    np.fill_diagonal(far, 0)
    for child, parent in layout.bones:
        far[child, parent] = far[parent, child] = 1
    for m in range(V):  # Floyd and Warshall
        far = np.minimum(far, far[:, m, None] + far[None, m])
    expected = np.zeros((scales, frames * V, frames * V))
    for k, (f, v), (g, w) in (
        (k, (f, v), (g, w)) for k in range(scales) for f, v in np.ndindex(frames, V) for g, w in np.ndindex(frames, V)
    ):
        same = (f, v) == (g, w)
        # a joint in another frame is one bone away
        apart = 1 if v == w and not same else far[v, w]
        expected[k, f * V + v, g * V + w] = same or apart == k
    degree = expected.sum(axis=2)
    expected /= np.sqrt(degree[:, :, None] * degree[:, None, :])
    A = distances(layout, scales, frames)
    assert A.dtype == np.float32
    np.testing.assert_allclose(A, expected, rtol=1e-6)


def test_thirteen_distances_reach_from_hand_to_foot():
    reach = [np.count_nonzero(A) - 25 for A in distances(KINECT_V2, 14)]
    assert reach[0] == 0
    assert all(reach[1:13])
    assert sum(reach) == 25 * 24


@EACH
def test_graphs_are_symmetric_left_to_right(layout: Layout) -> None:
    swap = [layout.names.index(mirrored(name)) for name in layout.names]
    for kind in ("stgcn", "proper"):
        A = adjacency(layout, kind)
        np.testing.assert_array_equal(A, A[:, swap][:, :, swap])
