"""Name what became slower between two runs of the benchmarks, each row by the ratio to its own baseline.

    python benchmarks/compare.py OLD.json NEW.json [--slower 15]

Absolute times are not compared: machines differ and are busy. A row counts as slower if its median ratio fell by more
than `--slower` per cent: the ratio of processor time where both files have it, else that of wall time. Exit code 0:
nothing became slower, 1: something did, 2: the files cannot be compared.
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
from timing import described

Key = tuple[str, str, str]
"""Script, name of the row, name of its baseline."""
Rows = dict[Key, Mapping[str, Any]]
_PROCESSOR = "ratio_of_processor_time"
_ALIKE = ("processor", "cores", "gpu", "torch")


def read(path: Path) -> tuple[Mapping[str, Any], Rows]:
    """Return the facts of the machine, and the rows that have a ratio.

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
        if row.get("ratio") is None:
            continue
        script, name, baseline = (row.get(key) for key in ("script", "name", "baseline"))
        figures: list[Any] = [row.get(key) for key in ("ratio", "low", "high", "pairs")]
        figures += [row[_PROCESSOR]] if _PROCESSOR in row else []
        if not (isinstance(script, str) and isinstance(name, str) and isinstance(baseline, str)):
            raise DataError(f"{path}: row {number} names no script, figure and baseline; {again}")
        if (script, name, baseline) in kept:
            raise DataError(f"{path}: {script} has {name!r} twice; {again}")
        if not all(type(f) in {int, float} and f > 0 and math.isfinite(f) for f in figures):
            raise DataError(f"{path}: {name!r} has the ratio {figures[0]!r}; expected numbers above 0; {again}")
        kept[script, name, baseline] = row
    return machine, kept


def slower(old: Rows, new: Rows, percent: float) -> dict[Key, str]:
    """Return the rows whose ratio fell by more than `percent`, and which: ours became slower than the same baseline."""
    by = {
        name: _PROCESSOR if _PROCESSOR in row and _PROCESSOR in old[name] else "ratio"
        for name, row in new.items()
        if name in old
    }
    return {name: which for name, which in by.items() if new[name][which] * (1 + percent / 100) < old[name][which]}


def compared(before: Path, after: Path, percent: float) -> tuple[list[str], bool]:
    """Return the lines to print, and whether nothing became slower.

    Raises:
        DataError: a file is none of ours, or the two have no row in common.
    """
    (there, old), (here, new) = read(before), read(after)
    common = [name for name in new if name in old]
    if not common:
        raise DataError(f"{before} and {after} have no row with a ratio in common; run the same benchmarks for both")
    lines = [
        f"note: {fact} was {there.get(fact)}, is {here.get(fact)}; ratios may differ for that alone"
        for fact in _ALIKE
        if there.get(fact) != here.get(fact)
    ]
    lines += [
        f"note: {name}: {script} no longer measures it against {baseline}"
        for script, name, baseline in old.keys() - new.keys()
    ]
    worse = slower(old, new, percent)
    for name, by in worse.items():
        more = 100 * (old[name][by] / new[name][by] - 1)
        was, now = (described(rows[name], by) for rows in (old, new))
        lines.append(f"slower: {name[1]} ({name[0]}): {more:.0f} %; was {was}, is {now}")
    lines.append(f"{len(worse)} of {len(common)} rows became more than {percent:g} % slower beside their baselines")
    return lines, not worse


def _percent(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no share of slowness; expected a number from 0")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--slower", type=_percent, default=15.0, metavar="PERCENT", help="default 15")
    options = parser.parse_args()
    try:
        lines, fine = compared(options.old, options.new, options.slower)
    except C2VLError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print("\n".join(lines))
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
