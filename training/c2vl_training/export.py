"""Export of a trained encoder as one ONNX file, for use without torch."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
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
    check_packages("onnx", "onnxscript")
    trained = checkpoint.load_encoder(run)
    shape = (2, trained.layout.dims, trained.input.frames, trained.layout.joints, trained.bodies)
    clips = torch.randn(shape, generator=torch.Generator().manual_seed(0)) / 2
    clips[1, ..., 1:] = 0  # a clip of one person
    with torch.inference_mode():
        expected = trained.module(clips)
    data = graph_of(
        exportable(trained.module), (clips,), ([INPUT], [OUTPUT]), ({0: torch.export.Dim("batch")},),
        facts_of(trained.facts) | {"input": f"N C T V M: {trained.layout.unit}"}, f"the encoder of {run}",
    )  # fmt: skip
    difference = difference_of(data, [({INPUT: clips}, expected)])
    check_difference(difference, "the encoder", run)
    commit_bytes(out, data)
    return Exported(out, shape, int(expected.shape[1]), difference)


def check_packages(*names: str) -> None:
    """Raise EngineError if a package is not installed that export needs."""
    for package in names:
        if find_spec(package) is None:
            raise EngineError(f"export needs the package {package}; `pip install -e '.[onnx]'`")


def facts_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return what an ONNX file says of the run that its weights are from; not the ids of its training clips."""
    return {"c2vl": json.dumps(portable({k: v for k, v in facts.items() if k not in {"config", "clips"}}))}


def exportable(encoder: nn.Module) -> nn.Module:
    """Return an encoder in eval mode without data-dependent branches; the encoder itself is changed too."""
    return _Plain(encoder).eval()


def graph_of(
    module: nn.Module,
    example: tuple[Tensor, ...],
    names: tuple[list[str], list[str]],
    dynamic: tuple[dict[int, Any], ...],
    metadata: Mapping[str, str],
    label: str,
) -> bytes:
    """Return a module as the bytes of an ONNX file that holds its weights, and no path of this machine.

    Args:
        module: in eval mode.
        example: its arguments.
        names: of inputs and outputs.
        dynamic: of each argument, the dimensions that may have any size.
        metadata: of the file.
        label: names the module in messages.

    Raises:
        ConfigError: it cannot be exported.
    """
    import onnx

    model: Any = _program(module, example, names, dynamic, label).model_proto
    for part in (*model.graph.node, *(node for one in model.functions for node in one.node)):
        part.ClearField("metadata_props")  # stack traces, with the folders of this installation
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _program(
    module: nn.Module, example: tuple[Tensor, ...], names: tuple[list[str], list[str]], dynamic: Any, label: str
) -> Any:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return torch.onnx.export(
                module, example, dynamo=True, input_names=names[0], output_names=names[1],
                dynamic_shapes=dynamic, opset_version=OPSET, external_data=False, verbose=False,
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            raise ConfigError(f"{label} cannot be exported to ONNX ({one_line(error)})") from error


def session_of(model: bytes | Path) -> Any:
    """Return an onnxruntime session on the CPU, which keeps and reports nothing of this machine."""
    # it would keep a number of this machine in the home folder and report its use
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def difference_of(data: bytes, cases: Sequence[tuple[dict[str, Tensor], Tensor]]) -> float:
    """Return the largest difference of a graph's first output to what is expected, over the largest value expected.

    Args:
        data: of the ONNX file.
        cases: inputs by name, and the output that torch gives for them.

    Returns:
        NaN if onnxruntime is not installed.
    """
    if find_spec("onnxruntime") is None:
        return float("nan")
    session = session_of(data)
    found = [(session.run(None, {n: x.numpy() for n, x in feeds.items()})[0], wanted) for feeds, wanted in cases]
    return max(float((torch.from_numpy(made) - wanted).abs().max() / wanted.abs().max()) for made, wanted in found)


def checked(difference: float) -> str:
    """Return what is known of an exported graph's difference to torch; NaN: nothing."""
    if math.isnan(difference):
        return "not run: onnxruntime is not installed"
    return f"differs from torch by {difference:.0e} in onnxruntime"


def check_difference(difference: float, label: str, run: Path) -> None:
    """Raise ConfigError if an exported graph does not give what torch gives."""
    if difference > 1e-4:
        raise ConfigError(
            f"the exported graph of {run} differs from {label} by {difference:.1e} of its largest output; "
            "install the versions of torch, onnx and onnxscript that constraints.txt names"
        )
