"""Common parts of engines with weights; load a transformers checkpoint for one role.

A checkpoint loads whole or not at all: a missing file, another role or an unused weight raises EngineError in one
line. Images always go through transformers' PIL processors, so that vectors do not depend on whether torchvision
happens to be installed. `c2vl_pipeline.engines.hf_hub` finds checkpoints.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import transformers
from pydantic import Field

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError, one_line
from c2vl_pipeline.engines import Options, checked_options, setting
from c2vl_pipeline.engines.hf_hub import WITHOUT_TEXT, config_of, loader_of, locate, refusal, revision
from c2vl_pipeline.engines.requirements import QUANTISATION

_tf: Any = transformers  # its annotations are partial
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


_INSTALL = {
    "sentencepiece": "`pip install -e '.[models]'`",
    "num2words": "`pip install -e '.[models]'`",
    "torchvision": "`pip install torchvision`, in the build that fits the installed torch",
    "timm": "`pip install timm`",
}
"""Package that transformers asks for only where a checkpoint needs it -> how to install it."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, load reports and warnings; problems in them are raised as EngineError."""
    log = _tf.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


_READ = {".safetensors", ".bin", ".pth", ".json", ".model", ".txt"}
"""Endings of the files that engines with weights read of a checkpoint."""


def unusable(files: Iterable[Path], error: Exception) -> str:
    """Return what is wrong with weights that raised an error, where the error's own text misleads; else empty.

    A clone without Git LFS holds pointers, which look damaged. Torch advises to run what a pickle holds.

    Args:
        files: that may have been read; pointers in other forms, like `.onnx` beside them, are not to blame.
        error: what loading raised.
    """
    for path in (path for path in files if path.suffix in _READ and path.is_file()):
        if path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs"):
            return f"{path.name} is a pointer of Git LFS, expected the file itself; run `git lfs pull` in {path.parent}"
    text = str(error)
    if "Weights only load failed" not in text:
        return ""
    if held := re.search(r"GLOBAL (\S+)", text):
        return f"holds {held[1]}, expected tensors alone (nothing else is ever loaded); save it again without that"
    return "damaged, or pickled otherwise than torch.save does by default; save it again as safetensors"


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

    `processor` is None for closed-set detectors and pose estimators, which read no text.

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
        self.loader = loader_of(spec, config_of(spec, self.folder))
        self.model, self.processor, self.image_processor = self._load()

    def _load(self) -> tuple[Any, Any, Any]:
        processor, local = None, {"local_files_only": True}
        try:
            with quiet(), _without_video():
                if self.loader not in WITHOUT_TEXT:
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
            if not hasattr(processor, "tokenizer"):
                raise refusal(self.spec, "has no processor that reads both text and images")
            processor.image_processor = images
        return self.placed(model, report, _BUFFERS, refusal), processor, images

    def _choices(self) -> dict[str, Any]:
        """Return what the options add to `from_pretrained`."""
        attention, bits = self.options["attention"], self.options["quantisation"]
        chosen: dict[str, Any] = {"attn_implementation": attention} if attention else {}
        if bits == "4bit" and self.device.type == "cpu":
            raise EngineError(
                f"{setting(self.spec)}.options.quantisation = '4bit' needs a GPU, and this engine runs on {self.device}; "
                f"use '8bit', leave the option out, or set {setting(self.spec)}.device = 'cuda'"
            )
        if bits:
            for package in QUANTISATION:
                if find_spec(package) is None:
                    raise EngineError(
                        f"{setting(self.spec)}.options.quantisation = {bits!r} needs the package {package}, which is not "
                        f"installed; `pip install {' '.join(QUANTISATION)}`, or leave the option out"
                    )
            config = _tf.BitsAndBytesConfig(**{f"load_in_{bits}": True})
            chosen |= {"quantization_config": config, "device_map": {"": self.device}}
        return chosen

    def _not_loaded(self, error: Exception) -> EngineError:
        if problem := unusable(sorted(self.folder.glob("*.*")), error):
            return refusal(self.spec, problem)
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
        if isinstance(error, ImportError):  # of weights that are stored quantised, for example
            return EngineError(
                f"{self.spec.role} checkpoint {self.spec.model!r} needs a package that is not installed ({why}); install it"
            )
        return refusal(self.spec, f"damaged or incomplete, cannot be loaded ({why})")

    def refusal(self, problem: str) -> EngineError:
        """Return the one-line error that this checkpoint does not do for its role."""
        return refusal(self.spec, f"holds a {self.model.config.model_type!r} model, {problem}")

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
