"""The card of a published dataset: its README.md."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from c2vl_manifests import cards
from c2vl_manifests.layouts import Layout

if TYPE_CHECKING:
    from c2vl_pipeline.publishing.publish import Published

SPLIT = "full"
"""The one split of each table for the library: train and test differ by benchmark and are columns."""
_HOLDS = {
    "samples": "one row per sample that the dataset should hold: class, subject, view, splits, names of its files",
    "captions": "one row per (sample, slot): the caption of a frame, made by a model or by rule",
    "embeddings": "one row per (sample, slot): vectors of crop (`vision`) and caption (`language`), L2-normalised float16",
    "crops": "one row per (sample, slot): the person of a frame as JPEG (`jpeg`), and the box it was cut from",
    "skeletons": "one row per sample: joints of its valid frames, float32 in {unit}",
}
_LICENCE = """This folder was made from a dataset of others, and its licence decides what may be passed on. Many licences of
recordings of people forbid passing on pictures; a licence may forbid joints and all that is derived from the data. Read it
before you upload anything, name it under `license` above (`unknown` until you do), and remove what it forbids:
captions and vectors are derived from the videos too. Models that wrote the captions have licences of their own."""


def card(facts: Published) -> str:
    """Return the card of a published folder."""
    unit = Layout.from_dict(facts.layout).unit
    front = {
        "pretty_name": f"{facts.title}, C2VL prompts",
        "license": "unknown",
        "tags": ["skeleton", "action-recognition", "c2vl"],
        "configs": [
            {"config_name": name, "data_files": [{"split": SPLIT, "path": f"{name}/*.parquet"}]} for name in facts.parts
        ],
    }
    made = {"engines": facts.engines, "settings": facts.configs, "overrides": list(facts.overrides)}
    return "\n".join(
        [
            cards.front_matter(front),
            f"# {cards.plain(facts.title)}: prompts for skeletons",
            "",
            f"Made from {cards.plain(facts.title)} by the pipeline of C2VL (arXiv 2405.20606): {facts.samples:,} samples of "
            f"{facts.classes:,} classes, recipe `{cards.plain(facts.recipe)}`. Every expected row is there; one that could "
            "not be made has a `status` other than `ok`, and a reason.",
            "",
            "## Licence",
            "",
            _LICENCE,
            "",
            "## Tables",
            "",
            cards.table(
                ["config", "holds", "rows", "by status"],
                [
                    [
                        name,
                        _HOLDS[name].format(unit=unit),
                        f"{part.rows:,}",
                        ", ".join(f"{s} {n:,}" for s, n in part.statuses.items()),
                    ]
                    for name, part in facts.parts.items()
                ],
            ),
            "",
            "Tables are joined by `sample_id`. `class` names the class; `label` of `samples` is its number, -1 where "
            "unknown. Splits differ by benchmark and are columns:",
            "",
            cards.table(
                ["column", "train", "test"],
                [[f"split_{name}", n.get("train", 0), n.get("test", 0)] for name, n in sorted(facts.splits.items())],
            ),
            "",
            *_loading(facts),
            "## How it was made",
            "",
            cards.table(
                ["rows", "engine"], [[name, cards.engine_words(engine)] for name, engine in facts.engines.items()]
            ),
            "",
            *(_JOINTS if any(e.get("derived_from") == "joints" for e in facts.engines.values()) else []),
            "```json",
            json.dumps(made, indent=1),
            "```",
            "",
            "## Limits",
            "",
            "- Captions and boxes are what a model or a rule gave; nobody has checked them.",
            "- Models repeat the prejudices of their training data about people, clothes and places.",
            "- Do not use it to identify people.",
        ]
    )


_JOINTS = ["Rows marked `derived_from: joints` are rules over the joints; they are no evidence for language.", ""]


def _loading(facts: Published) -> list[str]:
    """Return how each published table is read."""
    V, C = len(facts.layout["names"]), facts.layout["dims"]
    lines = [
        "## Loading",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'captions = load_dataset("PATH_OR_REPOSITORY", "captions", split="{SPLIT}")',
        'usable = captions.filter(lambda row: row["status"] == "ok")',
        "```",
        "",
    ]
    if "crops" in facts.parts:
        lines += ['`crops.cast_column("jpeg", datasets.Image())` decodes the pictures; null ones stay null.', ""]
    if "skeletons" in facts.parts:
        joints = f'np.frombuffer(row["joints"], "float32").reshape(row["frames"], -1, {V}, {C})'
        lines += [f"`{joints}` gives the joints (T, M, V, C) of a row with `frames` above 0, in this order:", ""]
        lines += [cards.plain(", ".join(facts.layout["names"])) + ".", ""]
    if facts.webdataset:
        lines += [
            "`webdataset/` holds the same by sample as tar shards, for streaming: "
            '`load_dataset("webdataset", data_files="PATH/webdataset/*.tar", streaming=True)`, or the package `webdataset`. '
            "A key is the id in the form of web addresses (`urllib.parse.unquote`); the JSON file has the id itself.",
            "",
        ]
    return lines
