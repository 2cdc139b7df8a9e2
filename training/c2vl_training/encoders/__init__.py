"""Skeleton encoders by name: the registry `ENCODERS`, functions that build from it, and one that counts.

Every encoder is an `Encoder`: it takes (N, C, T, V, M), returns (N, D) and has D as `dim`.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.flop_counter import FlopCounterMode

from c2vl_manifests.errors import ConfigError, memory_ran_out
from c2vl_manifests.layouts import Layout
from c2vl_manifests.recipe_training import EncoderConfig
from c2vl_training.encoders.base import Blocks, EmptyBodies, Encoder, PerBodyEncoder
from c2vl_training.encoders.graph import GraphKind

__all__ = ["ENCODERS", "Encoder", "Size", "build", "build_encoder", "count"]


ENCODERS = {
    "stgcn": "stgcn:STGCN",
    "stgcn_slim": "stgcn:STGCNSlim",
    "ctrgcn": "ctrgcn:CTRGCN",
    "msg3d": "msg3d:MSG3D",
    "bigru": "bigru:BiGRU",
    "transformer": "transformer:Transformer",
}
"""Name of an encoder -> `module:class`. The class takes a layout and, by name, those arguments of `build` that it uses;
one that is None is not passed, so that its default is the published value."""


MOST_PARAMETERS = 1 << 30
"""Of an encoder: 4 GB; the largest published one here has 17 million."""


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
        bodies: bodies per clip, for encoders that concatenate them (ST-GCN takes any number).
        channels: coordinates per joint; the layout's `dims` unless given.
        blocks: (channels, stride) of every block, replacing the named encoder's.
        graph: ST-GCN's, see `c2vl_training.encoders.graph.adjacency`.
        temporal_kernel: frames of the temporal kernel, odd; the named encoder's unless given.
        dropout: within ST-GCN.
        width: of `bigru` and `transformer`; 1024 unless given.
        empty_bodies: see `c2vl_training.encoders.base.PerBodyEncoder`.

    Raises:
        ConfigError: the name is unknown, the encoder does not have one of the settings, or no network can have the values.
    """
    if name not in ENCODERS:
        near = difflib.get_close_matches(name, ENCODERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown encoder {name!r}; {hint}use one of {', '.join(ENCODERS)}")
    module, attribute = ENCODERS[name].split(":")
    make = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
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
    known = inspect.signature(make).parameters
    given = {
        "blocks": blocks is not None,
        "graph": graph != "stgcn",
        "temporal_kernel": temporal_kernel is not None,
        "dropout": dropout > 0,
        "width": width is not None,
        "empty_bodies": empty_bodies == "leave_out",
    }
    for knob in (k for k, is_given in given.items() if is_given and k not in known):
        raise ConfigError(
            f"encoder {name!r} has no {knob} (given: {knobs[knob]!r}); leave it out of the recipe, "
            f"or reset it by --set 'training.encoder={{name=\"{name}\"}}'"
        )
    with _bounded(name):
        encoder: Encoder = make(layout, **{k: v for k, v in knobs.items() if k in known and v is not None})
    return encoder


@contextmanager
def _bounded(name: str) -> Iterator[None]:
    """Raise ConfigError for an encoder of too many parameters before memory is filled with them."""
    size = 0

    def count_parameters(module: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        nonlocal size
        size += 0 if parameter is None else parameter.numel()
        if size > MOST_PARAMETERS:
            raise ConfigError(f"encoder {name!r} has {size:,} parameters or more{remedy}")

    remedy = f"; expected up to {MOST_PARAMETERS:,}: give fewer channels, a smaller width or a shorter kernel"
    hook = register_module_parameter_registration_hook(count_parameters)
    try:
        yield
    except RuntimeError as error:
        if not memory_ran_out(error):
            raise
        raise ConfigError(f"encoder {name!r} takes more memory than there is{remedy}") from error
    finally:
        hook.remove()


def build_encoder(config: EncoderConfig, layout: Layout, bodies: int) -> Encoder:
    """Build the encoder that a recipe describes."""
    settings = {name: getattr(config, name) for name in EncoderConfig.model_fields}
    return build(layout=layout, bodies=bodies, **settings)


class Size(NamedTuple):
    """Trainable parameters of an encoder, and multiply-adds for one clip."""

    parameters: int
    macs: int


def count(encoder: Encoder, channels: int, frames: int, joints: int, bodies: int) -> Size:
    """Count parameters and the multiply-adds of one clip with all bodies present, without computing it.

    Convolutions, matrix products and attention count; normalisations, activations and sums do not.
    """
    twin = copy.deepcopy(encoder).to("meta").eval().requires_grad_(True)
    if isinstance(twin, PerBodyEncoder):
        twin.empty_bodies = "compute"
    with FlopCounterMode(display=False) as counter:
        twin(torch.zeros(1, channels, frames, joints, bodies, device="meta"))
    parameters = sum(p.numel() for p in encoder.parameters())
    return Size(parameters, counter.get_total_flops() // 2)
