"""The model card of a run, its README.md: what the encoder is, what it was trained on and how, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from c2vl_manifests import cards
from c2vl_manifests.layouts import Layout
from c2vl_manifests.pages import portable
from c2vl_training.run_folder import EXCLUDED, reading

_WAYS = {
    "pretrain": "pre-trained without labels, toward vectors of pictures or captions of the clips (C2VL, arXiv 2405.20606)",
    "supervised": "trained with labels: the ceiling of a comparison",
    "random": "as initialised: the floor of a comparison",
}
_LOAD = """```python
from c2vl_pipeline import read_skeleton
from c2vl_training import encode_skeleton, load_encoder

encoder = load_encoder(".")                        # the folder that holds encoder.safetensors
joints = read_skeleton("clip.npy", encoder.layout)[0].joints  # centred on the first frame
features = encode_skeleton(encoder, joints)"""
Figure = tuple[str, str, str, str]
"""Protocol, benchmark, top-1 and number of test clips."""


def write(folder: Path, facts: Mapping[str, Any], figures: Sequence[Figure] = ()) -> bool:
    """Write the card of a run; False if an edited one is there, which stays.

    Args:
        folder: of the run, which holds run.json.
        facts: those of its encoder.
        figures: measured ones, which the card shows.

    Raises:
        CheckpointError: run.json is damaged or absent.
    """
    with reading(folder) as run:
        return cards.commit_card(folder, text(facts, run, figures))


def text(facts: Mapping[str, Any], run: Mapping[str, Any], figures: Sequence[Figure] = ()) -> str:
    """Return the card of a run, of the facts of its encoder and of those in run.json."""
    layout, inputs, encoder, kind = facts["layout"], facts["input"], facts["encoder"], facts["kind"]
    unit = Layout.from_dict(layout).unit
    V, C, M = len(layout["names"]), layout["dims"], facts["bodies"]
    about = [
        ("encoder", encoder["name"]),
        ("parameters", f"{run['parameters']:,}"),
        ("joints", f"{layout['name']}: {V} joints, {C}D, in {unit}: {', '.join(layout['names'])}"),
        ("stream", inputs["stream"]),
        ("clip", f"{inputs['frames']} frames, {M} {'body' if M == 1 else 'bodies'}"),
    ]
    trained = [
        ("training", _WAYS[kind]),
        ("data", f"{facts['dataset']}, training split of {facts['benchmark']}"),
        ("clips", f"{run['samples']:,} ({run['left_out']:,} left out)"),
        ("epochs", f"{run['epochs']:,}"),
        ("seed", facts["seed"]),
        ("recipe", run["recipe"]["name"]),
        ("made with", ", ".join(f"{name} {number}" for name, number in run["versions"].items())),
    ]
    if excluded := facts.get(EXCLUDED):
        trained.insert(3, ("classes left out", ", ".join(excluded)))
    if kind == "pretrain":
        trained.insert(1, ("vectors by", cards.engine_words(facts.get("embeddings", {}))))
    front = {"license": "unknown", "library_name": "c2vl", "tags": ["skeleton", "action-recognition", "c2vl"]}
    settings = {"encoder": encoder, "input": inputs, "precision": facts["precision"], kind: facts["config"]}
    return "\n".join(
        [
            cards.front_matter(front),
            f"# Skeleton encoder {cards.plain(encoder['name'])}, {cards.plain(kind)} on {cards.plain(facts['dataset'])}",
            "",
            "A network from the joints of a clip to a vector of features.",
            "",
            cards.table(["", ""], about),
            "",
            "## Training",
            "",
            cards.table(["", ""], trained),
            "",
            "```json",
            json.dumps(portable(settings), indent=1),
            "```",
            "",
            "## Figures",
            "",
            _figures(figures),
            "",
            "## Loading",
            "",
            _LOAD + f"  # joints (T, M, {V}, {C}) -> (D,)",
            "```",
            "",
            "Joints are those of the frames that hold somebody, with the origin that `c2vl_pipeline.read_skeleton` gives them. "
            "`encoder.module` is the network in torch, from clips (N, C, T, V, M) to (N, D).",
            "",
            "## Limits",
            "",
            *(f"- {line}" for line in _limits(facts)),
        ]
    )


def _figures(figures: Sequence[Figure]) -> str:
    if not figures:
        return "None here yet: `c2vl-eval export` adds them."
    return cards.table(["protocol", "benchmark", "top-1", "test clips"], figures)


def _limits(facts: Mapping[str, Any]) -> list[str]:
    lines = [
        "It knows the joints of this layout alone; others are mapped to it by `c2vl-pipeline pack --layout`.",
        "It has seen the people, places and actions of one dataset; on others its features may say little.",
        "The file of weights names the ids of the training clips. Whether weights trained on a dataset may be passed on, and "
        "for what use, is said by that dataset's licence: put it in place of `unknown` above.",
    ]
    if facts.get("joint_captions"):
        lines.insert(0, "It was trained on captions that rules made from the joints: no evidence for language.")
    if facts["kind"] == "random":
        lines.insert(0, "It was not trained.")
    return lines
