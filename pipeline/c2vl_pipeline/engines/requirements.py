"""What engines need before they run: packages, and weights with their size and place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from c2vl_manifests.engine import EngineSpec
from c2vl_pipeline.engines import backend

HUB_TIMEOUT = 5.0
"""Seconds until the hub must answer: without a network an engine fails at once and does not retry."""
_FORMS = (".safetensors", ".bin", ".pth", ".onnx", ".tflite")
"""Formats of weights; of a checkpoint in several, the first is loaded."""


class Weights(BaseModel):
    """Weights of an engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: Literal["here", "hub", "server", "absent"]
    """On this machine, to be downloaded, run elsewhere, or not to be had."""
    bytes: int | None = None
    """None where the size is not known."""
    note: str


class Requirement(BaseModel):
    """Needs of one engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    engine: str
    model: str | None
    packages: tuple[str, ...]
    missing: tuple[str, ...]
    """Of `packages`, those that are not installed."""
    weights: Weights | None
    """None for an engine without weights."""


def may_be_hub_id(model: str) -> bool:
    """Return True for `name` and `owner/name`, False for what can only be a path."""
    return not model.startswith((".", "/", "~")) and model.count("/") <= 1


def requirements(specs: Sequence[EngineSpec]) -> list[Requirement]:
    """Return the needs of engines; none is loaded."""
    return [
        Requirement(
            role=spec.role,
            engine=spec.backend,
            model=spec.model,
            packages=(packages := backend(spec).packages),
            missing=tuple(name for name in packages if find_spec(name.replace("-", "_")) is None),
            weights=_weights(spec),
        )
        for spec in specs
    ]


def _weights(spec: EngineSpec) -> Weights | None:
    if url := spec.options.get("base_url"):
        return Weights(place="server", note=f"served at {url}")
    if not spec.model:
        return None
    path = Path(spec.model).expanduser()
    if path.exists():
        return Weights(place="here", bytes=_size([path] if path.is_file() else path.iterdir()), note="on this machine")
    if path.suffix in _FORMS or not may_be_hub_id(spec.model):
        return Weights(place="absent", note="does not exist")
    return _on_hub(spec.model, spec.revision)


def _size(files: Iterable[Path]) -> int:
    return _of_one_form({file.name: file.stat().st_size for file in files if file.is_file()})


def _of_one_form(files: dict[str, int]) -> int:
    """Return the bytes of the weights among the files of a checkpoint."""
    sizes = ([size for name, size in files.items() if name.endswith(form)] for form in _FORMS)
    return sum(next(filter(None, sizes), []))


def _on_hub(model: str, revision: str | None) -> Weights:
    """Look for a hub id in the cache on this machine, then ask the hub."""
    import huggingface_hub

    try:
        config = huggingface_hub.try_to_load_from_cache(model, "config.json", revision=revision)
        if isinstance(config, str) and (size := _size(Path(config).parent.iterdir())):
            return Weights(place="here", bytes=size, note="in the hub's cache on this machine")
        if huggingface_hub.is_offline_mode():
            return Weights(place="absent", note="not in the hub's cache, and HF_HUB_OFFLINE forbids asking the hub")
        found = huggingface_hub.HfApi().model_info(model, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT)
    except Exception as error:  # any error of the network stack, and ids that are none
        why = type(error).__name__
        return Weights(place="absent", note=f"not in the hub's cache, and the hub does not tell its size ({why})")
    files = {file.rfilename: file.size or 0 for file in found.siblings or []}
    return Weights(place="hub", bytes=_of_one_form(files), note="to be downloaded from the hub")
