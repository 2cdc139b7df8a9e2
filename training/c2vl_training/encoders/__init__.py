"""Skeleton encoders by name: a plain dict and one function that builds from it.

Every encoder is an `nn.Module` that takes (N, C, T, V, M), returns (N, D) and tells D as `dim`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.layouts import Layout
from c2vl_training.encoders.stgcn import FULL, SLIM, STGCN, Blocks
from c2vl_training.graph import GraphKind, adjacency

Encoder: TypeAlias = STGCN
"""What `build` may return."""


def _stgcn(
    default: Blocks,
    layout: Layout,
    *,
    channels: int,
    bodies: int,
    blocks: Blocks | None,
    graph: GraphKind,
    temporal_kernel: int,
    dropout: float,
    skip_empty: bool,
) -> STGCN:
    return STGCN(
        default if blocks is None else blocks,
        adjacency(layout, graph),
        channels=channels,
        temporal_kernel=temporal_kernel,
        dropout=dropout,
        skip_empty=skip_empty,
    )


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "stgcn": partial(_stgcn, FULL),
    "stgcn_slim": partial(_stgcn, SLIM),
}
"""Name of an encoder -> its builder, which takes a layout and the keywords of `build`."""


def build(
    name: str,
    layout: Layout,
    *,
    bodies: int = 2,
    channels: int | None = None,
    blocks: Blocks | None = None,
    graph: GraphKind = "stgcn",
    temporal_kernel: int = 9,
    dropout: float = 0.0,
    skip_empty: bool = False,
) -> Encoder:
    """Build an encoder with fresh weights.

    Args:
        name: a key of `ENCODERS`.
        layout: the joints it will see.
        bodies: bodies a clip, for encoders that flatten them (ST-GCN takes any number).
        channels: coordinates a joint; the layout's `dims` unless given.
        blocks: (channels, stride) of every block in place of the named encoder's.
        graph: see `c2vl_training.graph.adjacency`.
        temporal_kernel: frames a temporal kernel, odd.
        dropout: within the encoder.
        skip_empty: leave out bodies that are zero throughout a clip.

    Raises:
        ConfigError: the name is unknown, or the values do not make a network.
    """
    if name not in ENCODERS:
        near = difflib.get_close_matches(name, ENCODERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown encoder {name!r}; {hint}use one of {', '.join(ENCODERS)}")
    return ENCODERS[name](
        layout,
        bodies=bodies,
        channels=layout.dims if channels is None else channels,
        blocks=blocks,
        graph=graph,
        temporal_kernel=temporal_kernel,
        dropout=dropout,
        skip_empty=skip_empty,
    )
