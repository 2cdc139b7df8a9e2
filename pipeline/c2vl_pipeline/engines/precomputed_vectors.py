"""`precomputed-vectors`: vectors of crops and captions that were made elsewhere, by sample or by sample and slot.

For features of CLIP or any other model that ran on another machine. Files: see `c2vl_manifests.vectors`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.file_hashes import remembered_sha256
from c2vl_manifests.vectors import Vectors, read_vectors
from c2vl_pipeline.engines import Array, Encoder, Image, Options, TextVectors, checked_options
from c2vl_pipeline.engines.heuristic import Classical

_KINDS = {"vision": "images", "language": "texts"}
"""Kind of knowledge -> the option that names its file."""


class _Options(Options):
    images: str | None = None
    texts: str | None = None


def _files(spec: EngineSpec) -> dict[str, Path]:
    """Return the file of each kind of knowledge that has one.

    Raises:
        EngineError: there is none, or it does not exist.
    """
    options = checked_options(spec, _Options).model_dump()
    paths = {kind: Path(options[name]).expanduser() for kind, name in _KINDS.items() if options[name] is not None}
    if not paths:
        raise EngineError(
            "pipeline.embed.engine.options.images and .texts are missing; name a file of vectors of the crops, of the captions, "
            "or one of each: `--set encoder.images=FILE`"
        )
    for kind, path in paths.items():
        if not path.is_file():
            raise EngineError(
                f"pipeline.embed.engine.options.{_KINDS[kind]} = {str(path)!r} does not exist; name a file"
            )
    return paths


class PrecomputedVectors(Encoder):
    """Answers by sample and slot from files of vectors. Options: `images`, `texts`, of which one is enough.

    A kind without a file is made as by `classical`. A sample with one vector has it in all slots; else a planned frame has
    the vector of the segment that it lies in, as captions of `precomputed`.

    Raises:
        EngineError: one line, for a file that is absent.
        DataError: one line, for a file of another form.
    """

    VOLATILE_OPTIONS = frozenset({"images", "texts"})
    """The hash of a file's content identifies it: it may be moved."""

    @staticmethod
    def weights_id(spec: EngineSpec) -> dict[str, Any]:
        """Return the hashes of the files."""
        return {_KINDS[kind]: f"sha256:{remembered_sha256(path)}" for kind, path in _files(spec).items()}

    def __init__(self, spec: EngineSpec) -> None:
        self._id, self._paths = self.weights_id(spec), _files(spec)
        self._vectors: dict[str, Vectors] = {kind: read_vectors(path) for kind, path in self._paths.items()}
        self._classical = Classical(spec.model_copy(update={"backend": "classical", "options": {}}))
        dims = {"vision": self._classical.image_dim, "language": self._classical.text_dim}
        dims |= {kind: held.width for kind, held in self._vectors.items()}
        self.image_dim, self.text_dim = dims["vision"], dims["language"]
        self.given = frozenset(self._vectors)

    def lookup(self, kind: str, sample_id: str, slot: int, slots: int) -> Array | Exception:
        """Return the vector of a sample's slot, one of `slots`; a LookupError where the file has none.

        Raises:
            EngineError: the file has another number of slots.
        """
        held, name = self._vectors[kind], self._paths[kind].name
        if held.slots not in {1, slots}:
            raise EngineError(
                f"{self._paths[kind]} has up to {held.slots} vectors per sample, this run {slots} frames; set "
                f"pipeline.frames={held.slots} from the index on, or give one vector per sample"
            )
        if (rows := held.by_name.get(sample_id)) is None:
            return LookupError(f"{name} has no vector of this sample (it has {len(held.by_name):,} samples)")
        if len(rows) not in {1, slots}:
            return LookupError(f"{name} has {len(rows)} vectors of this sample; expected {slots}, or one for all slots")
        row = rows[slot % len(rows)].astype(np.float64)
        return np.asarray(row / np.linalg.norm(row), np.float32)

    def encode_images(self, images: Sequence[Image]) -> Array:
        """Return vectors of crops where no file has them, as `classical` makes them."""
        return self._classical.encode_images(images)

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Return vectors of texts where no file has them.

        Raises:
            EngineError: the vectors of captions were made elsewhere, so that a new text has none.
        """
        if "language" in self.given:
            raise EngineError(
                "the vectors of captions were made elsewhere, and their encoder is not here to read a text; zeroshot takes the "
                "vectors of its classes by --class-vectors"
            )
        return self._classical.encode_texts(texts)

    def describe(self) -> Mapping[str, Any]:
        """Return the files and their hashes, for the stage's manifest."""
        files = {_KINDS[kind]: path.name for kind, path in self._paths.items()}
        return {"backend": "precomputed-vectors", "files": files, **self._id}
