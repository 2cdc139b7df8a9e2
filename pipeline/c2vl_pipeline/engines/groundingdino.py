"""The `groundingdino-py` back-end: the original Grounding DINO package and its `.pth` checkpoints.

On the same weights it finds the same boxes as the `hf` back-end, and shares with it everything around the network:
the query's wording, the frames' pixels, the thresholds. The package needs torchvision, hence the CUDA build of
torch even on a CPU, so it is an extra and loaded when the engine is built. Its deformable attention is plain
PyTorch: no extension is compiled.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import torch
import transformers

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError, one_line
from c2vl_manifests.file_hashes import remembered_sha256
from c2vl_pipeline.engines import Box, Detector, Frame, Image, grounding
from c2vl_pipeline.engines.hf_checkpoint import DetectorOptions, Weights, unusable
from c2vl_pipeline.engines.hf_checkpoint import quiet as quiet_transformers
from c2vl_pipeline.engines.requirements import HUB_TIMEOUT

_tf: Any = transformers  # its annotations are partial
_SETTING = "pipeline.crop.engine"
_UNUSED = re.compile(r"^(label_enc\.weight|bert\.embeddings\.position_ids)$")
"""Weights of published checkpoints that no model has: a training head and a buffer of old transformers."""


class _Options(DetectorOptions):
    """`EngineSpec.options` of this back-end."""

    config: str | None = None
    """Path of the model's .py file; default: GroundingDINO_SwinT_OGC of the package."""
    text_encoder: str = "google-bert/bert-base-uncased"
    """Local folder or hub id: its configuration and tokenizer; its weights are in the .pth."""


def _refusal(spec: EngineSpec, what: str) -> EngineError:
    return EngineError(
        f"detector checkpoint {spec.model!r} (original Grounding DINO): {what}; get one with `hf download "
        f"ShilongLiu/GroundingDINO groundingdino_swint_ogc.pth --local-dir /path/to/folder` on a machine with "
        f"network and point to it with `--set {_SETTING}.model=/path/to/folder/groundingdino_swint_ogc.pth`"
    )


def _revision(file: Path) -> str:
    return f"sha256:{remembered_sha256(file)}"


def _locate(spec: EngineSpec) -> Path:
    file = Path(spec.model or "").expanduser()
    if not spec.model:
        raise _refusal(spec, "expected the path of a .pth file")
    if not file.is_file():
        raise _refusal(spec, "no such file")
    return file


@contextlib.contextmanager
def _bert_shim() -> Iterator[None]:
    """Give BertModel the methods that the package copies from it, until the model is built.

    The package's BERT wrapper takes three bound methods from a BertModel. transformers 5.0 dropped
    `get_head_mask`, 5.17 the other two. The wrapper keeps what it was given, so nothing stays on the class; a
    method that transformers still has is left alone.

    `get_extended_attention_mask` turns a mask of ones and zeros, (n, L) or (n, L, L), into what is added to
    attention scores: 0 and the dtype's lowest number, (n, 1, L or 1, L). `get_head_mask` says that no head is
    masked. `invert_attention_mask` serves decoders only and is never called.
    """

    def extended(self: Any, mask: torch.Tensor, shape: Any = None, device: Any = None) -> torch.Tensor:
        mask = mask[:, None] if mask.dim() == 3 else mask[:, None, None]
        return (1.0 - mask.to(self.dtype)) * torch.finfo(self.dtype).min

    def heads(self: Any, mask: None, layers: int) -> list[None]:
        return [None] * layers

    methods = {"get_extended_attention_mask": extended, "invert_attention_mask": extended, "get_head_mask": heads}
    absent = {name: method for name, method in methods.items() if not hasattr(_tf.BertModel, name)}
    for name, method in absent.items():
        setattr(_tf.BertModel, name, method)
    try:
        yield
    finally:
        for name in absent:
            delattr(_tf.BertModel, name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the package's output and its deprecation warnings."""
    with quiet_transformers(), contextlib.redirect_stdout(io.StringIO()):
        yield


def _import(name: str) -> Any:
    try:
        with _quiet():
            return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:  # torchvision of another build raises RuntimeError
        raise EngineError(
            "the detector engine 'groundingdino-py' needs the packages groundingdino-py and torchvision, "
            f"and they cannot be imported ({one_line(error, named=True)}); `pip install -e "
            "'.[groundingdino]'`, which pulls torchvision and with it the CUDA build of torch"
        ) from error


def _read_config(path: str | None) -> dict[str, Any]:
    """Read a model's .py file, a list of assignments of plain values, without running it."""
    file = Path(_import("groundingdino").__file__).parent / "config" / "GroundingDINO_SwinT_OGC.py"
    file = Path(path).expanduser() if path else file
    try:
        lines = ast.parse(file.read_text("utf-8")).body
        return {line.targets[0].id: ast.literal_eval(line.value) for line in lines}  # type: ignore[attr-defined]
    except (OSError, SyntaxError, ValueError, AttributeError) as error:
        raise EngineError(
            f"{_SETTING}.options.config = {str(file)!r}: expected a file of `name = value` lines "
            f"({one_line(error, named=True)}); leave it out for the package's GroundingDINO_SwinT_OGC.py"
        ) from error


def _find_text_encoder(name: str) -> Path:
    """Return the folder of BERT's configuration and tokenizer: as given, in the hub's cache, or downloaded."""
    why, folder = "expected config.json, and vocab.txt or tokenizer.json", Path(name).expanduser()
    for cached in (True, False):
        if not folder.is_dir():
            try:
                if not cached:  # fails at once without a network, unlike the download
                    huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT)
                fetch = huggingface_hub.snapshot_download
                candidate = Path(fetch(name, allow_patterns=["*.json", "*.txt"], local_files_only=cached))
            except Exception as error:  # any error of the network stack has the same remedy
                why = one_line(error, named=True)
                continue
        else:
            candidate = folder
        vocabularies = (candidate / "vocab.txt", candidate / "tokenizer.json")
        if (candidate / "config.json").is_file() and any(file.is_file() for file in vocabularies):
            return candidate
    raise EngineError(
        f"{_SETTING}.options.text_encoder = {name!r}: no BERT configuration and tokenizer there ({why}); get "
        f"them with `hf download google-bert/bert-base-uncased --include '*.json' '*.txt' --local-dir "
        f"/path/to/folder` and point to that folder"
    )


class _Package(Weights):
    """The original model, filled exactly by its .pth, and the processor of its inputs."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec, _Options)
        if spec.dtype != "float32":
            raise EngineError(
                f"{_SETTING}.dtype = {spec.dtype!r}: the original package computes in float32; expected float32, "
                f"or take the `hf` engine"
            )
        self.file = _locate(spec)
        self.model = self._fill(self._build())
        size = {edge: self.options[edge] or default for edge, default in _EDGES.items()}
        self.processor = _tf.GroundingDinoProcessor(_tf.GroundingDinoImageProcessorPil(size=size), self.model.tokenizer)

    def _build(self) -> Any:
        """Build the model without weights."""
        package, names = _import("groundingdino.models"), _import("groundingdino.util.get_tokenlizer")
        config = _read_config(self.options["config"])
        text_encoder = _find_text_encoder(self.options["text_encoder"])
        # checkpointing saves memory in training alone
        config |= {
            "use_checkpoint": False, "use_transformer_ckpt": False, "text_encoder_type": str(text_encoder),
        }  # fmt: skip
        original = names.get_pretrained_language_model
        names.get_pretrained_language_model = lambda folder: _tf.BertModel(
            _tf.BertConfig.from_pretrained(folder, local_files_only=True)
        )
        try:
            with _quiet(), _bert_shim():
                return package.build_model(SimpleNamespace(**config))
        except Exception as error:  # a config of another model fails anywhere
            raise EngineError(
                f"{_SETTING}.options.config = {self.options['config']!r}, text_encoder = {str(text_encoder)!r}: the "
                f"package cannot build a model from them ({one_line(error, named=True)}); expected a configuration of "
                f"groundingdino-py and a BERT folder"
            ) from error
        finally:
            names.get_pretrained_language_model = original

    def _fill(self, model: Any) -> Any:
        try:
            stored = torch.load(self.file, map_location="cpu", weights_only=True)
            weights = {name.removeprefix("module."): t for name, t in stored.get("model", stored).items()}
            report = model.load_state_dict(weights, strict=False)
        except Exception as error:  # zip, pickle and shapes each raise other types
            problem = f"damaged or of another config, cannot be loaded ({one_line(error, named=True)})"
            raise _refusal(self.spec, unusable([self.file], error) or problem) from error
        return self.placed(model, report._asdict(), _UNUSED, _refusal)

    def describe(self) -> dict[str, Any]:
        """Return the facts about this checkpoint that the stage's manifest records."""
        return self._describe(_revision(self.file), "groundingdino-py", "torchvision", "transformers")


_EDGES = {"shortest_edge": 800, "longest_edge": 1333}
"""Size in pixels to which the package's own demonstration resizes an image."""


class GroundingDinoPy(Detector):
    """Finds people with the original Grounding DINO package.

    Options: those of the `hf` detector, and `config` (the model's .py file; default: the package's
    GroundingDINO_SwinT_OGC) and `text_encoder` (folder or hub id with BERT's configuration and tokenizer). The
    spec's `model` is the path of the .pth file, which is loaded as tensors only.

    Reading: frames are resized by transformers' PIL processor, so that both back-ends see the same pixels. They
    equal the package's own transforms wherever both choose one size, as they do at the usual video sizes. Where
    `longest_edge` limits a frame, the package rounds twice, and its long edge may differ by up to five pixels.

    Raises:
        EngineError: One line, from building it: for a missing package, an unknown option, an unusable device or
            dtype, a config or text encoder that cannot be read, and a .pth that is absent, damaged, or does not
            fill the model exactly.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._at = _Package(spec)
        size = self._at.processor.image_processor.size
        self._size = {edge: size[edge] for edge in _EDGES}

    @staticmethod
    def weights_id(spec: EngineSpec) -> dict[str, Any]:
        """Return the SHA-256 of the .pth file, without loading it.

        Raises:
            EngineError: One line, if the file does not exist.
        """
        return {"revision_resolved": _revision(_locate(spec))}

    @torch.inference_mode()
    def detect(self, frames: Sequence[Frame], query: str) -> list[list[Box]]:
        """Return the boxes of each frame, best first, in pixels of that frame and clipped to it."""
        return grounding.detect(frames, self._at.parts, lambda images: self._run(images, query))

    def describe(self) -> dict[str, Any]:
        """Return checkpoint, options and input size, for the stage's manifest."""
        return self._at.describe() | {"size": dict(self._size)}

    def _run(self, images: list[Image], query: str) -> list[Mapping[str, Any]]:
        processor, options = self._at.processor, self._at.options
        texts = [grounding.phrase(query)] * len(images)
        pixels = processor.image_processor(images, input_data_format="channels_last", return_tensors="pt")
        with _quiet():
            outputs = self._at.model(pixels["pixel_values"].to(self._at.device), captions=texts)
        results: list[Mapping[str, Any]] = processor.post_process_grounded_object_detection(
            SimpleNamespace(logits=outputs["pred_logits"], pred_boxes=outputs["pred_boxes"]),
            processor.tokenizer(texts)["input_ids"],
            threshold=options["threshold"],
            text_threshold=options["text_threshold"],
            target_sizes=[image.shape[:2] for image in images],
        )
        return results
