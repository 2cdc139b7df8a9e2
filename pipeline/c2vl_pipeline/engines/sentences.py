"""`sentences`: captions by a sentence encoder in ONNX, such as all-MiniLM-L6-v2; crops by the HOG of `classical`.

Two files: NAME.onnx, which takes `input_ids`, `attention_mask` and perhaps `token_type_ids` (1, L) and gives the last
hidden states (1, L, D); and NAME.json, a tokenizer in the format of the `tokenizers` library. A text's vector is the mean of
its tokens' states, L2-normalised, as sentence-transformers defines it for MiniLM.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError, one_line
from c2vl_manifests.file_hashes import remembered_sha256
from c2vl_manifests.files import check_regular
from c2vl_pipeline.engines import Array, Encoder, Image, Options, TextVectors, checked_options, setting
from c2vl_pipeline.engines.heuristic import Classical

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reports its use when it is imported
import onnxruntime
from tokenizers import Tokenizer

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class _Options(Options):
    image_dim: int = Field(default=256, ge=1)
    max_tokens: int = Field(default=256, ge=3)
    seed: int = 0


def _refusal(spec: EngineSpec, problem: str) -> EngineError:
    name = f"{setting(spec)}.model"
    return EngineError(
        f"{name} = {spec.model!r}: {problem}; expected NAME.onnx of a sentence encoder beside its tokenizer NAME.json: "
        f"`make weights` fetches MiniLM, `--set {name}=FILE` names another place"
    )


def _files(spec: EngineSpec) -> tuple[Path, Path]:
    path = Path(spec.model or "").expanduser()
    if path.suffix != ".onnx":
        raise _refusal(spec, "no ONNX file is named")
    files = path, path.with_suffix(".json")
    for file in files:
        if not file.exists():
            raise _refusal(spec, f"{file.name} does not exist")
        check_regular(file)
    return files


class Sentences(Encoder):
    """Encodes captions by a sentence encoder on the CPU, one at a time, and crops as `classical` does.

    Options: `max_tokens` (256, of a text with its marks of beginning and end; more are cut off and counted), `image_dim`
    (256) and `seed` (0) of the crops.

    *Reading:* each text is encoded alone. The int8 weights scale the activations of a whole batch together, so in a batch a
    text's vector would depend on its neighbours.

    Raises:
        EngineError: One line, for files that are absent or of another form.
    """

    @staticmethod
    def weights_id(spec: EngineSpec) -> dict[str, Any]:
        """Return the hashes of network and tokenizer."""
        hashes = (remembered_sha256(file) for file in _files(spec))
        return {"revision_resolved": "sha256:" + "+".join(one[:32] for one in hashes)}

    def __init__(self, spec: EngineSpec) -> None:
        self._spec, self._options = spec, checked_options(spec, _Options)
        network, tokenizer = _files(spec)
        shape = self._options.model_dump(include={"image_dim", "seed"})
        self._crops = Classical(spec.model_copy(update={"backend": "classical", "model": None, "options": shape}))
        self.image_dim = self._crops.image_dim
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1  # one process per core
        try:
            self._session = onnxruntime.InferenceSession(str(network), settings, providers=["CPUExecutionProvider"])
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # both libraries have classes of their own
            raise _refusal(spec, f"cannot be read ({one_line(error, named=True, limit=160)})") from error
        self._tokenizer.enable_truncation(self._options.max_tokens)
        self._tokenizer.no_padding()
        self._names = [one.name for one in self._session.get_inputs()]
        if {"input_ids", "attention_mask"} - set(self._names) or set(self._names) - set(_INPUTS):
            raise _refusal(spec, f"takes {', '.join(self._names)}, not {', '.join(_INPUTS)}")
        self.text_dim = len(self._encoded("person")[0])

    def encode_images(self, images: Sequence[Image]) -> Array:
        """Return L2-normalised vectors of n images, (n, image_dim)."""
        return self._crops.encode_images(images)

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Return L2-normalised vectors of n texts, (n, text_dim); tokens are those of the tokenizer."""
        vectors, tokens = np.zeros((len(texts), self.text_dim), np.float32), np.zeros(len(texts), np.int32)
        for number, text in enumerate(texts):
            vectors[number], tokens[number] = self._encoded(text)
        return TextVectors(vectors, tokens, tokens > self._options.max_tokens)

    def _encoded(self, text: str) -> tuple[Array, int]:
        """Return the vector of a text, (text_dim,), and the number of its tokens before truncation."""
        encoding, marks = self._tokenizer.encode(text), self._tokenizer.num_special_tokens_to_add(False)
        count = len(encoding.ids) + sum(len(rest.ids) - marks for rest in encoding.overflowing)
        ids = np.array([encoding.ids], np.int64)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        try:
            states = self._session.run(None, {name: given[name] for name in self._names})[0]
        except Exception as error:
            raise _refusal(self._spec, f"cannot be run ({one_line(error, named=True, limit=160)})") from error
        if states.ndim != 3 or states.shape[:2] != ids.shape:
            raise _refusal(
                self._spec, f"gives an array of shape {states.shape}, not the states of {ids.shape[1]} tokens"
            )
        mean = states[0].astype(np.float64).mean(axis=0)
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32), count

    def describe(self) -> Mapping[str, Any]:
        """Return the files' hashes and the options, for the stage's manifest."""
        return {
            "backend": "sentences",
            "model": self._spec.model,
            **self.weights_id(self._spec),
            "options": self._options.model_dump(),
            "onnxruntime": onnxruntime.__version__,
        }
