"""Export of encoder and linear layer as one ONNX file: joints of a clip of any length in, class probabilities out.

The graph holds what readers, training and the linear protocol do with one clip: empty frames are left out, the clip is
moved to its origin, the central window is resized in time, the stream is derived, features are standardised.
onnxruntime and numpy run it (`docs/examples/recognise.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import Array, encoder_for, labelled_split
from c2vl_evaluation.metrics import class_name
from c2vl_evaluation.protocols import knn, linear
from c2vl_manifests.events import byte_size
from c2vl_manifests.layouts import Layout
from c2vl_manifests.manifest import commit_bytes
from c2vl_manifests.recipe_training import InputConfig
from c2vl_training import card
from c2vl_training.augmentation import between, derive_stream
from c2vl_training.export import (
    check_difference,
    check_packages,
    difference_of,
    exportable,
    facts_of,
    graph_of,
    session_of,
)

INPUT, OUTPUT = "joints", "probabilities"
_CLIPS = 2000
"""Test clips, evenly spaced, on which the loss of a quantised graph is measured at most."""
_QUANTISED = ("Conv", "MatMul")


class Preparation(nn.Module):
    """Joints of one clip, as a sensor gives them, to the input of an encoder in evaluation.

    It is what `readers.base.anchored`, `missing_joints` and `Clips.test` do, without branches that depend on data, so that
    the number of frames and of bodies may be any: frames and bodies that hold nobody are sorted behind the others.
    """

    def __init__(self, layout: Layout, bodies: int, config: InputConfig) -> None:
        super().__init__()
        self.layout, self.bodies, self.config = layout, bodies, config
        bones = np.bincount(np.ravel(layout.bones), minlength=layout.joints) if layout.bones else np.zeros(1)
        self.hub: Tensor  # joints between three bones or more, (V,)
        self.register_buffer("hub", torch.from_numpy(bones > 2), persistent=False)

    def forward(self, joints: Tensor) -> tuple[Tensor, Tensor]:
        """Return the clip, (1, C, frames, V, bodies), and how many frames hold somebody, (). Shape: (T, M, V, C) ->."""
        finite = torch.isfinite(joints).all(dim=3, keepdim=True)
        x = torch.where(finite, joints, torch.zeros_like(joints))
        x = torch.cat([x, x.new_zeros(1, 1, 1, 1).expand(x.shape[0], self.bodies, *x.shape[2:])], dim=1)
        x = x[:, _first(x.ne(0).any(dim=3).any(dim=2).any(dim=0), self.bodies)]
        x = torch.cat([x, x.new_zeros(1, 1, 1, 1).expand(1, *x.shape[1:])])  # so that there is a frame, also of none
        there = x.ne(0).any(dim=3).any(dim=2).any(dim=1)
        x = x[_first(there, x.shape[0])]
        length = there.sum()
        x = self._to_origin(x)
        gone = self._missing(x)
        cut = ((1 - self.config.augmentation.test_window) * length / 2).to(torch.int64)
        low, share = between((length - 2 * cut)[None], self.config.frames)
        at, share = (low[0] + cut).clamp(max=x.shape[0] - 1), share[0][:, None, None]
        after = (at + 1).clamp(max=x.shape[0] - 1)
        clip = x[at] * (1 - share)[..., None] + x[after] * share[..., None]
        gone = gone[at] | ((share > 0) & gone[after])
        stream = derive_stream(
            clip.permute(3, 0, 1, 2)[None], gone[None, None], self.config.stream, list(self.layout.parents)
        )
        return stream.transpose(3, 4), length

    def _seen(self, x: Tensor) -> Tensor:
        """Mark the joints that are not missing, by the rule of `readers.base.joints_seen`. (T, M, V, C) -> (T, M, V)."""
        seen = x.ne(0).any(dim=3)
        there = seen[:, 0].any(dim=1)
        start = _one_of(there)
        mine, around = seen[start, 0][0], x[start, 0][0]
        low = around.masked_fill(~mine[:, None], torch.inf).amin(dim=0)
        high = around.masked_fill(~mine[:, None], -torch.inf).amax(dim=0)
        centred = there.any() & (low <= 0).all() & (high >= 0).all()
        roots = self.hub & ~seen[:, 0].any(dim=0)
        roots = roots & (roots.sum() == 1) & centred
        seen = seen | (roots & seen.any(dim=2, keepdim=True))
        first = (torch.arange(x.shape[0]) == start)[:, None] & (torch.arange(self.bodies) == 0)
        return seen | (first[..., None] & self._joint(self.layout.anchor) & centred)

    def _to_origin(self, x: Tensor) -> Tensor:
        """Move a clip to its origin, see `readers.base.to_origin`. Shape: (T, M, V, C) -> the same."""
        seen, anchor = self._seen(x), self.layout.anchor
        has = seen[:, 0, anchor]
        place = x[_one_of(has), 0, anchor][0] * has.any()
        return torch.where(seen[..., None], x - place, torch.zeros_like(x))

    def _missing(self, x: Tensor) -> Tensor:
        """Mark missing joints, see `c2vl_manifests.joints.missing_joints`. Shape: (T, M, V, C) -> (T, M, V)."""
        seen = x.ne(0).any(dim=3)
        there = seen.any(dim=2, keepdim=True)
        still = seen[:, 0, self.layout.anchor].to(torch.int64).cumsum(dim=0) == 0
        seen = seen | (still[:, None, None] & self._joint(self.layout.anchor))
        never = ~seen[:, 0, self.layout.centre].any()
        return ~(seen | (never & self._joint(self.layout.centre))) & there

    def _joint(self, number: int) -> Tensor:
        return torch.arange(self.layout.joints) == number


def _first(mask: Tensor, count: int) -> Tensor:
    """Return the places of the first `count` of those that a mask marks, in their order, then of the others. (N,) ->."""
    places = torch.arange(mask.shape[0])
    return torch.topk(places + mask.shape[0] * (~mask).to(torch.int64), count, largest=False, sorted=True).indices


def _one_of(mask: Tensor) -> Tensor:
    """Return the first place that a mask marks, 0 if it marks none. Shape: (N,) -> (1,)."""
    return _first(mask, 1)


class Recogniser(nn.Module):
    """Preparation, encoder, standardisation and linear layer: joints (T, M, V, C) to probabilities (classes,).

    Probabilities are NaN where no frame holds anybody.
    """

    def __init__(self, preparation: Preparation, encoder: nn.Module, head: linear.Heads, by: linear.Standard) -> None:
        super().__init__()
        self.preparation, self.encoder = preparation, encoder
        # inf scales constant features: they become zero
        tensors = {"weight": head.weight[0], "bias": head.bias[0], "centre": by.centre, "per": 1 / by.scale}
        for name, values in tensors.items():
            self.register_buffer(name, torch.as_tensor(values), persistent=False)

    def forward(self, joints: Tensor) -> Tensor:
        """Shape: (T, M, V, C) -> (classes,)."""
        clip, length = self.preparation(joints)
        features = self.encoder(clip).double()
        logits = ((features - self.centre) * self.per).float() @ self.weight + self.bias
        known = torch.softmax(logits, dim=1)[0]
        return torch.where(length > 0, known, torch.full_like(known, torch.nan))


@dataclass(frozen=True)
class Int8Loss:
    """What dynamic quantisation to 8 bits changes, measured on test clips."""

    clips: int
    test: int
    """Clips of the test split, of which the measured ones are an even choice."""
    top1: float
    """Of the graph in float32."""
    top1_int8: float
    same: float
    """Share of equal answers."""
    bytes: int
    bytes_int8: int

    def words(self) -> str:
        """Return it as a sentence."""
        some = f"{self.clips:,} of the {self.test:,}" if self.clips < self.test else f"the {self.test:,}"
        return (
            f"int8, on {some} test clips: top-1 {100 * self.top1_int8:.1f} %, in float32 {100 * self.top1:.1f} %; "
            f"{100 * self.same:.1f} % of the answers are the same; {byte_size(self.bytes_int8)}, in float32 "
            f"{byte_size(self.bytes)}"
        )


@dataclass(frozen=True)
class Exported:
    """An exported file: input (T, M, V, C) with any T and M, output (classes,)."""

    path: Path
    joints: int
    dims: int
    classes: int
    difference: float
    """Largest difference of a probability between torch and the graph in float32."""
    loss: Int8Loss | None
    """None of a graph in float32."""


def export(context: EvalContext, out: Path, int8: bool = False) -> Exported:
    """Write encoder and linear layer of a run as one ONNX file, opset 18, and what was measured into the run's card.

    Metadata: `c2vl`, the facts of the run; `classes`, their names in the order of the output; `layout`, the names of the
    joints; `input`.

    Args:
        context: a finished run with its data. The linear protocol is run first unless its result is stored.
        out: where to write.
        int8: quantise weights to 8 bits, and measure what that changes.

    Raises:
        CheckpointError: the run is not finished, diverged, or is of another layout than the data.
        EngineError: `onnx` or `onnxscript` is not installed, or `onnxruntime`, which int8 needs.
        ConfigError: the encoder cannot be exported, or the exported graph does not give its answers.
    """
    check_packages("onnx", "onnxscript", *(["onnxruntime"] if int8 else []))
    encoder = encoder_for(context.run, context.packed, torch.device("cpu"))
    figures = _figures(context)
    head, by = linear.head_of(context)
    layout = encoder.layout
    whole = Recogniser(Preparation(layout, encoder.bodies, encoder.input), exportable(encoder.module), head, by).eval()
    names = context.packed.manifest.classes
    classes = [class_name(names, n) for n in range(head.bias.shape[1])]
    metadata = facts_of(encoder.facts) | {
        "classes": json.dumps(classes),
        "layout": json.dumps(layout.names),
        "input": f"T M V C: frames, bodies, joints of `layout`, coordinates in {layout.unit}, the second one up; missing "
        "joints are zero or NaN",
    }
    split = labelled_split(context.packed, context.benchmark, "test")
    clips = [torch.from_numpy(_joints(context, row)) for row in split.rows[:4]]
    clips.append(torch.cat([clips[0], torch.full_like(clips[0], torch.nan)], dim=1).repeat(2, 1, 1, 1))
    with torch.inference_mode():
        cases = [({INPUT: clip}, whole(clip)) for clip in clips]
    data = graph_of(
        whole, (clips[-1],), ([INPUT], [OUTPUT]),
        ({0: torch.export.Dim("frames"), 1: torch.export.Dim("people")},), metadata, f"the encoder of {context.run}",
    )  # fmt: skip
    difference = difference_of(data, cases)
    check_difference(difference, "encoder and layer", context.run)
    loss = None
    if int8:
        small = _quantised(data)
        loss = _loss(context, data, small)
        data = small
    commit_bytes(out, data)
    card.write(context.run, context.facts(), figures)
    return Exported(out, layout.joints, layout.dims, len(classes), difference, loss)


def _figures(context: EvalContext) -> list[card.Figure]:
    """Return what kNN, if it was run, and the linear protocol measured, for the card of the run."""
    found = [cell.cached() for cell in knn.cells(context)] + [cell.run().result for cell in linear.cells(context)]
    return [
        (result.protocol, context.benchmark, f"{100 * result.last.top1:.1f} %", f"{result.test:,}")
        for result in found
        if result is not None and result.last is not None
    ]


def _joints(context: EvalContext, row: int) -> Array:
    """Return the joints of a packed clip. Shape: (T, M, V, C)."""
    start, stop = context.packed.offsets[row : row + 2]
    return np.ascontiguousarray(context.packed.joints[start:stop].transpose(0, 2, 3, 1))


def _quantised(data: bytes) -> bytes:
    """Return a graph whose convolutions and products have weights of 8 bits; their inputs are scaled when it runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as folder:
        given, made = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        given.write_bytes(data)
        quant_pre_process(given, made, skip_symbolic_shape=True)  # folds normalisation into convolutions
        # signed weights of convolutions are not implemented on CPUs
        quantize_dynamic(made, given, op_types_to_quantize=list(_QUANTISED), weight_type=QuantType.QUInt8)
        return given.read_bytes()


def _loss(context: EvalContext, data: bytes, small: bytes) -> Int8Loss:
    """Compare the answers of two graphs on test clips."""
    split = labelled_split(context.packed, context.benchmark, "test")
    at = np.unique(np.linspace(0, len(split.rows) - 1, min(_CLIPS, len(split.rows))).round().astype(int))
    answers = []
    for session in (session_of(data), session_of(small)):
        found = [session.run(None, {INPUT: _joints(context, split.rows[n])})[0] for n in at]
        answers.append(np.argmax(found, axis=1))
    plain, rounded = (float((found == split.labels[at]).mean()) for found in answers)
    same = float((answers[0] == answers[1]).mean())
    return Int8Loss(len(at), len(split.rows), plain, rounded, same, len(data), len(small))
