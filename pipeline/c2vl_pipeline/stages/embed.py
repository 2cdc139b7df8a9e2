"""`c2vl-pipeline embed`: vectors of the stored crops and of their captions, one row per (sample, slot).

The stored JPEG is embedded, so that anybody can embed the same bytes again. Equal captions (57 % of the authors') are
encoded once per shard, not once for all shards: these would have to wait for each other, for half a percent of the
stage's operations (`benchmarks/README.md`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from c2vl_manifests.schema import Status, embeddings
from c2vl_pipeline.readers.video import decode_jpeg, shape_image
from c2vl_pipeline.stages.base import Row, ShardContext, Stage, config_of, failure, in_batches, row_status

Half = npt.NDArray[np.float16]


def _images(shard: ShardContext, rows: list[Row], crops: list[Row]) -> Half:
    """Encode the existing crops and set the vision status of each row. Returns (rows, D)."""
    assert shard.spec is not None
    aspect = shard.recipe.pipeline.embed.aspect
    vectors = np.zeros((len(rows), shard.engine.image_dim), np.float16)
    present = [i for i, crop in enumerate(crops) if crop["status"] == Status.OK]
    for row, crop in zip(rows, crops, strict=True):
        row["vision_status"] = crop["status"]

    def call(batch: list[int]) -> list[Any]:
        return list(shard.engine.encode_images([shape_image(decode_jpeg(crops[i]["jpeg"]), aspect) for i in batch]))

    for i, vector in in_batches(present, shard.spec.batch_size, call, shard):
        _store(vectors, rows[i], "vision_status", i, vector)
    return vectors


def _texts(shard: ShardContext, rows: list[Row], captions: list[Row]) -> Half:
    """Encode each distinct caption once and set language status, tokens and truncated. Returns (rows, D)."""
    assert shard.spec is not None
    vectors = np.zeros((len(rows), shard.engine.text_dim), np.float16)
    where: dict[str, list[int]] = {}
    for i, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        row["language_status"] = caption["status"]
        if caption["status"] == Status.OK:
            where.setdefault(caption["caption"], []).append(i)

    def call(batch: list[str]) -> list[Any]:
        texts = shard.engine.encode_texts(batch)
        return list(zip(texts.vectors, texts.tokens, texts.truncated, strict=True))

    for text, answer in in_batches(list(where), shard.spec.batch_size, call, shard, "texts"):
        vector = answer if isinstance(answer, Exception) else answer[0]
        for i in where[text]:
            _store(vectors, rows[i], "language_status", i, vector)
            if not isinstance(answer, Exception):
                rows[i].update(tokens=int(answer[1]), truncated=bool(answer[2]))
    return vectors


def _given(shard: ShardContext, rows: list[Row], kind: str) -> Half:
    """Take vectors that were made elsewhere, with or without a crop or caption, and set the status. Returns (rows, D)."""
    width = shard.engine.image_dim if kind == "vision" else shard.engine.text_dim
    vectors = np.zeros((len(rows), width), np.float16)
    slots = shard.recipe.pipeline.frames
    for i, row in enumerate(rows):
        row[f"{kind}_status"] = str(Status.OK)
        _store(vectors, row, f"{kind}_status", i, shard.engine.lookup(kind, row["sample_id"], row["slot"], slots))
    return vectors


def _store(vectors: Half, row: Row, column: str, at: int, vector: Any) -> None:
    """Store a vector, or write the reason why none exists into the row."""
    if not isinstance(vector, Exception) and not np.isfinite(vector).all():
        vector = ValueError("the encoder returned NaN or infinite values")
    if isinstance(vector, Exception):
        row[column] = str(Status.FAILED)
        row |= failure(vector, attempts=2)  # the other kind may be fine
    else:
        vectors[at] = vector


def process(shard: ShardContext) -> pa.Table:
    """Make one shard: one row per (sample, slot), with the vectors of the crop and of the caption."""
    crops, captions = shard.upstream("crops").to_pylist(), shard.upstream("captions").to_pylist()
    rows: list[Row] = [{"sample_id": c["sample_id"], "slot": c["slot"], **row_status(Status.OK)} for c in crops]
    for row in rows:
        row.update(tokens=None, truncated=False)
    given = shard.engine.given
    vision = _given(shard, rows, "vision") if "vision" in given else _images(shard, rows, crops)
    language = _given(shard, rows, "language") if "language" in given else _texts(shard, rows, captions)
    for row, crop, caption in zip(rows, crops, captions, strict=True):
        if Status.OK not in {row["vision_status"], row["language_status"]}:
            row["status"] = row["vision_status"] if row["status"] == Status.OK else row["status"]
            row["error_class"] = row["error_class"] or crop["error_class"] or caption["error_class"]
            row["error"] = row["error"] or crop["error"] or caption["error"]
    schema = embeddings(vision.shape[1], language.shape[1])
    columns = {
        kind: pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=schema.field(kind).type)
        for kind, vectors in (("vision", vision), ("language", language))
    }
    arrays = [
        columns[f.name] if f.name in columns else pa.array([r[f.name] for r in rows], type=f.type) for f in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


STAGE = Stage(
    name="embeddings",
    command="embed",
    process=process,
    columns=("sample_id",),
    config=lambda recipe, index: config_of(recipe.pipeline.embed),
    upstream=lambda recipe: ("crops", "captions"),
    row_group=8192,
    per_frame=True,
    engine=lambda recipe, index: recipe.pipeline.embed.engine,
    byte_stream_split=("vision", "language"),
    status_columns=("status", "vision_status", "language_status"),
)
