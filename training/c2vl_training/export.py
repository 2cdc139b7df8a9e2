"""Export of a trained encoder as one ONNX file, for use without torch."""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from c2vl_manifests.errors import ConfigError, EngineError, one_line
from c2vl_manifests.manifest import commit_bytes
from c2vl_manifests.pages import portable
from c2vl_training import checkpoint
from c2vl_training.encoders.base import PerBodyEncoder

OPSET = 18
INPUT, OUTPUT = "clips", "features"


@dataclass(frozen=True)
class Exported:
    """An exported file: input (N, C, T, V, M) with any N, output (N, D)."""

    path: Path
    shape: tuple[int, ...]
    dim: int
    difference: float
    """Largest difference of a feature between the encoder and the exported graph, over the largest feature."""


class _Plain(nn.Module):
    """An encoder in eval mode as a graph without data-dependent branches.

    In eval mode bodies do not influence each other, so computing empty ones changes no feature; where they are left
    out of the mean over bodies, a mask removes them.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.leave_out = isinstance(encoder, PerBodyEncoder) and encoder.empty_bodies == "leave_out"
        if isinstance(encoder, PerBodyEncoder):
            encoder.empty_bodies = "compute"

    def forward(self, clips: Tensor) -> Tensor:
        """Shape: (N, C, T, V, M) -> (N, D)."""
        if not self.leave_out:
            features: Tensor = self.encoder(clips)
            return features
        assert isinstance(self.encoder, PerBodyEncoder)
        N, M = clips.shape[0], clips.shape[4]
        each = self.encoder.encode(self.encoder.normalised(clips, None), None).view(N, M, -1)
        present = clips.abs().amax(dim=(1, 2, 3)).gt(0)
        first = torch.arange(M, device=clips.device) == 0
        share = (present | first).to(each.dtype)  # an empty clip keeps its first body
        return (each * share[:, :, None]).sum(dim=1) / share.sum(dim=1, keepdim=True)


def export(run: Path, out: Path) -> Exported:
    """Write the encoder of a finished run as ONNX, opset 18, float32.

    The file's metadata describes the input under `c2vl`: layout, stream, frames, window, and the facts of the run. If
    onnxruntime is installed, the graph is run once and compared.

    Args:
        run: folder of a finished run.
        out: where to write.

    Raises:
        CheckpointError: the folder holds no finished run.
        EngineError: `onnx` or `onnxscript` is not installed.
        ConfigError: the encoder cannot be exported, or the exported graph does not give its features.
    """
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise EngineError(f"export needs the package {package}; `pip install -e '.[onnx]'`")
    import onnx

    trained = checkpoint.load_encoder(run, torch.device("cpu"))
    layout, bodies = trained.layout, int(trained.facts["bodies"])
    shape = (2, layout.dims, trained.input.frames, layout.joints, bodies)
    clips = torch.randn(shape, generator=torch.Generator().manual_seed(0)) / 2
    clips[1, ..., 1:] = 0  # a clip of one person
    with torch.inference_mode():
        expected = trained.module(clips)
    plain = _Plain(trained.module).eval()
    program = _program(plain, clips, run)
    model: Any = program.model_proto
    for part in (*model.graph.node, *(node for one in model.functions for node in one.node)):
        part.ClearField("metadata_props")  # stack traces, with the folders of this installation
    facts = portable({k: v for k, v in trained.facts.items() if k != "config"})
    for key, value in {"c2vl": json.dumps(facts), "input": "N C T V M: metres"}.items():
        model.metadata_props.add(key=key, value=value)
    data = model.SerializeToString()
    onnx.checker.check_model(model)
    difference = _difference(data, clips, expected)
    if difference > 1e-4:
        raise ConfigError(
            f"the exported graph of {run} differs from the encoder by {difference:.1e} of its largest feature; "
            "install the versions of torch, onnx and onnxscript that constraints.txt names"
        )
    commit_bytes(out, data)
    return Exported(out, shape, int(expected.shape[1]), difference)


def _program(plain: nn.Module, clips: Tensor, run: Path) -> Any:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return torch.onnx.export(
                plain, (clips,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},), opset_version=OPSET, external_data=False,
                verbose=False,
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            raise ConfigError(f"the encoder of {run} cannot be exported to ONNX ({one_line(error)})") from error


def _difference(data: bytes, clips: Tensor, expected: Tensor) -> float:
    """Return the relative difference to onnxruntime's features; NaN if it is not installed."""
    if find_spec("onnxruntime") is None:
        return float("nan")
    # it would keep a number of this machine in the home folder and report its use
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (features,) = session.run([OUTPUT], {INPUT: clips.numpy()})
    return float((torch.from_numpy(features) - expected).abs().max() / expected.abs().max())
