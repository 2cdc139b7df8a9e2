"""Skeleton encoders by name: a plain dict, one function that builds from it and one that counts.

Every encoder is an `Encoder`: it takes (N, C, T, V, M), returns (N, D) and tells D as `dim`.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.layouts import Layout
from c2vl_training.encoders import bigru, ctrgcn, msg3d, transformer
from c2vl_training.encoders.base import EmptyBodies, Encoder, OneByOne
from c2vl_training.encoders.graph import GraphKind, adjacency, directed, distances
from c2vl_training.encoders.stgcn import FULL, SLIM, STGCN, Blocks

__all__ = ["ENCODERS", "Encoder", "Size", "build", "count"]


def _stgcn(
    default: Blocks,
    layout: Layout,
    *,
    channels: int,
    blocks: Blocks | None,
    graph: GraphKind,
    temporal_kernel: int | None,
    dropout: float,
    empty_bodies: EmptyBodies,
) -> Encoder:
    return STGCN(
        default if blocks is None else blocks,
        adjacency(layout, graph),
        channels=channels,
        temporal_kernel=9 if temporal_kernel is None else temporal_kernel,
        dropout=dropout,
        empty_bodies=empty_bodies,
    )


def _ctrgcn(
    layout: Layout,
    *,
    channels: int,
    bodies: int,
    blocks: Blocks | None,
    temporal_kernel: int | None,
    empty_bodies: EmptyBodies,
) -> Encoder:
    return ctrgcn.CTRGCN(
        ctrgcn.BLOCKS if blocks is None else blocks,
        directed(layout),
        channels=channels,
        bodies=bodies,
        temporal_kernel=5 if temporal_kernel is None else temporal_kernel,
        empty_bodies=empty_bodies,
    )


def _msg3d(
    layout: Layout,
    *,
    channels: int,
    bodies: int,
    blocks: Blocks | None,
    temporal_kernel: int | None,
    empty_bodies: EmptyBodies,
) -> Encoder:
    windows = [distances(layout, msg3d.WINDOW_SCALES, frames) for frames in msg3d.WINDOWS]
    return msg3d.MSG3D(
        msg3d.BLOCKS if blocks is None else blocks,
        [distances(layout, msg3d.SCALES), *windows],
        joints=layout.joints,
        channels=channels,
        bodies=bodies,
        temporal_kernel=3 if temporal_kernel is None else temporal_kernel,
        empty_bodies=empty_bodies,
    )


def _bigru(layout: Layout, *, channels: int, bodies: int, width: int | None) -> Encoder:
    return bigru.BiGRU(layout.joints, channels=channels, bodies=bodies, width=width or bigru.WIDTH)


def _transformer(layout: Layout, *, channels: int, bodies: int, width: int | None) -> Encoder:
    return transformer.Transformer(
        layout.joints, channels=channels, bodies=bodies, width=width or transformer.WIDTH
    )


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "stgcn": partial(_stgcn, FULL),
    "stgcn_slim": partial(_stgcn, SLIM),
    "ctrgcn": _ctrgcn,
    "msg3d": _msg3d,
    "bigru": _bigru,
    "transformer": _transformer,
}
"""Name of an encoder -> its builder, which takes a layout and those keywords of `build` that it has a use for."""


def build(
    name: str,
    layout: Layout,
    *,
    bodies: int = 2,
    channels: int | None = None,
    blocks: Blocks | None = None,
    graph: GraphKind = "stgcn",
    temporal_kernel: int | None = None,
    dropout: float = 0.0,
    width: int | None = None,
    empty_bodies: EmptyBodies = "exact_skip",
) -> Encoder:
    """Build an encoder with fresh weights.

    Args:
        name: a key of `ENCODERS`.
        layout: the joints it will see.
        bodies: bodies a clip, for encoders that set them side by side (ST-GCN takes any number).
        channels: coordinates a joint; the layout's `dims` unless given.
        blocks: (channels, stride) of every block in place of the named encoder's.
        graph: ST-GCN's, see `c2vl_training.encoders.graph.adjacency`.
        temporal_kernel: frames a temporal kernel, odd; the named encoder's unless given.
        dropout: within ST-GCN.
        width: of `bigru` and `transformer`; 1024 unless given.
        empty_bodies: see `c2vl_training.encoders.base.OneByOne`.

    Raises:
        ConfigError: the name is unknown, a value is none of this encoder's, or the values do not make a network.
    """
    if name not in ENCODERS:
        near = difflib.get_close_matches(name, ENCODERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown encoder {name!r}; {hint}use one of {', '.join(ENCODERS)}")
    knobs = {
        "bodies": bodies,
        "channels": layout.dims if channels is None else channels,
        "blocks": blocks,
        "graph": graph,
        "temporal_kernel": temporal_kernel,
        "dropout": dropout,
        "width": width,
        "empty_bodies": empty_bodies,
    }
    known = inspect.signature(ENCODERS[name]).parameters
    asked = {
        "blocks": blocks is not None,
        "graph": graph != "stgcn",
        "temporal_kernel": temporal_kernel is not None,
        "dropout": dropout > 0,
        "width": width is not None,
        "empty_bodies": empty_bodies == "leave_out",
    }
    for knob in (k for k, given in asked.items() if given and k not in known):
        raise ConfigError(
            f"encoder {name!r} has no {knob} (given: {knobs[knob]!r}); leave it out of the recipe, "
            f"or begin anew by --set 'training.encoder={{name=\"{name}\"}}'"
        )
    return ENCODERS[name](layout, **{k: v for k, v in knobs.items() if k in known})


class Size(NamedTuple):
    """Trainable numbers of an encoder, and multiplications with addition for one clip."""

    parameters: int
    macs: int


def count(encoder: Encoder, channels: int, frames: int, joints: int, bodies: int) -> Size:
    """Count parameters and the multiplications of one clip in which every body is there; computes nothing.

    Convolutions, matrix products and attention count; normalisations, activations and sums do not.
    """
    twin = copy.deepcopy(encoder).to("meta").eval().requires_grad_(True)
    if isinstance(twin, OneByOne):
        twin.empty_bodies = "compute"
    with FlopCounterMode(display=False) as counter:
        twin(torch.zeros(1, channels, frames, joints, bodies, device="meta"))
    parameters = sum(p.numel() for p in encoder.parameters())
    return Size(parameters, counter.get_total_flops() // 2)
