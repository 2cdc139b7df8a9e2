"""Adjacency matrices of a joint layout for graph convolutions.

Array order everywhere: `A[k, source, target]`, so that `x[..., source] @ A[k]` sums over the sources
of every target joint. `adjacency` is ST-GCN's, `directed` CTR-GCN's and `distances` MS-G3D's. In the first two, subset
0 is the joint itself (root), subset 1 holds messages that travel towards the centre (centripetal), subset 2 those that
travel away from it (centrifugal).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.layouts import Layout

GraphKind = Literal["stgcn", "proper"]
"""`stgcn`: the partition every ST-GCN code base computes; `proper`: the one its paper describes."""


def hops_from_centre(layout: Layout) -> NDArray[np.int64]:
    """Count the bones between every joint and the centre.

    Shape: -> (V,)
    """
    hops = np.zeros(layout.joints, dtype=np.int64)
    for joint in range(layout.joints):
        at = joint
        while at != layout.centre:
            at = layout.parents[at]
            hops[joint] += 1
    return hops


def adjacency(layout: Layout, kind: GraphKind) -> NDArray[np.float32]:
    """Build the spatial partition of ST-GCN (Yan et al. 2018, section 3.4) for any layout.

    Every column of the whole graph (self-loops and bones in both directions) is divided by its sum *before*
    the graph is split, so the three subsets of a target's column add up to one.

    *Reading:* the published code of ST-GCN measures distances only up to one bone and takes every longer one
    as infinite. Two joined joints that both lie further out than that count as equally far, and their bones
    are, in both directions, counted as centripetal. For the 25 joints of NTU RGB+D that gives subsets
    of 25, 40 and 8 entries (`stgcn`, what published numbers were made with) where the text describes 25, 24
    and 24 (`proper`).

    Args:
        layout: joints and parents; a tree around its centre.
        kind: `stgcn` or `proper`.

    Returns:
        Weights `A[k, source, target]`. Shape: -> (3, V, V), float32.

    Raises:
        ConfigError: `kind` is neither.
    """
    if kind not in get_args(GraphKind):
        raise ConfigError(f"unknown graph {kind!r}; use one of {', '.join(get_args(GraphKind))}")
    V = layout.joints
    linked = np.eye(V)
    for child, parent in layout.bones:
        linked[child, parent] = linked[parent, child] = 1.0
    weights = linked / linked.sum(axis=0, keepdims=True)

    hops = hops_from_centre(layout)
    if kind == "stgcn":
        hops = np.minimum(hops, 2)  # beyond one bone all joints are equally far
    source, target = hops[:, None], hops[None, :]
    root = np.eye(V, dtype=bool)
    outward = source < target
    return np.stack([weights * root, weights * ~(root | outward), weights * outward]).astype(np.float32)


def directed(layout: Layout) -> NDArray[np.float32]:
    """Build the graph that CTR-GCN begins with: joints, bones towards the centre, bones away from it.

    What a joint sends to others is divided by their number, as its published code does: all of it to its one parent,
    and an equal part to each of its children.

    Shape: -> (3, V, V), float32.
    """
    V = layout.joints
    inward = np.zeros((V, V))
    for child, parent in layout.bones:
        inward[child, parent] = 1.0
    children = np.maximum(inward.sum(axis=0), 1)
    return np.stack([np.eye(V), inward, inward.T / children[:, None]]).astype(np.float32)


def distances(layout: Layout, scales: int, frames: int = 1) -> NDArray[np.float32]:
    """Build MS-G3D's graphs: in graph k a joint is linked to itself and to all joints exactly k bones away.

    Joints of other frames of a window are as far away as they are in its own frame (the joint itself in another
    frame is one bone away). Every graph is normalised symmetrically, D^-1/2 A D^-1/2. Layouts of fewer bones from end
    to end have graphs of self-links only.

    Args:
        layout: joints and parents.
        scales: number of distances, from 0.
        frames: frames of a window, set frame by frame.

    Shape: -> (scales, frames V, frames V), float32.
    """
    V = layout.joints
    linked = np.eye(V)
    for child, parent in layout.bones:
        linked[child, parent] = linked[parent, child] = 1.0
    linked = np.tile(linked, (frames, frames))
    own = np.eye(frames * V, dtype=bool)
    graphs, reached = [own], own
    for _ in range(1, scales):
        further = np.asarray(reached.astype(np.float64) @ linked > 0)
        graphs.append((further & ~reached) | own)
        reached = further
    links = np.stack(graphs).astype(np.float64)
    norm = 1 / np.sqrt(links.sum(axis=1))
    return np.asarray(norm[:, :, None] * links * norm[:, None, :], np.float32)
