"""`llava`: the original LLaVA package and its own checkpoints, conversation template and preprocessing.

The package pins torch 2.1.2 and transformers 4.37.2, so it needs a separate environment and is imported only when an
engine is built: no other command needs it, nor does the check for stale rows. The package `llava` on PyPI is an empty
placeholder.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pydantic import Field

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError, one_line
from c2vl_manifests.reading import read_json
from c2vl_pipeline.engines import Caption, Captioner, Crop, Options, checked_options

_WANTED = {
    "llava.constants": ("IMAGE_TOKEN_INDEX", "DEFAULT_IMAGE_TOKEN", "DEFAULT_IM_START_TOKEN", "DEFAULT_IM_END_TOKEN"),
    "llava.conversation": ("conv_templates",),
    "llava.mm_utils": ("process_images", "tokenizer_image_token"),
    "llava.model.builder": ("load_pretrained_model",),
}  # fmt: skip
_PAD = SimpleNamespace(image_aspect_ratio="pad")
"""Part of a model's config that the package's preprocessing reads: LLaVA-1.5 was trained on padded squares."""


class _Options(Options):
    max_new_tokens: int = Field(default=64, ge=1)
    conversation: str = "vicuna_v1"


def _package() -> SimpleNamespace:
    """Import and return the names that are used of the original package.

    Raises:
        EngineError: One line, if it is absent, or another package is installed under its name, or it does not work.
    """
    members: dict[str, Any] = {}
    for module, names in _WANTED.items():
        try:
            imported = importlib.import_module(module)
            members |= {name: getattr(imported, name) for name in names}
        except Exception as error:  # its imports fail in many ways with other versions of transformers
            problem = f"is not what is installed here as 'llava' ({one_line(error, named=True)})"
            if isinstance(error, ModuleNotFoundError) and error.name == "llava":
                problem = "is not installed"
            raise EngineError(
                f"the captioner engine 'llava' needs the original LLaVA package, which {problem}; `pip install "
                "git+https://github.com/haotian-liu/LLaVA.git` into a separate environment (it pins torch 2.1.2 "
                "and transformers 4.37.2), or use the engine hf-llava-1.5-7b, which runs the same weights"
            ) from error
    return SimpleNamespace(**members)


def _folder(spec: EngineSpec) -> Path:
    """Return the local folder of an original checkpoint, through the hub's cache for a hub id."""
    remedy = (
        "get one with `hf download liuhaotian/llava-v1.5-7b --local-dir /path/to/folder` on a machine with network "
        "and point to it with `--set pipeline.caption.engine.model=/path/to/folder`"
    )
    model = spec.model or ""
    folder, what = Path(model).expanduser(), f"captioner checkpoint {spec.model!r} (original LLaVA)"
    if not model:
        raise EngineError(f"{what}: expected a hub id or a local folder; {remedy}")
    if not folder.is_dir():
        import huggingface_hub

        try:
            folder = Path(huggingface_hub.snapshot_download(model, revision=spec.revision))
        except Exception as error:  # any error of the network stack has the same remedy
            raise EngineError(
                f"{what}: neither a folder nor available from the hub ({one_line(error, named=True)}); {remedy}"
            ) from error
    try:
        made_for = read_json(folder / "config.json").get("architectures")
    except (OSError, ValueError, AttributeError) as error:
        raise EngineError(
            f"{what}: not a checkpoint, its config.json cannot be read ({one_line(error, named=True)}); {remedy}"
        ) from error
    if not made_for or not str(made_for[0]).startswith("Llava") or "ConditionalGeneration" in made_for[0]:
        raise EngineError(
            f"{what} is made for {made_for}, expected the original's LlavaLlamaForCausalLM; checkpoints in "
            f"transformers' format run on the `hf` back-end; {remedy}"
        )
    return folder


class OriginalLlava(Captioner):
    """Answers the question about each crop with the original LLaVA code, greedily.

    Options: `max_new_tokens` (64) and `conversation` (vicuna_v1, a name of the package's `conv_templates`).

    A batch shares one question, so its prompts are equally long and all its pictures are squares of one size:
    it is stacked without padding, which could change an answer.

    *Reading:* the package pads a crop to a square with CLIP's mean colour rounded down; crops that
    `pipeline.caption.aspect = "pad"` has padded already (in the same way) pass through it unchanged. `center_crop`
    hands it the crop as stored, to be padded by the package's own code.

    Raises:
        EngineError: One line, from building it: the package or the checkpoint is absent or does not work, an
            unknown option or conversation, an unusable device.
    """

    @staticmethod
    def weights_id(spec: EngineSpec) -> dict[str, Any]:
        """Return the revision that a spec resolves to, without the package and without loading the model."""
        from c2vl_pipeline.engines.hf_hub import revision

        return {"revision_resolved": revision(_folder(spec))}

    def __init__(self, spec: EngineSpec) -> None:
        self._spec, self._options = spec, checked_options(spec, _Options)
        self._llava = _package()
        if self._options.conversation not in self._llava.conv_templates:
            raise EngineError(
                f"pipeline.caption.engine.options.conversation = {self._options.conversation!r}: the installed llava "
                f"knows {', '.join(sorted(self._llava.conv_templates))}"
            )
        self._folder = _folder(spec)
        auto = "cuda:0" if torch.cuda.is_available() else "cpu"
        # with a bare "cuda" the package spreads the model over all GPUs; a worker has one
        self._device = {"auto": auto, "cuda": "cuda:0"}.get(spec.device, spec.device)
        # it loads a name without "llava" as a plain language model
        name = self._folder.name if "llava" in self._folder.name.lower() else f"llava-{self._folder.name}"
        try:
            self._tokenizer, model, self._processor, _ = self._llava.load_pretrained_model(
                str(self._folder), None, name, device_map=self._device, device=self._device
            )
            self._dtype = getattr(torch, spec.dtype)
            self._model = model.to(self._dtype).eval()  # it loads float16, in which a CPU cannot compute
        except Exception as error:  # the package, transformers and torch each raise other types
            raise EngineError(
                f"captioner checkpoint {spec.model!r} (original LLaVA) cannot be loaded on {self._device} "
                f"({one_line(error, named=True)}); expected a complete checkpoint such as "
                "liuhaotian/llava-v1.5-7b, its CLIP vision tower (openai/clip-vit-large-patch14-336) in the hub's cache, and a device that torch sees"
            ) from error

    def prompt(self, question: str) -> str:
        """Write one user turn with one image by the package's conversation template."""
        names, image = self._llava, self._llava.DEFAULT_IMAGE_TOKEN
        if getattr(self._model.config, "mm_use_im_start_end", False):
            image = names.DEFAULT_IM_START_TOKEN + image + names.DEFAULT_IM_END_TOKEN
        turns = names.conv_templates[self._options.conversation].copy()
        turns.append_message(turns.roles[0], f"{image}\n{question}")
        turns.append_message(turns.roles[1], None)
        return str(turns.get_prompt())

    @torch.inference_mode()
    def caption(self, crops: Sequence[Crop], question: str) -> list[Caption]:
        """Answer `question` about each crop: the stripped text, and its new tokens but for the end token."""
        from PIL import Image

        llava, tokenizer = self._llava, self._tokenizer
        ids = llava.tokenizer_image_token(
            self.prompt(question), tokenizer, llava.IMAGE_TOKEN_INDEX, return_tensors="pt"
        )
        stop = tokenizer.eos_token_id
        captions: list[Caption] = []
        for start in range(0, len(crops), self._spec.batch_size):
            images = [Image.fromarray(crop.image) for crop in crops[start : start + self._spec.batch_size]]
            pixels = llava.process_images(images, self._processor, _PAD)
            inputs = ids.unsqueeze(0).repeat(len(images), 1).to(self._device)
            tokens = self._model.generate(
                inputs,
                images=pixels.to(device=self._device, dtype=self._dtype),
                do_sample=False,
                num_beams=1,
                max_new_tokens=self._options.max_new_tokens,
                pad_token_id=stop if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
                use_cache=True,
            )
            if torch.equal(tokens[:, : inputs.shape[1]], inputs):  # releases before 1.2 repeat the prompt
                tokens = tokens[:, inputs.shape[1] :]
            captions.extend(self._decode(row, stop) for row in tokens.tolist())
        return captions

    def _decode(self, tokens: list[int], stop: int) -> Caption:
        end = tokens.index(stop) if stop in tokens else len(tokens)
        return Caption(self._tokenizer.decode(tokens[:end], skip_special_tokens=True).strip(), end)

    def describe(self) -> Mapping[str, Any]:
        """Return checkpoint, revision, template and options, for the stage's manifest."""
        import transformers

        return {
            "backend": "llava",
            "model": self._spec.model,
            "revision_asked": self._spec.revision,
            **self.weights_id(self._spec),
            "dtype": self._spec.dtype,
            "device": self._device,
            "options": self._options.model_dump(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
