"""Find a transformers checkpoint for one role: in a local folder, or by a hub id in the hub's cache or on the hub.

A hub id is resolved to its folder first, so that what is loaded is what `Checkpoint.describe` records. Nothing is
loaded here: whether a checkpoint suits its role is read from its configuration and from transformers' own tables.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import transformers
from huggingface_hub import errors as hub_errors

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError, one_line
from c2vl_manifests.file_hashes import remembered_sha256
from c2vl_manifests.reading import read_json
from c2vl_pipeline.engines import setting
from c2vl_pipeline.engines.requirements import HUB_TIMEOUT, may_be_hub_id, weight_files

_tf: Any = transformers  # its annotations are partial
_SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "qformer_tokenizer/*.json")


@dataclass(frozen=True, slots=True)
class _Need:
    """Requirements of one role on its checkpoint."""

    loaders: tuple[str, ...]
    """Auto classes of transformers, the first that knows the architecture loads it."""
    lacks: str
    """What is wrong with a model that none of them loads."""
    example: str
    methods: tuple[str, ...] = ()
    """Methods that its class must have."""


CLOSED_SET = "AutoModelForObjectDetection"
_POSE = "AutoModelForPoseEstimation"
WITHOUT_TEXT = frozenset({CLOSED_SET, _POSE})
"""Classes of models that read no text, and so have no processor of text and images."""
NEEDS = {
    "detector": _Need(
        ("AutoModelForZeroShotObjectDetection", CLOSED_SET), "detects no objects", "IDEA-Research/grounding-dino-tiny"
    ),
    "pose": _Need((_POSE,), "finds no joints", "usyd-community/vitpose-base-simple"),
    "captioner": _Need(("AutoModelForImageTextToText",), "writes no text about images", "llava-hf/llava-1.5-7b-hf"),
    "encoder": _Need(
        ("AutoModel",),
        "encodes nothing",
        "openai/clip-vit-large-patch14-336",
        ("get_image_features", "get_text_features"),
    ),
}


def loader_of(spec: EngineSpec, config: Mapping[str, Any]) -> str:
    """Return the name of the Auto class that loads a checkpoint in its role.

    Raises:
        EngineError: One line that names what the architecture lacks for the role.
    """
    need, model_type = NEEDS[spec.role], config.get("model_type")
    holds = f"holds a {model_type!r} model"
    try:
        kind = _tf.CONFIG_MAPPING[model_type]
    except (KeyError, TypeError):
        saved, own = str(config.get("transformers_version", "")), _tf.__version__
        # the version that saved it knew it; this one is no older, so the architecture was never the library's
        why = "its code comes with the checkpoint, which is never run, or model_type in its config.json is misspelled"
        if _numbers(saved) > _numbers(own):
            why = f"its files are of {saved}; install that version or a newer one"
        raise refusal(spec, f"{holds}, which transformers {own} does not know ({why})") from None
    for loader in need.loaders:
        mapping = getattr(_tf, loader)._model_mapping
        if kind not in mapping:
            continue
        found = mapping[kind]
        lacking = [name for name in need.methods if not hasattr(found[0] if isinstance(found, tuple) else found, name)]
        if lacking:
            raise refusal(spec, f"{holds}, which has no {' and no '.join(lacking)}")
        return loader
    blind = spec.role == "captioner" and kind in _tf.MODEL_FOR_CAUSAL_LM_MAPPING
    lacks = "has no image input" if blind else need.lacks
    raise refusal(spec, f"{holds}, which {lacks} (expected one for {' or '.join(need.loaders)})")


def _numbers(version: str) -> list[int]:
    """Return major, minor and patch of a version; without them an empty list, which is the oldest."""
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def refusal(spec: EngineSpec, problem: str, hub_id: str = "") -> EngineError:
    """Return the one-line error that a checkpoint does not do, and how to get one that does."""
    return EngineError(
        f"{spec.role} checkpoint {spec.model!r}: {problem}; get one "
        f"with `hf download {hub_id or NEEDS[spec.role].example} --local-dir /path/to/folder` on a machine with "
        f"network and point to it with `--set {setting(spec)}.model=/path/to/folder`"
    )


def locate(spec: EngineSpec) -> Path:
    """Return the local folder of a checkpoint, with its weight files and the right architecture.

    Raises:
        EngineError: One line, for a checkpoint that is absent or of another architecture.
    """
    model = spec.model or ""
    folder = Path(model).expanduser()
    if not model:
        raise refusal(spec, "expected a hub id or a local folder")
    if not folder.is_dir():
        if folder.is_file() or not may_be_hub_id(model):
            raise refusal(spec, "no such folder")
        folder = _find_on_hub(spec, model)
    loader_of(spec, config_of(spec, folder))
    try:
        missing = [file.name for file in weight_files(folder) if not file.is_file()]
    except ValueError as error:
        raise refusal(spec, str(error)) from error
    if missing:
        raise refusal(spec, f"{len(missing)} weight files missing, expected {missing[0]} next to config.json")
    return folder


def config_of(spec: EngineSpec, folder: Path) -> Mapping[str, Any]:
    """Return the configuration of a checkpoint; EngineError if it cannot be read."""
    try:
        return dict(read_json(folder / "config.json"))
    except (OSError, ValueError, TypeError) as error:
        raise refusal(
            spec, f"not a checkpoint, its config.json cannot be read ({one_line(error, named=True)})"
        ) from error


def _find_on_hub(spec: EngineSpec, model: str) -> Path:
    """Return the folder in the hub's cache; download it if it is incomplete; without a network fail within seconds."""
    revision, why = spec.revision, "HF_HUB_OFFLINE forbids asking the hub"
    fetch = huggingface_hub.snapshot_download
    try:
        cached = Path(fetch(model, revision=revision, local_files_only=True, allow_patterns="config.json"))
        if all(file.is_file() for file in (cached / "config.json", *weight_files(cached))):
            return cached
    except (OSError, ValueError):  # not in the cache; no valid hub id
        pass
    try:
        if not huggingface_hub.is_offline_mode():
            info = huggingface_hub.HfApi().model_info(model, revision=revision, timeout=HUB_TIMEOUT)
            safe = any(file.rfilename.endswith(".safetensors") for file in info.siblings or [])
            patterns = [*_SMALL_FILES, "*.safetensors" if safe else "*.bin"]
            return Path(fetch(model, revision=revision, allow_patterns=patterns))
    except hub_errors.RevisionNotFoundError:
        why = f"the hub has no revision {revision!r} of it"
    except (hub_errors.RepositoryNotFoundError, hub_errors.HFValidationError):
        why = "the hub has no such model (or it is private or gated: `hf auth login`)"
    except Exception as error:  # any error of the network stack has the same remedy
        why = f"the hub does not answer ({one_line(error, named=True)})"
    hub_id = f"{model} --revision {revision}" if revision else model
    raise refusal(spec, f"neither a folder nor complete in the hub cache, and {why}", hub_id)


def revision(folder: Path) -> str:
    """Return the commit of a hub snapshot, else SHA-256 over names and bytes of the files that are loaded."""
    if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name):
        return folder.name
    small = {path for pattern in _SMALL_FILES for path in folder.glob(pattern)}
    files = sorted(small.union(weight_files(folder)))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + bytes.fromhex(remembered_sha256(path)))
    return f"sha256:{digest.hexdigest()}"


def weights_id(spec: EngineSpec) -> dict[str, Any]:
    """Return the revision that a spec resolves to, without loading the model."""
    return {"revision_resolved": revision(locate(spec))}
