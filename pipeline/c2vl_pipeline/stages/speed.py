"""Speed of engines that hold a model: what they made and how long it took them, for manifests and progress."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SPEED = "speed"
"""Name in the provenance of shards and stages: unit -> `made`, `tokens` and `seconds` of the engine's calls."""

Speed = Mapping[str, Mapping[str, float]]


def add(provenance: dict[str, Any], unit: str, answers: Iterable[Any], seconds: float) -> None:
    """Add one call of an engine to the provenance of a shard."""
    answers = list(answers)
    tokens = sum(getattr(answer, "tokens", 0) for answer in answers)
    call = {"made": len(answers), "tokens": tokens, "seconds": seconds}
    provenance[SPEED] = summed([provenance.get(SPEED, {}), {unit: call}])


def summed(parts: Iterable[Speed]) -> dict[str, dict[str, float]]:
    """Return the sums over shards, by unit."""
    sums: dict[str, dict[str, float]] = {}
    for part in parts:
        for unit, counts in part.items():
            into = sums.setdefault(unit, dict.fromkeys(counts, 0))
            for name, count in counts.items():
                into[name] = round(into.get(name, 0) + count, 3)
    return sums


def rates(speed: Speed) -> dict[str, float]:
    """Return what one process makes in a second: `images/s`, and `tokens/s` of answers."""

    def rate(count: float, seconds: float) -> float:
        return float(f"{count / seconds:.3g}")

    timed = {unit: counts for unit, counts in speed.items() if counts["seconds"] > 0}
    found = {f"{unit}/s": rate(counts["made"], counts["seconds"]) for unit, counts in timed.items()}
    if said := [counts for counts in timed.values() if counts["tokens"]]:
        tokens, seconds = (sum(counts[name] for counts in said) for name in ("tokens", "seconds"))
        found["tokens/s"] = rate(tokens, seconds)
    return found
