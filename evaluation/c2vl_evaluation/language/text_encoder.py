"""The text encoder that made the vectors of packed data, loaded again for new texts.

An encoder is the same if its revisions equal those in `packed.json`, or if it gives one caption of the work folder the
vector that was packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from c2vl_evaluation.features import Array
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import DataError, EngineError
from c2vl_manifests.manifest import read_shard, read_shard_manifest, read_stage_manifest
from c2vl_manifests.schema import Status
from c2vl_training.dataset import PackedDataset

if TYPE_CHECKING:
    from c2vl_pipeline.engines import Encoder

ALIKE = 0.99
"""Least cosine of a caption's vector to the packed one: half precision, other devices and batches cost far less."""
_REVISIONS = (("revision_resolved", "revision", "unknown"), ("revision_of_code", "code revision", 1))
"""Key, its name in messages, and its value if the key is absent."""
_REMEDY = "name the folder of that checkpoint by --encoder, or embed, pack and train again"


def engine_of(packed: PackedDataset) -> Mapping[str, Any]:
    """Return the facts in `packed.json` on the engine that made the vectors."""
    return packed.manifest.engines.get("embeddings", {})


def load(packed: PackedDataset, folder: Path | None = None) -> Encoder:
    """Load the encoder that made the vectors of packed data.

    Args:
        packed: the data.
        folder: where its checkpoint is now, if it was moved.

    Raises:
        EngineError: it cannot be loaded, or it is not the one that made the vectors.
    """
    from c2vl_pipeline import engines

    made = engine_of(packed)
    if files := made.get("files"):
        raise EngineError(
            f"the vectors of {packed.folder} are of files ({', '.join(dict.fromkeys(files.values()))}), and what made them "
            "is not known here, so that no new text can be read; zeroshot takes the vectors of its classes by --class-vectors"
        )
    facts = {key: made[key] for key in ("backend", "model", "revision", "dtype", "options") if key in made}
    if folder is not None:
        facts["model"] = str(folder)
    elif str(facts.get("model")).startswith("…/") and (
        stage := read_stage_manifest(packed.folder.parent / "embeddings")
    ):
        facts["model"] = stage.inputs["engine"]["model"]  # the place of a folder is named in the work folder alone
    elif (was := made.get("revision_resolved")) and not was.startswith("sha256:"):
        facts["revision"] = was  # of a hub id: exactly that commit
    try:
        spec = EngineSpec.model_validate({"role": "encoder", "batch_size": 64} | facts)
        now = engines.key_facts(spec)
        encoder: Encoder = engines.load(spec)
    except (EngineError, ValidationError) as error:
        why = str(error).partition("; get one with")[0].splitlines()[0]
        raise EngineError(
            f"the text encoder that made the vectors of {packed.folder} cannot be loaded ({why}); install what it "
            "lacks, or name the folder of its checkpoint by --encoder (zeroshot also takes --class-vectors)"
        ) from error
    name = f"the text encoder {spec.model or spec.backend!r}"
    if encoder.text_dim != packed.manifest.language_dim:
        raise EngineError(
            f"{name} is of width {encoder.text_dim}, the vectors of {packed.folder} are of width "
            f"{packed.manifest.language_dim}; {_REMEDY}"
        )
    other = [
        f"{name} is of {label} {str(now.get(key, absent))[:19]}, the vectors of {packed.folder} were made by one of "
        f"{str(made.get(key, absent))[:19]}"
        for key, label, absent in _REVISIONS
        if now.get(key, absent) != made.get(key, absent)
    ]
    if not other:
        return encoder
    if (known := witness(packed)) is None:
        raise EngineError(f"{other[0]}, and no caption next to them is left to compare; {_REMEDY}")
    text, vector = known
    again = encoder.encode_texts([text]).vectors[0].astype(np.float32)
    cosine = float(again @ vector / max(np.linalg.norm(again) * np.linalg.norm(vector), 1e-12))
    if not cosine > ALIKE:
        raise EngineError(
            f"{name} gives the caption {text[:40]!r} a vector at cosine {cosine:.3f} to its own in {packed.folder}, "
            f"expected more than {ALIKE} of the one that made it; {_REMEDY}"
        )
    return encoder


def witness(packed: PackedDataset) -> tuple[str, Array] | None:
    """Return a caption of the work folder and its packed vector (K,); None if none is left.

    Unreadable shards, and captions that were made again since they were embedded, are skipped.
    """
    work, held = packed.folder.parent, packed.knowledge("language")[0]
    rows = {sample: row for row, sample in enumerate(packed.sample_ids(range(packed.manifest.samples)))}
    for path in sorted((work / "embeddings").glob("shard-*.parquet")):
        source = work / "captions" / path.name
        made, of = read_shard_manifest(path), read_shard_manifest(source)
        if made is None or of is None or made.extra.get("upstream", {}).get("captions") != of.digest:
            continue
        try:
            captions = read_shard(source, ["sample_id", "slot", "status", "caption"]).to_pylist()
            table = read_shard(path, ["language_status", "language"]).combine_chunks()
        except DataError:
            continue
        vectors = table["language"].chunk(0).flatten().to_numpy(zero_copy_only=False).reshape(len(captions), -1)
        for one, status, vector in zip(captions, table["language_status"].to_pylist(), vectors, strict=True):
            row, slot = rows.get(one["sample_id"]), one["slot"]
            usable = one["status"] == status == Status.OK and row is not None and slot < packed.manifest.slots
            if usable and vector.any() and np.array_equal(held[row, slot], vector):
                return one["caption"], np.asarray(vector, np.float32)
    return None
