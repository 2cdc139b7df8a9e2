"""What stands in the report's tables, as plain values for the template: rows, protocols, classes, cost, configuration.

Reads what runs and stages wrote beside themselves. What is absent or damaged leaves an empty cell, not an error: the
report says less, and the rest stands.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeFloat, ValidationError

from c2vl_evaluation.report.samples import clean
from c2vl_evaluation.results import FAILED, Finding, Protocol, Results, Row, Score, by_setting, mean_std
from c2vl_manifests.errors import C2VLError
from c2vl_manifests.layouts import Layout
from c2vl_manifests.manifest import StageManifest, read_stage_manifest
from c2vl_manifests.recipe import EncoderConfig
from c2vl_manifests.recipe_loading import load_recipe

ROLES = {
    "pretrained": "pre-trained",
    "floor": "floor",
    "ceiling": "ceiling",
    "shuffled": "control",
    "baseline": "baseline",
}
KINDS = {"knn": "kNN", "linear": "linear"}
_STREAMS = ("joint", "bone", "motion")
Facts = dict[str, Any]


def duration(seconds: float) -> str:
    """Return seconds as a reader says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Return bytes as a reader says them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} TB"


# ------------------------------------------------------------------------------------------------- results


def line(rows: Sequence[Row]) -> dict[str, Any]:
    """One line of the table of results."""
    first = rows[0]
    measures = ("knn", "linear", "linear_best")
    return {
        "name": first.name, "role": first.role, "spoken": ROLES[first.role], "seeds": len(rows),
        "knowledge": first.knowledge, "derived": derived(rows),
        **{measure: mean_std([getattr(row, measure) for row in rows]) for measure in measures},
        **{f"{kind}_more": _beside(rows, kind) for kind in KINDS},
    }  # fmt: skip


def derived(rows: Sequence[Row]) -> bool:
    """Whether captions of some of the rows are a function of the encoder's own input."""
    return any(row.derived_from_joints for row in rows)


def _beside(rows: Sequence[Row], kind: str) -> list[str]:
    """Say top-5 and balanced accuracy of a line, where its rows hold them."""
    said = []
    for word, name in (("top-5", f"{kind}_top5"), ("balanced", f"{kind}_balanced")):
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        said += [f"{word} {mean_std(values)}"] if len(values) == len(rows) else []
    return said


def floor(score: Score | None) -> list[str]:
    """Say the same of what answers without an encoder."""
    if score is None:
        return []
    top5 = [] if score.top5 is None else [f"top-5 {100 * score.top5:.1f}"]
    return [*top5, f"balanced {100 * score.balanced:.1f}"]


def protocols(results: Results) -> list[dict[str, Any]]:
    """The other protocols: a group a protocol and setting, in it a line a name; `why` where all of them are n/a."""
    groups: dict[tuple[str, str], list[tuple[str, list[Finding]]]] = {}
    for name in results.names():
        found = by_setting(finding for row in results.of(name) for finding in row.findings)
        for key, findings in found.items():
            groups.setdefault(key, []).append((name, findings))
    order = {protocol: n for n, protocol in enumerate(dict.fromkeys(protocol for protocol, _ in groups))}
    made = []
    for (protocol, setting), of in sorted(groups.items(), key=lambda item: order[item[0][0]]):
        lines = [
            {"name": name, "derived": derived(results.of(name)), **_cell(findings)} for name, findings in of
        ]
        reasons = {cell["why"] for cell in lines}
        # the data's reason, said once; an evaluation that failed is its own line's
        failed = any(why.startswith(FAILED) for why in reasons)
        all_absent = not failed and not any(cell["count"] for cell in lines) and len(reasons) == 1
        made.append(
            {
                "protocol": protocol, "setting": setting, "lines": lines, "why": reasons.pop() if all_absent else "",
                "train": sorted({f.train for _, findings in of for f in findings if f.last is not None}),
                "targets": [t for t in results.targets if t.holds(of[0][1][0])],
            }
        )  # fmt: skip
    return made


def _cell(findings: Sequence[Finding]) -> dict[str, Any]:
    last = [f.last for f in findings if f.last is not None]
    best = [f.best.top1 for f in findings if f.best is not None]
    top5 = [s.top5 for s in last if s.top5 is not None]
    return {
        "count": len(last),
        "failed": sum(f.why.startswith(FAILED) for f in findings),
        "why": "; ".join(dict.fromkeys(f.why for f in findings if f.why)) or "no reason was recorded",
        "top1": mean_std([s.top1 for s in last]) if last else "n/a",
        "top5": mean_std(top5) if top5 else "n/a",
        "balanced": mean_std([s.balanced for s in last]) if last else "n/a",
        "best": mean_std(best) if best else "",
    }


# ---------------------------------------------------------------------------------------------------- cost


def facts_of(run: Path) -> Facts:
    """Read run.json; empty where there is none, or it is damaged."""
    try:
        found = json.loads((run / "run.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def stages(results: Results, work: Path | None) -> list[dict[str, Any]]:
    """What every stage of the factory took: seconds from the table, the rest from the work folder if it is at hand."""
    lines = []
    for stage, seconds in results.seconds.items():
        manifest = _stage(work, stage)
        rows = manifest.rows if manifest else 0
        held = sum(p.stat().st_size for p in (work / stage).glob("shard-*.parquet")) if work and rows else 0
        engine = results.engines.get("vectors" if stage == "embeddings" else stage, "")
        lines.append(
            {
                "stage": stage, "engine": clean(engine), "seconds": seconds, "rows": rows, "bytes": held,
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


def training(results: Results, table: Path) -> list[dict[str, Any]]:
    """What every line of the table took to train, a mean over seeds, and the size of its encoder."""
    lines = []
    for name in results.names():
        rows = [row for row in results.of(name) if row.run]
        if not rows:
            continue
        found = [facts_of(table / row.run) for row in rows]
        seconds = sum(row.seconds for row in rows) / len(rows)
        clips = sum(row.samples * row.epochs for row in rows) / len(rows)
        parameters = found[0].get("parameters")
        lines.append(
            {
                "name": name, "seeds": len(rows), "epochs": rows[0].epochs, "seconds": seconds,
                "speed": clips / seconds if seconds > 0 and clips else None,
                "parameters": parameters if isinstance(parameters, int) else None, "macs": macs(found[0]),
                "device": ", ".join(dict.fromkeys(d for f in found if (d := _device(f)))),
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
    """Return the multiplications of one clip through the encoder of a run; None where run.json does not tell."""
    from c2vl_training.encoders import build_encoder, count

    try:
        layout, bodies = Layout.from_dict(facts["layout"]), int(facts["bodies"])
        encoder = build_encoder(EncoderConfig.model_validate(facts["encoder"]), layout, bodies)
        return count(encoder, layout.dims, int(facts["input"]["frames"]), len(layout.names), bodies).macs
    except (C2VLError, KeyError, TypeError, ValueError, RuntimeError):
        return None


def evaluation(results: Results, table: Path) -> dict[str, float]:
    """Seconds of every protocol over all runs, as recorded beside them; an ensemble's further streams stand apart."""
    spent: dict[str, float] = defaultdict(float)
    for row in results.rows:
        run = table / row.run
        for finding in _spent(run) if row.run else ():
            spent[finding.protocol] += finding.seconds
        for stream in _STREAMS if row.run else ():
            seconds = facts_of(run.with_name(f"{run.name}-{stream}")).get("seconds")
            spent["training of further streams"] += seconds if isinstance(seconds, int | float) else 0
    return {name: seconds for name, seconds in spent.items() if seconds > 0}


class _Spent(BaseModel, allow_inf_nan=False):
    """What every finding says, whatever else the protocol found."""

    protocol: Protocol
    seconds: NonNegativeFloat


class _Kept(BaseModel):
    finding: _Spent


def _spent(run: Path) -> Iterator[_Spent]:
    from c2vl_evaluation.cache import FOLDER

    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            yield _Kept.model_validate_json(path.read_bytes()).finding
        except (OSError, ValidationError):
            continue


# ------------------------------------------------------------------------------------------- configuration


def configuration(results: Results, table: Path) -> dict[str, Any]:
    """The main run's whole recipe as `key = value` lines, what of it is not the recipe's own, versions and device."""
    main = facts_of(table / results.main_run().run) if results.main_run().run else {}
    recipe = flat(main["recipe"]) if isinstance(main.get("recipe"), dict) else {}
    versions = main.get("versions")
    return {
        "lines": [f"{key} = {value}" for key, value in recipe.items()],
        "changed": _changed(results.recipe, recipe),
        "versions": [f"{k} {v}" for k, v in versions.items()] if isinstance(versions, dict) else [],
        "device": _device(main),
        "runs": {row.run: str(facts_of(table / row.run).get("fingerprint", "")) for row in results.rows if row.run},
    }  # fmt: skip


def _changed(name: str, recipe: Mapping[str, str]) -> list[str]:
    """Say what differs from the recipe as shipped; nothing where the recipe is a file of one's own."""
    if not recipe or "/" in name or name.endswith(".toml"):
        return []
    try:
        own = flat(load_recipe(name).model_dump(mode="json"))
    except (C2VLError, ValidationError, OSError):
        return []
    keys = [key for key in recipe if own.get(key) != recipe[key]]
    return [f"{key} = {recipe[key]}  (recipe: {own.get(key, 'not set')})" for key in keys]


def flat(value: Any, place: str = "") -> dict[str, str]:
    """Return nested settings as dotted keys with JSON values, without folders of paths and passwords in addresses."""
    if isinstance(value, dict) and value:
        return {
            k: v for key, inner in value.items() for k, v in flat(inner, f"{place}.{key}".lstrip(".")).items()
        }
    return {place: clean(re.sub(r"://[^/@\s]+@", "://", json.dumps(value, ensure_ascii=False)))}
