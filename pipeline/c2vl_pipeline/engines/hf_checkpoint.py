"""Common parts of engines with weights; find, check and load a transformers checkpoint for one role.

A checkpoint is a local folder or a hub id; a hub id is resolved to its folder in the cache first, so that
what is loaded is what `describe` records. A checkpoint loads whole or not at all: a missing file, another
architecture or an unused weight raises EngineError in one line. Images always go through transformers' PIL
processors, so that vectors do not depend on whether torchvision happens to be installed.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import huggingface_hub
import torch
import transformers
from huggingface_hub import errors as hub_errors
from pydantic import Field

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError, one_line
from c2vl_manifests.manifest import remembered_sha256
from c2vl_manifests.reading import read_json
from c2vl_pipeline.engines import Options, checked_options, setting

HUB_TIMEOUT = 5.0
"""Seconds until the hub must answer: without a network an engine fails at once and does not retry."""

_tf: Any = transformers  # its annotations are partial
_SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "qformer_tokenizer/*.json")
_BUFFERS = re.compile(r"(position_ids|inv_freq|relative_position_index)$")


class BaseOptions(Options):
    """`EngineSpec.options` of every engine with weights."""

    allow_unexpected_weights: bool = False


class DetectorOptions(BaseOptions):
    """`EngineSpec.options` of a detector."""

    threshold: float = Field(default=0.35, ge=0, le=1)
    text_threshold: float = Field(default=0.25, ge=0, le=1)
    shortest_edge: int | None = Field(default=None, ge=32)
    longest_edge: int | None = Field(default=None, ge=32)


class HfOptions(BaseOptions):
    """`EngineSpec.options` of every `hf` engine."""

    attention: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None = None
    """Implementation of attention; default: the library's choice."""
    quantisation: Literal["8bit", "4bit"] | None = None
    """Bits of a weight of linear layers, by the package bitsandbytes; default: all of `dtype`."""
    compile: bool = False
    """Compile the model: slower to start, faster afterwards."""


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
NEEDS = {
    "detector": _Need(
        ("AutoModelForZeroShotObjectDetection", CLOSED_SET), "detects no objects", "IDEA-Research/grounding-dino-tiny"
    ),
    "captioner": _Need(("AutoModelForImageTextToText",), "writes no text about images", "llava-hf/llava-1.5-7b-hf"),
    "encoder": _Need(
        ("AutoModel",),
        "encodes nothing",
        "openai/clip-vit-large-patch14-336",
        ("get_image_features", "get_text_features"),
    ),
}

_INSTALL = {
    "sentencepiece": "`pip install -e '.[models]'`",
    "num2words": "`pip install -e '.[models]'`",
    "torchvision": "`pip install torchvision`, in the build that fits the installed torch",
    "timm": "`pip install timm`",
}
"""Package that transformers asks for only where a checkpoint needs it -> how to install it."""


def _loader(spec: EngineSpec, config: Mapping[str, Any]) -> str:
    """Return the name of the Auto class that loads a checkpoint in its role.

    Raises:
        EngineError: One line that names what the architecture lacks for the role.
    """
    need, model_type = NEEDS[spec.role], config.get("model_type")
    holds = f"holds a {model_type!r} model"
    try:
        kind = _tf.CONFIG_MAPPING[model_type]
    except KeyError:
        saved = config.get("transformers_version", "an unknown version")
        raise _refusal(
            spec,
            f"{holds}, which transformers {_tf.__version__} does not know (its files are of {saved}); install a newer one",
        ) from None
    for loader in need.loaders:
        mapping = getattr(_tf, loader)._model_mapping
        if kind not in mapping:
            continue
        found = mapping[kind]
        lacking = [name for name in need.methods if not hasattr(found[0] if isinstance(found, tuple) else found, name)]
        if lacking:
            raise _refusal(spec, f"{holds}, which has no {' and no '.join(lacking)}")
        return loader
    blind = spec.role == "captioner" and kind in _tf.MODEL_FOR_CAUSAL_LM_MAPPING
    lacks = "has no image input" if blind else need.lacks
    raise _refusal(spec, f"{holds}, which {lacks} (expected one for {' or '.join(need.loaders)})")


def _weight_files(folder: Path) -> list[Path]:
    """Return the weight files `from_pretrained` would read, whether or not they exist."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if index.is_file() and not (folder / single).is_file():
            names = set(read_json(index)["weight_map"].values())
            return [folder / name for name in sorted(names)]
        if (folder / single).is_file():
            return [folder / single]
    return [folder / "model.safetensors"]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and load reports; problems in them are raised as EngineError."""
    log = _tf.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _refusal(spec: EngineSpec, problem: str, hub_id: str = "") -> EngineError:
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
        raise _refusal(spec, "expected a hub id or a local folder")
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1 or folder.is_file():
            raise _refusal(spec, "no such folder")
        folder = _find_on_hub(spec, model)
    _loader(spec, _config(spec, folder))
    missing = [file.name for file in _weight_files(folder) if not file.is_file()]
    if missing:
        raise _refusal(spec, f"{len(missing)} weight files missing, expected {missing[0]} next to config.json")
    return folder


def _config(spec: EngineSpec, folder: Path) -> Mapping[str, Any]:
    try:
        return dict(read_json(folder / "config.json"))
    except (OSError, ValueError, TypeError) as error:
        raise _refusal(
            spec, f"not a checkpoint, its config.json cannot be read ({one_line(error, named=True)})"
        ) from error


def _find_on_hub(spec: EngineSpec, model: str) -> Path:
    """Return the folder in the hub's cache; download it if it is incomplete; without a network fail within seconds."""
    revision, why = spec.revision, "HF_HUB_OFFLINE forbids asking the hub"
    fetch = huggingface_hub.snapshot_download
    try:
        cached = Path(fetch(model, revision=revision, local_files_only=True, allow_patterns="config.json"))
        if all(file.is_file() for file in (cached / "config.json", *_weight_files(cached))):
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
    raise _refusal(spec, f"neither a folder nor complete in the hub cache, and {why}", hub_id)


def revision(folder: Path) -> str:
    """Return the commit of a hub snapshot, else SHA-256 over names and bytes of the files that are loaded."""
    if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name):
        return folder.name
    small = {path for pattern in _SMALL_FILES for path in folder.glob(pattern)}
    files = sorted(small.union(_weight_files(folder)))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + bytes.fromhex(remembered_sha256(path)))
    return f"sha256:{digest.hexdigest()}"


def weights_id(spec: EngineSpec) -> dict[str, Any]:
    """Return the revision that a spec resolves to, without loading the model."""
    return {"revision_resolved": revision(locate(spec))}


class Weights:
    """Base of an engine's weights: validated options, the device, batches.

    Raises:
        EngineError: One line, for an unknown option or an unusable device.
    """

    def __init__(self, spec: EngineSpec, form: type[BaseOptions]) -> None:
        self.spec, self.options = spec, checked_options(spec, form).model_dump()
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(auto if spec.device == "auto" else spec.device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise EngineError(
                f"{setting(spec)}.device = {spec.device!r}: torch cannot use it ({one_line(error, named=True)}); "
                f"expected auto, cpu or one of the {torch.cuda.device_count()} GPUs it sees"
            ) from error

    def placed(
        self,
        model: Any,
        report: Mapping[str, Any],
        unused: re.Pattern[str],
        refusal: Callable[[EngineSpec, str], EngineError],
    ) -> Any:
        """Return a model in eval mode on the device; raise `refusal` unless its weights fill it exactly.

        Args:
            model: as loaded.
            report: names under `missing_keys`, `mismatched_keys` and `unexpected_keys`; an absent key means none.
            unused: matches the names that may be missing or unexpected.
            refusal: makes the error from a spec and the problem of its weights.
        """
        for kind in ("missing", "mismatched", "unexpected"):
            keys = report.get(f"{kind}_keys", ())
            names = sorted(key if isinstance(key, str) else key[0] for key in keys)
            names = [name for name in names if not unused.search(name)]
            if names and not (kind == "unexpected" and self.options["allow_unexpected_weights"]):
                hint = " (or set options.allow_unexpected_weights = true)" if kind == "unexpected" else ""
                raise refusal(self.spec, f"{len(names)} {kind} weights, expected none{hint}: {names[0]}")
        model = model.eval()
        return model if getattr(model, "is_quantized", False) else model.to(self.device)

    def parts(self, n: int) -> Iterator[slice]:
        """Return slices that cut n items into batches."""
        return (slice(at, min(at + self.spec.batch_size, n)) for at in range(0, n, self.spec.batch_size))

    def _describe(self, resolved: str, *packages: str) -> dict[str, Any]:
        return {
            "backend": self.spec.backend,
            "model": self.spec.model,
            "revision_asked": self.spec.revision,
            "revision_resolved": resolved,
            "dtype": self.spec.dtype,
            "device": str(self.device),
            "options": dict(self.options),
            **{name: version(name) for name in packages},
        }


class _NoVideo(dict[str, Any]):  # a processor writes its parts as JSON
    """Stands where a processor wants a video processor, which needs torchvision and is never asked: crops are images."""

    model_input_names: ClassVar[list[str]] = []
    num_frames = fps = None

    @classmethod
    def from_pretrained(cls, *folder: Any, **options: Any) -> _NoVideo:
        return cls()


@contextmanager
def _without_video() -> Iterator[None]:
    """Let processors be loaded without their video processor, whether or not torchvision is installed."""
    module: Any = importlib.import_module("transformers.models.auto.video_processing_auto")
    mixin = _tf.ProcessorMixin
    loader, check = module.AutoVideoProcessor, mixin.check_argument_for_proper_class

    def checked(self: Any, name: str, argument: Any) -> Any:
        return None if isinstance(argument, _NoVideo) else check(self, name, argument)

    module.AutoVideoProcessor, mixin.check_argument_for_proper_class = _NoVideo, checked
    try:
        yield
    finally:
        module.AutoVideoProcessor, mixin.check_argument_for_proper_class = loader, check


class Checkpoint(Weights):
    """One loaded checkpoint: model in eval mode on its device, processor, validated options.

    `processor` is None for a closed-set detector, which reads no text.

    Args:
        spec: of a role in `NEEDS`.
        form: the options of its engine.

    Raises:
        EngineError: One line, for an unknown option, an unusable device, and a checkpoint that is absent,
            damaged, of another role, needs a package that is absent, or does not fill the model exactly.
    """

    def __init__(self, spec: EngineSpec, form: type[HfOptions]) -> None:
        super().__init__(spec, form)
        self.dtype: torch.dtype = getattr(torch, spec.dtype)
        self.folder = locate(spec)
        self.loader = _loader(spec, _config(spec, self.folder))
        self.model, self.processor, self.image_processor = self._load()

    def _load(self) -> tuple[Any, Any, Any]:
        processor, local = None, {"local_files_only": True}
        try:
            with quiet(), _without_video():
                if self.loader != CLOSED_SET:
                    processor = _tf.AutoProcessor.from_pretrained(self.folder, **local)
                images = _tf.AutoImageProcessor.from_pretrained(self.folder, backend="pil", **local)
                model, report = getattr(_tf, self.loader).from_pretrained(
                    self.folder,
                    dtype=self.dtype,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # rejected below, by name
                    **local,
                    **self._choices(),
                )
        except EngineError:
            raise
        except Exception as error:  # safetensors, pickle, json and tokenizers each raise other types
            raise self._not_loaded(error) from error
        if processor is not None:
            processor.image_processor = images
        return self.placed(model, report, _BUFFERS, _refusal), processor, images

    def _choices(self) -> dict[str, Any]:
        """Return what the options add to `from_pretrained`."""
        attention, bits = self.options["attention"], self.options["quantisation"]
        chosen: dict[str, Any] = {"attn_implementation": attention} if attention else {}
        if bits:
            for package in ("bitsandbytes", "accelerate"):
                if find_spec(package) is None:
                    raise EngineError(
                        f"{setting(self.spec)}.options.quantisation = {bits!r} needs the package {package}, which is not "
                        "installed; `pip install bitsandbytes accelerate`, or leave the option out"
                    )
            config = _tf.BitsAndBytesConfig(**{f"load_in_{bits}": True})
            chosen |= {"quantization_config": config, "device_map": {"": self.device}}
        return chosen

    def _not_loaded(self, error: Exception) -> EngineError:
        text, why = str(error), one_line(error, named=True)
        if self.options["attention"] and "attention" in text.lower():
            return EngineError(
                f"{setting(self.spec)}.options.attention = {self.options['attention']!r}: this model cannot use it "
                f"here ({why}); leave the option out for the library's choice"
            )
        told = text.lower()
        if "token" in told and any(self.folder.glob("*.model")) and not (self.folder / "tokenizer.json").is_file():
            told += "sentencepiece"  # the library names another package
        if absent := [name for name in _INSTALL if name in told and find_spec(name) is None]:
            return EngineError(
                f"{self.spec.role} checkpoint {self.spec.model!r} needs the package {absent[0]}, which is not installed "
                f"({why}); {_INSTALL[absent[0]]}"
            )
        return _refusal(self.spec, f"damaged or incomplete, cannot be loaded ({why})")

    def refusal(self, problem: str) -> EngineError:
        """Return the one-line error that this checkpoint does not do for its role."""
        return _refusal(self.spec, f"holds a {self.model.config.model_type!r} model, {problem}")

    def compile(self) -> None:
        """Compile the parts of the model if the options ask for it."""
        if self.options["compile"]:
            for part in self.model.children():
                part.compile()

    def inputs(self, batch: Any) -> dict[str, torch.Tensor]:
        """Move a processor's output to the device; floating tensors take the model's dtype."""
        moved = {name: tensor.to(self.device) for name, tensor in batch.items()}
        return {name: t.to(self.dtype) if t.is_floating_point() else t for name, t in moved.items()}

    def describe(self) -> dict[str, Any]:
        """Return the facts about this checkpoint that the stage's manifest records."""
        return self._describe(revision(self.folder), "transformers") | {"architecture": type(self.model).__name__}
