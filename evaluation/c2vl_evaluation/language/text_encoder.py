"""The text encoder that made the vectors of packed data: loaded again for new texts, and told from others.

Two things tell it: its revision, where the data's and the present one are of one kind, and a caption's vector, where
the work folder around the data still holds what was embedded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from c2vl_evaluation.features import Array
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import DataError, EngineError
from c2vl_manifests.manifest import read_shard, read_shard_manifest
from c2vl_manifests.schema import Status
from c2vl_training.dataset import Packed

if TYPE_CHECKING:
    from c2vl_pipeline.engines import Encoder

ALIKE = 0.99
"""Least cosine of a caption's vector to the stored one: half precision, other devices and batches cost far less."""
_IDENTITY = ("revision_resolved", "revision_of_code")
_REMEDY = "name the folder of that checkpoint by --encoder, or embed, pack and train again"


def engine_of(packed: Packed) -> Mapping[str, Any]:
    """What `packed.json` says of the engine that made the vectors."""
    return packed.manifest.engines.get("embeddings", {})


def load(packed: Packed, folder: Path | None = None) -> Encoder:
    """Load the encoder that made the vectors of packed data.

    Args:
        packed: the data.
        folder: of its checkpoint, if that is not where it was.

    Raises:
        EngineError: it cannot be loaded, or what lies there now is another one.
    """
    from c2vl_pipeline import engines

    made = engine_of(packed)
    with _one_line(packed):
        spec, held = _resolved(packed, folder)
        encoder: Encoder = engines.load(spec)
    name, was, now = spec.model or spec.backend, made.get("revision_resolved"), held.get("revision_resolved")
    for what, here, then in (
        ("revision", now if _comparable(was, now) else was, was),
        ("revision of code", held.get("revision_of_code", 1), made.get("revision_of_code", 1)),
        ("width", encoder.text_dim, packed.manifest.language_dim),
    ):
        if here != then:
            raise EngineError(
                f"the text encoder {name!r} is of {what} {str(here)[:19]}, the vectors of {packed.folder} were made by one of {str(then)[:19]}; {_REMEDY}"
            )
    if (stored := _witness(packed)) is not None:
        text, vector = stored
        again = encoder.encode_texts([text]).vectors[0].astype(np.float32)
        cosine = float(again @ vector / max(np.linalg.norm(again) * np.linalg.norm(vector), 1e-12))
        if not cosine > ALIKE:
            raise EngineError(
                f"the text encoder {name!r} gives the caption {text[:40]!r} a vector at cosine {cosine:.3f} to its own in {packed.folder}, expected more than {ALIKE} of the one that made it; {_REMEDY}"
            )
    return encoder


def differs(packed: Packed, folder: Path) -> dict[str, Any]:
    """Return what identifies the weights in a folder; empty where that is what the data say of theirs.

    Raises:
        EngineError: there is no checkpoint of this kind.
    """
    made, now = engine_of(packed), _now(packed, folder)
    facts = {fact: now.get(fact) for fact in _IDENTITY}
    return {} if all(made.get(fact) == value for fact, value in facts.items()) else facts


def on_trust(packed: Packed, folder: Path) -> bool:
    """Whether nothing but its width tells if the checkpoint in a folder is the one that made the vectors.

    Raises:
        EngineError: there is no checkpoint of this kind.
    """
    now = _now(packed, folder).get("revision_resolved")
    was = engine_of(packed).get("revision_resolved")
    return now is not None and not _comparable(was, now) and _witness(packed) is None


def _now(packed: Packed, folder: Path) -> Mapping[str, Any]:
    with _one_line(packed):
        return _resolved(packed, folder)[1]


def _resolved(packed: Packed, folder: Path | None) -> tuple[EngineSpec, Mapping[str, Any]]:
    """Return which encoder made the vectors, and what determines the rows of the one that is there now."""
    from c2vl_pipeline import engines

    made = engine_of(packed)
    model, was = str(folder) if folder is not None else made.get("model"), made.get("revision_resolved")
    told = {key: made[key] for key in ("backend", "revision", "dtype", "options") if key in made}
    if was and not was.startswith("sha256:") and folder is None:
        told["revision"] = was  # of a hub id: exactly that commit
    spec = EngineSpec.model_validate({"role": "encoder", "model": model, "batch_size": 64} | told)
    return spec, engines.key_facts(spec)


@contextmanager
def _one_line(packed: Packed) -> Iterator[None]:
    try:
        yield
    except (EngineError, ValidationError) as error:
        why = str(error).partition("; get one with")[0].splitlines()[0]
        raise EngineError(
            f"the text encoder that made the vectors of {packed.folder} cannot be loaded ({why}); install what it lacks, or name the folder of its checkpoint by --encoder"
        ) from error


def _comparable(was: object, now: object) -> bool:
    """Whether two revisions are of one kind: a commit of the hub and a hash of files cannot be compared."""
    return bool(was and now) and str(was).startswith("sha256:") == str(now).startswith("sha256:")


def _witness(packed: Packed) -> tuple[str, Array] | None:
    """Return a caption and its vector in the packed data, (K,); None where the work folder holds none that is packed."""
    if (found := embedded(packed.folder.parent)) is None:
        return None
    sample, slot, text, vector = found
    ids = packed.sample_ids(range(packed.manifest.samples))
    if sample not in ids or slot >= packed.manifest.slots:
        return None
    held = packed.knowledge("language")[0][ids.index(sample), slot]
    return (text, np.asarray(held, np.float32)) if np.array_equal(held, vector) else None


def embedded(work: Path) -> tuple[str, int, str, npt.NDArray[np.float16]] | None:
    """Return a caption and the vector that the embed stage made of it: sample, slot, text and vector, (D,).

    Shards that cannot be read, and captions that were made again since, are passed over. None where nothing is left.
    """
    for path in sorted((work / "embeddings").glob("shard-*.parquet")):
        beside = work / "captions" / path.name
        made, said = read_shard_manifest(path), read_shard_manifest(beside)
        if made is None or said is None or made.extra.get("upstream", {}).get("captions") != said.digest:
            continue
        try:
            rows = read_shard(beside, ["sample_id", "slot", "status", "caption"]).to_pylist()
            table = read_shard(path, ["language_status", "language"]).combine_chunks()
        except DataError:
            continue
        vectors = table["language"].chunk(0).flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
        for row, status, vector in zip(rows, table["language_status"].to_pylist(), vectors, strict=True):
            if row["status"] == status == Status.OK and vector.any():
                return row["sample_id"], row["slot"], row["caption"], vector
    return None
