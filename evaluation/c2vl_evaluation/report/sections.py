"""Contents of the report's tables as plain values for the template: rows, protocols, cost, configuration.

Reads the files of runs and stages. A file that is absent or damaged leaves an empty cell, not an error.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeFloat, ValidationError

from c2vl_evaluation.cache import FOLDER
from c2vl_evaluation.protocols.ensemble import STREAMS
from c2vl_evaluation.results import ALWAYS, Line, Protocol, Role, Score, Table, TableRow, grouped
from c2vl_manifests.errors import C2VLError
from c2vl_manifests.layouts import Layout
from c2vl_manifests.manifest import StageManifest, read_stage_manifest
from c2vl_manifests.pages import portable, shorten_paths
from c2vl_manifests.reading import read_bytes, read_json
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_manifests.recipe_training import EncoderConfig
from c2vl_training.run_log import read_metrics

ROLES: dict[Role, str] = {
    "pretrained": "pre-trained",
    "floor": "floor",
    "ceiling": "ceiling",
    "shuffled": "control",
    "baseline": "baseline",
}
MEANINGS: dict[Role, str] = {
    "pretrained": "trained on prompts, without labels",
    "floor": "the encoder as initialised",
    "ceiling": "the same encoder trained with labels",
    "shuffled": "each skeleton paired with the prompts of another sample",
    "baseline": "the encoder's input, without an encoder",
}
KINDS: dict[Protocol, str] = {"knn": "kNN", "linear": "linear"}
SHARED = 3
"""Epochs of one run take equally long; the slowest this many times the fastest means that other programs ran too."""
Facts = dict[str, Any]


# ------------------------------------------------------------------------------------------------- results


def line(of: Line) -> dict[str, Any]:
    """Return one line of the table of results."""
    kinds = {kind: of.summary(kind) for kind in KINDS}
    return {
        "name": of.name, "role": of.role, "spoken": ROLES[of.role], "seeds": of.runs, "knowledge": of.knowledge,
        "derived": of.derived, "linear_best": kinds["linear"].best,
        **{kind: summary.top1 for kind, summary in kinds.items()},
        "more": [cell for summary in kinds.values() for cell in (summary.top5, summary.balanced)],
    }  # fmt: skip


def floor(score: Score) -> list[str]:
    """Return top-5 and balanced accuracy of answers that need no encoder, as often as `line` has them."""
    return ["n/a" if score.top5 is None else f"{100 * score.top5:.1f}", f"{100 * score.balanced:.1f}"] * len(KINDS)


def protocols(table: Table) -> list[dict[str, Any]]:
    """Return the other protocols: one group per protocol and setting, with the target of a transfer."""
    groups = [group for group in grouped(table.lines()) if group.protocol not in ALWAYS]
    targets = {target.id: target for target in table.targets}
    return [{"group": group, "target": targets.get(group.target)} for group in groups]


# ---------------------------------------------------------------------------------------------------- cost


def facts_of(run: Path) -> Facts:
    """Return run.json; empty if there is none, or it is damaged."""
    try:
        facts = read_json(run / "run.json")
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def stages(table: Table, work: Path | None) -> list[dict[str, Any]]:
    """Return the cost of every pipeline stage, sizes only if the work folder is given."""
    lines = []
    for stage, seconds in table.stage_seconds.items():
        manifest = _stage(work, stage)
        rows = manifest.rows if manifest else 0
        disk = sum(p.stat().st_size for p in (work / stage).glob("shard-*.parquet")) if work and rows else 0
        engine = table.engines.get("vectors" if stage == "embeddings" else stage, "")
        lines.append(
            {
                "stage": stage, "engine": shorten_paths(engine), "seconds": seconds, "rows": rows, "bytes": disk,
                "ok": manifest.statuses.get("ok", 0) if manifest else 0,
                "each": 1000 * seconds / rows if rows else None,
                "digest": manifest.digest if manifest else "", "key": manifest.key if manifest else "",
            }
        )  # fmt: skip
    return lines


def _stage(work: Path | None, stage: str) -> StageManifest | None:
    try:
        return read_stage_manifest(work / stage) if work is not None else None
    except C2VLError:
        return None


def epoch_seconds(run: Path) -> list[float]:
    """Return the seconds of a run's epochs; empty if its log is gone or damaged."""
    try:
        logged = [line["seconds"] for line in read_metrics(run)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [float(s) for s in logged if isinstance(s, int | float) and not isinstance(s, bool) and 0 < s < float("inf")]


def _paced(row: TableRow, epochs: list[float]) -> float:
    """Return the training time at the pace of the median epoch: what other programs took is not counted."""
    return statistics.median(epochs) * row.epochs if epochs else row.seconds


def training(table: Table, folder: Path) -> list[dict[str, Any]]:
    """Return the cost of training of every line, mean over seeds, and the size of its encoder."""
    lines = []
    for name in table.names():
        rows = [row for row in table.of(name) if row.run]
        if not rows:
            continue
        facts = [facts_of(folder / row.run) for row in rows]
        logs = [epoch_seconds(folder / row.run) for row in rows]
        seconds = statistics.mean(map(_paced, rows, logs))
        # the first epoch also loads and warms up
        uneven = [log for log in logs if len(log) > 2 and max(log[1:]) >= SHARED * min(log[1:])]
        clips = sum(row.samples * row.epochs for row in rows) / len(rows)
        parameters = facts[0].get("parameters")
        lines.append(
            {
                "name": name, "seeds": len(rows), "epochs": rows[0].epochs, "seconds": seconds,
                "speed": clips / seconds if seconds > 0 and clips else None,
                "parameters": parameters if isinstance(parameters, int) else None, "macs": macs(facts[0]),
                "measured": statistics.mean(row.seconds for row in rows),
                "shared": (min(min(log[1:]) for log in uneven), max(max(log[1:]) for log in uneven)) if uneven else None,
                "device": ", ".join(dict.fromkeys(d for f in facts if (d := _device(f)))),
            }
        )  # fmt: skip
    return lines


def _device(facts: Facts) -> str:
    if "device" not in facts:
        return ""
    threads, processes = facts.get("threads", 1), facts.get("processes", 1)
    parts = [f"{threads} thread{'s' if threads != 1 else ''}"] if facts["device"] == "cpu" else []
    parts += [f"{processes} processes"] if processes != 1 else []
    return ", ".join([str(facts["device"]), *parts])


def macs(facts: Facts) -> int | None:
    """Return the multiply-accumulates per clip of a run's encoder; None if run.json lacks the facts."""
    from c2vl_training.encoders import build_encoder, count

    try:
        layout, bodies = Layout.from_dict(facts["layout"]), int(facts["bodies"])
        encoder = build_encoder(EncoderConfig.model_validate(facts["encoder"]), layout, bodies)
        return count(encoder, layout.dims, int(facts["input"]["frames"]), len(layout.names), bodies).macs
    except (C2VLError, KeyError, TypeError, ValueError, RuntimeError):
        return None


def evaluation(table: Table, folder: Path) -> dict[str, float]:
    """Return the seconds of every protocol, and of training an ensemble's further streams."""
    spent: dict[str, float] = defaultdict(float)
    for row in table.rows:
        run = folder / row.run
        for result in _spent(run) if row.run else ():
            spent[result.protocol] += result.seconds
        for stream in STREAMS if row.run else ():
            seconds = facts_of(run.with_name(f"{run.name}-{stream}")).get("seconds")
            spent["training of further streams"] += seconds if isinstance(seconds, int | float) else 0
    return {name: seconds for name, seconds in spent.items() if seconds > 0}


class _Spent(BaseModel, allow_inf_nan=False):
    """Fields that every form of stored result has."""

    protocol: Protocol
    seconds: NonNegativeFloat


class _Stored(BaseModel):
    result: _Spent


def _spent(run: Path) -> Iterator[_Spent]:
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            yield _Stored.model_validate_json(read_bytes(path)).result
        except (OSError, ValueError):
            continue


# ------------------------------------------------------------------------------------------- configuration


def configuration(table: Table, folder: Path) -> dict[str, Any]:
    """Return the recipe of the main run as `key = value` lines, its changes, versions and device."""
    main = facts_of(folder / table.main_row().run) if table.main_row().run else {}
    recipe = flat(main["recipe"]) if isinstance(main.get("recipe"), dict) else {}
    versions = main.get("versions")
    return {
        "lines": [f"{key} = {value}" for key, value in recipe.items()],
        "changed": _changed(table.recipe, recipe),
        "versions": [f"{k} {v}" for k, v in versions.items()] if isinstance(versions, dict) else [],
        "device": _device(main),
        "runs": {row.run: str(facts_of(folder / row.run).get("fingerprint", "")) for row in table.rows if row.run},
    }  # fmt: skip


def _changed(name: str, recipe: Mapping[str, str]) -> list[str]:
    """Return the differences from the built-in recipe; none for a custom recipe file."""
    if not recipe or "/" in name or name.endswith(".toml"):
        return []
    try:
        own = flat(load_recipe(name).model_dump(mode="json"))
    except (C2VLError, ValidationError, OSError):
        return []
    keys = [key for key in recipe if own.get(key) != recipe[key]]
    return [f"{key} = {recipe[key]}  (recipe: {own.get(key, 'not set')})" for key in keys]


def flat(value: Any, place: str = "") -> dict[str, str]:
    """Return nested settings as dotted keys with JSON values; paths and hosts are shortened."""
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{place}.{key}".lstrip(".")).items()}
    return {place: json.dumps(portable(value), ensure_ascii=False)}
