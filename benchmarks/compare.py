"""Name what became slower between two runs of the benchmarks, each row by the ratio to its own baseline.

    python benchmarks/compare.py OLD.json NEW.json [--slower 15] [--part]

Absolute times are not compared: machines differ and are busy. A row became slower by how much its ratio of OLD is above
that of NEW: by a quarter, if 2.5 became 2. A row names the ratio that judges it (`judged_by`); where one of the machines was
busy, that of processor time does, in which waiting is missing. A row of OLD that NEW has not is gone. Exit code 0: nothing
became more than `--slower` per cent slower and nothing is gone, 1: something did or is, 2: the files cannot be compared.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from c2vl_manifests.errors import C2VLError, DataError, one_line
from c2vl_manifests.reading import read_json
from timing import PROCESSOR, WALL, described

Key = tuple[str, str, str]
"""Script, name of the row, name of its baseline (empty: it has no ratio)."""
Rows = dict[Key, Mapping[str, Any]]
_ALIKE = ("processor", "cores", "gpu", "torch")


def read(path: Path) -> tuple[Mapping[str, Any], Rows]:
    """Return the facts of the machine, and the rows that were measured.

    Raises:
        DataError: no such file, or it is not what the benchmarks write.
    """
    again = "make it with `make bench` or `make bench-gpu`"
    try:
        found = read_json(path)
        machine, rows = dict(found["machine"]), [dict(row) for row in found["rows"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a run of the benchmarks ({one_line(error, named=True)}); {again}") from error
    kept: Rows = {}
    for number, row in enumerate(rows):
        if "reason" in row:  # why it was not measured
            continue
        script, name = row.get("script"), row.get("name")
        baseline = "" if row.get(WALL) is None else row.get("baseline")
        figures: list[Any] = [row.get(key) for key in (WALL, "low", "high", "pairs")]
        figures += [row[PROCESSOR]] if PROCESSOR in row else []
        if not (isinstance(script, str) and isinstance(name, str) and isinstance(baseline, str)):
            raise DataError(f"{path}: row {number} names no script, figure and baseline; {again}")
        if (script, name, baseline) in kept:
            raise DataError(f"{path}: {script} has {name!r} twice; {again}")
        if not baseline:
            kept[script, name, ""] = row
            continue
        if not all(type(f) in {int, float} and f > 0 and math.isfinite(f) for f in figures):
            raise DataError(f"{path}: {name!r} has the ratio {figures[0]!r}; expected numbers above 0; {again}")
        if (named := row.setdefault("judged_by", WALL)) not in [key for key in (WALL, PROCESSOR) if key in row]:
            raise DataError(f"{path}: {name!r} is judged by {named!r}, a ratio that it does not have; {again}")
        kept[script, name, baseline] = row | {"busy": _busy(row.get("load"), machine.get("cores"))}
    return machine, kept


def _busy(load: Any, cores: Any) -> bool:
    """Return whether a machine had more than one process more to run than cores; a benchmark is one or two of them."""
    return all(type(figure) in {int, float} for figure in (load, cores)) and load > cores + 1


def judge(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the ratio that judges a row: the one that it names, that of processor time if a machine was busy."""
    by = PROCESSOR if old["busy"] or new["busy"] else new["judged_by"]
    return by if by in old and by in new else WALL


def compared(before: Path, after: Path, percent: float, part: bool = False) -> tuple[list[str], bool]:
    """Return the lines to print, and whether nothing became slower or, unless NEW is a part on purpose, is gone.

    Raises:
        DataError: a file is none of ours, or the two have no row in common.
    """
    (there, old), (here, new) = read(before), read(after)
    judges = {name: judge(old[name], row) for name, row in new.items() if name in old and name[2]}
    if not judges:
        raise DataError(f"{before} and {after} have no row with a ratio in common; run the same benchmarks for both")
    lines = [
        f"note: {fact} was {there.get(fact)}, is {here.get(fact)}; ratios may differ for that alone"
        for fact in _ALIKE
        if there.get(fact) != here.get(fact)
    ]
    if unseen := sum(by == PROCESSOR and new[name]["judged_by"] == WALL for name, by in judges.items()):
        lines.append(f"note: a machine was busy: processor time judges {unseen} rows of wall time, waiting is not seen")
    gone = [] if part else [name for name in old if name not in new]
    lines += [
        f"gone: {name} ({script}): not measured{baseline and f' against {baseline}'}; run it again, "
        "or give --part if left out on purpose"
        for script, name, baseline in gone
    ]
    worse = 0
    for name, by in judges.items():
        more = 100 * (old[name][by] / new[name][by] - 1)
        if more > percent:
            worse += 1
            was, now = (described(rows[name], by) for rows in (old, new))
            lines.append(f"slower: {name[1]} ({name[0]}): {more:.0f} %; was {was}, is {now}")
    lines.append(
        f"{worse} of {len(judges)} rows became more than {percent:g} % slower beside their baselines, {len(gone)} gone"
    )
    return lines, not (worse or gone)


def _percent(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no share of slowness; expected a number from 0")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--slower", type=_percent, default=15.0, metavar="PERCENT", help="default 15")
    parser.add_argument("--part", action="store_true", help="NEW is a part on purpose: rows may be gone")
    options = parser.parse_args()
    try:
        lines, fine = compared(options.old, options.new, options.slower, options.part)
    except C2VLError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print("\n".join(lines))
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
