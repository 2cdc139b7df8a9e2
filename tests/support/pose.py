"""Tiny weights of pose estimators: BlazePose's file format with weights of choice, and a random ViTPose checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import flatbuffers
import numpy as np
import numpy.typing as npt
import torch
from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessorPil

Weights = npt.NDArray[np.float32]

_POOL, _CONV, _RESHAPE = 1, 3, 22
"""Built-in operators of TensorFlow Lite's schema."""
_OPTIONS = {_POOL: 5, _CONV: 1, _RESHAPE: 17}
"""Their kinds of options in the schema's union."""


def figure() -> Weights:
    """A person in the square of 256 pixels: (39, 5) x, y, z, visibility, presence; hips at the middle, upright."""
    rng = np.random.default_rng(3)
    landmarks = np.zeros((39, 5), np.float32)
    landmarks[:, :2] = 128 + rng.uniform(-60, 60, (39, 2)).round()
    landmarks[:, 4] = 4
    landmarks[33, :2], landmarks[34, :2] = (128, 128), (128, 128 - 102.4)
    return landmarks


def world() -> Weights:
    """The same person in metres, (39, 3)."""
    return np.random.default_rng(4).uniform(-0.8, 0.8, (39, 3)).astype(np.float32)


def tiny_blazepose(path: Path, landmarks: Weights | None = None, outputs: tuple[int, int, int] = (195, 1, 117)) -> Path:
    """Write a network of BlazePose's form: the same figure everywhere, in squares whose mean is brighter than half.

    Args:
        path: to write.
        landmarks: of the figure, (39, 5).
        outputs: sizes of the outputs; others than these are another model.
    """
    landmarks = figure() if landmarks is None else landmarks
    heads = {
        "Identity": (np.zeros((195, 3), np.float32), landmarks.reshape(-1)),
        "Identity_1": (np.full((1, 3), 1 / 3, np.float32), np.zeros(1, np.float32)),
        "Identity_4": (np.zeros((117, 3), np.float32), world().reshape(-1)),
    }
    sized = {
        name: (np.resize(w, (size, 1, 1, 3)), np.resize(b, size))
        for (name, (w, b)), size in zip(heads.items(), outputs, strict=True)
    }
    path.write_bytes(_model(sized))
    return path


def _model(heads: dict[str, tuple[Weights, Weights]]) -> bytes:
    """Return a TensorFlow Lite file: the mean colour of the image, and convolutions of it as heads."""
    build = flatbuffers.Builder(1 << 16)

    def vector(values: Any, kind: str) -> int:
        return int(build.CreateNumpyVector(np.asarray(values, kind)))

    def offsets(tables: list[int]) -> int:
        build.StartVector(4, len(tables), 4)
        for table in reversed(tables):
            build.PrependUOffsetTRelative(table)
        return int(build.EndVector())

    def table(fields: int, **slots: Any) -> int:
        """Slots by number: u = offset, i = int32, b = byte."""
        build.StartObject(fields)
        for key, value in slots.items():
            at, kind = int(key[1:]), key[0]
            put = {"u": build.PrependUOffsetTRelativeSlot, "i": build.PrependInt32Slot, "b": build.PrependInt8Slot}[
                kind
            ]
            put(at, value, 0)
        return int(build.EndObject())

    buffers, tensors, operators = [table(1)], [], []

    def tensor(name: str, shape: tuple[int, ...], data: Any = None, kind: int = 0) -> int:
        at = 0
        if data is not None:
            held = vector(np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8), "u1")
            buffers.append(table(1, u0=held))
            at = len(buffers) - 1
        tensors.append(table(5, u0=vector(shape, "i4"), b1=kind, i2=at, u3=build.CreateString(name)))
        return len(tensors) - 1

    codes = [_POOL, _RESHAPE, _CONV]

    def operator(code: int, inputs: list[int], outputs: list[int], options: int) -> None:
        facts = {"i0": codes.index(code), "u1": vector(inputs, "i4"), "u2": vector(outputs, "i4")}
        operators.append(table(5, **facts, b3=_OPTIONS[code], u4=options))

    image = tensor("input_1", (1, 256, 256, 3))
    pooled = tensor("pooled", (1, 1, 1, 3))
    operator(_POOL, [image], [pooled], table(6, b0=1, i1=256, i2=256, i3=256, i4=256))
    outputs = []
    for name, (weights, bias) in heads.items():
        size = len(bias)
        held = [tensor(f"{name}/weights", weights.shape, weights), tensor(f"{name}/bias", bias.shape, bias)]
        square, shape = tensor(f"{name}/square", (1, 1, 1, size)), tensor(f"{name}/shape", (2,), np.int32([1, size]), 2)
        operator(_CONV, [pooled, *held], [square], table(6, b0=1, i1=1, i2=1, i4=1, i5=1))
        outputs.append(tensor(name, (1, size)))
        operator(_RESHAPE, [square, shape], outputs[-1:], table(1, u0=vector([1, size], "i4")))
    graph = table(
        5, u0=offsets(tensors), u1=vector([image], "i4"), u2=vector(outputs, "i4"), u3=offsets(operators),
        u4=build.CreateString("main"),
    )  # fmt: skip
    known = offsets([table(4, b0=code, i2=1, i3=code) for code in codes])
    build.Finish(table(5, i0=3, u1=known, u2=offsets([graph]), u4=offsets(buffers)), b"TFL3")
    return bytes(build.Output())


def tiny_vitpose(folder: Path, experts: int = 1, joints: int = 17) -> Path:
    """Write a random ViTPose checkpoint of 64 x 48 pixels; returns the folder."""
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, out_indices=[2], num_experts=experts, part_features=8,
    )  # fmt: skip
    config = VitPoseConfig(backbone_config=backbone, num_labels=joints, scale_factor=4, initializer_range=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = VitPoseForPoseEstimation(config)
    model.eval().save_pretrained(folder)
    VitPoseImageProcessorPil(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


def film(path: Path, frames: Sequence[Sequence[tuple[int, int]]], codec: str = "MJPG") -> Path:
    """Write white squares on black: the tiny network takes each for a person."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 30, (160, 120))
    for corners in frames:
        image = np.zeros((120, 160, 3), np.uint8)
        for x, y in corners:
            image[y : y + 40, x : x + 40] = 255
        writer.write(image)
    writer.release()
    return path


def settings(model: Path) -> list[str]:
    """Return overrides that let the tiny network look for white squares on black."""
    return [
        "pipeline.pose.engine=blazepose", f"pose.model={model}", "pose.dims=2", "pose.passes=1", "pose.grow=1.0",
        "pose.detector=motion", "pose.detector.options.background=black", "pipeline.crop.engine=skeleton",
    ]  # fmt: skip
