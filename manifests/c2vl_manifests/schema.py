"""Arrow schemas of everything that crosses a stage boundary, and the statuses a row can have.

Every expected (sample, frame) has exactly one row in crops, captions and embeddings; every sample has exactly
one row in samples and skeletons. Nothing is dropped: a row that could not be made says why.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import pyarrow as pa

SCHEMA_VERSION = 1
"""Part of every stage key: raise it when the meaning of a column changes."""


class Status(StrEnum):
    """The outcome of one row."""

    OK = "ok"
    NO_PERSON = "no_person"
    """The frame (of skeletons from videos: every frame) was read and the engine found no person."""
    TRUNCATED_VIDEO = "truncated_video"
    """The video ends before this planned frame."""
    MISSING_VIDEO = "missing_video"
    MISSING_SKELETON = "missing_skeleton"
    """No skeleton file exists, or it holds no body, or no joints at this instant."""
    DECODE_ERROR = "decode_error"
    """The file exists and cannot be read as what it claims to be."""
    FAILED = "failed"
    """The engine failed on this row; `error` holds its message."""


_STATUS = [
    pa.field("status", pa.string(), nullable=False),
    pa.field("error_class", pa.string()),
    pa.field("error", pa.string()),
    pa.field("attempts", pa.int16(), nullable=False),
]
_KEY = [pa.field("sample_id", pa.string(), nullable=False), pa.field("slot", pa.int16(), nullable=False)]

SAMPLES = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("label", pa.int16(), nullable=False),  # 0-based class, -1 where unknown
        pa.field("subject", pa.int16()),
        pa.field("view", pa.int16()),
        pa.field("setup", pa.int16()),
        pa.field("repeat", pa.int16()),
        pa.field("camera", pa.string(), nullable=False),  # videos of one camera share a background
        pa.field("video", pa.string()),  # relative to the raw folder
        pa.field("skeleton", pa.string()),
        pa.field("video_bytes", pa.int64()),  # sizes bind shards to the files they were made from
        pa.field("skeleton_bytes", pa.int64()),
        pa.field("start_frame", pa.int32()),  # of a longer video: [start, end)
        pa.field("end_frame", pa.int32()),
        pa.field("known_missing", pa.bool_(), nullable=False),  # on the dataset's list of missing skeletons
        pa.field("problem", pa.string()),  # why nothing can be made of this sample
        pa.field("splits", pa.map_(pa.string(), pa.string()), nullable=False),  # benchmark -> train | test
    ]
)

SKELETONS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        *_STATUS,
        pa.field("frames", pa.int32(), nullable=False),  # valid frames T kept
        pa.field("frames_in_file", pa.int32(), nullable=False),
        pa.field("bodies", pa.int16(), nullable=False),  # slots up to the last with any non-zero joint
        pa.field("frame_index", pa.list_(pa.int32()), nullable=False),  # file frame of each kept frame
        pa.field("joints", pa.large_binary(), nullable=False),  # float32, C order, (T, M, V, C), in `Layout.unit`
    ]
)

POSES = SKELETONS.append(pa.field("pixels", pa.large_binary(), nullable=False))
"""Skeletons from videos. `pixels`: float32, C order, (T, M, V, 3): x and y in the frame, and the joint's score; 0 where
nobody is."""

CROPS = pa.schema(
    [
        *_KEY,
        *_STATUS,
        pa.field("frame_index", pa.int32()),  # planned frame of the video
        pa.field("box", pa.list_(pa.float32())),  # x0, y0, x1, y1 in pixels of the frame, margin included
        pa.field("score", pa.float32()),
        pa.field("people", pa.int16(), nullable=False),  # boxes that the crop unites
        pa.field("frame_width", pa.int32()),
        pa.field("frame_height", pa.int32()),
        pa.field("frames_advertised", pa.int32()),  # by the container
        # frames that exist; for a part of a longer video: up to its last planned frame
        pa.field("frames_decoded", pa.int32()),
        pa.field("jpeg", pa.binary()),
    ]
)

CAPTIONS = pa.schema([*_KEY, *_STATUS, pa.field("caption", pa.string()), pa.field("tokens", pa.int32())])


def embeddings(image_dim: int, text_dim: int) -> pa.Schema:
    """Return the schema of the embed stage for vectors of these widths.

    Vectors are L2-normalised float16, all zero where their status is not ok. `status` is ok if either is.
    """

    def vector(name: str, dim: int) -> pa.Field:
        return pa.field(name, pa.list_(pa.field("element", pa.float16(), nullable=False), dim), nullable=False)

    return pa.schema(
        [
            *_KEY,
            *_STATUS,
            pa.field("vision_status", pa.string(), nullable=False),
            vector("vision", image_dim),
            pa.field("language_status", pa.string(), nullable=False),
            vector("language", text_dim),
            pa.field("tokens", pa.int32()),  # of the caption, before truncation
            pa.field("truncated", pa.bool_(), nullable=False),
        ]
    )


PACKED_INDEX = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("skeleton_status", pa.string(), nullable=False),
        pa.field("vision_rows", pa.int16(), nullable=False),
        pa.field("language_rows", pa.int16(), nullable=False),
        pa.field("reason", pa.string()),  # first error of a sample that lacks something
        pa.field("subject", pa.int16()),
        pa.field("view", pa.int16()),
        pa.field("splits", pa.map_(pa.string(), pa.string()), nullable=False),
        # hashes of the row's arrays: what a run or a result has read is known without reading it again
        pa.field("joints_hash", pa.string(), nullable=False),
        pa.field("vision_hash", pa.string(), nullable=False),
        pa.field("language_hash", pa.string(), nullable=False),
    ]
)
"""`index.parquet` of a packed folder: one row per sample."""

_STAGES = {"skeletons": SKELETONS, "crops": CROPS, "captions": CAPTIONS, "embeddings": embeddings(1, 1)}
_FIELDS: dict[str, list[pa.Field]] = {}
for _field in (f for schema in (SAMPLES, *_STAGES.values(), POSES, PACKED_INDEX) for f in schema):
    _FIELDS.setdefault(_field.name, []).append(_field)

COLUMNS = {stage: schema.names for stage, schema in _STAGES.items()}
"""Stage -> columns of its tables."""


def misfit(table: pa.Table, columns: Iterable[str] = ()) -> str | None:
    """Return which of these columns a table of a stage lacks, or which of its own differs from the schemas; else None."""
    if absent := [name for name in columns if name not in table.column_names]:
        return f"lacks the column {absent[0]!r}"
    for field, column in zip(table.schema, table.columns, strict=True):
        kind = field.type
        if pa.types.is_fixed_size_list(kind):  # vectors are of any width
            kind = pa.list_(kind.value_field, 1)
        known = _FIELDS.get(field.name, ())  # a list each: equal types differ in their hash
        if known and not any(one.type == kind and (one.nullable or not column.null_count) for one in known):
            return f"the column {field.name!r} is of another type ({field.type}) or lacks values"
    return None
