"""`--help` of the three commands, which must not load torch, beside Python starting and doing nothing."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from timing import Parser, compare


def main() -> None:
    pairs = Parser(__doc__, pairs=9).parse_args().pairs
    run = partial(subprocess.run, check=True, capture_output=True)
    for command in ("c2vl-pipeline", "c2vl-train", "c2vl-eval"):
        ours = [str(Path(sys.executable).parent / command), "--help"]
        compare(f"{command} --help", partial(run, ours), partial(run, [sys.executable, "-c", ""]), pairs)


if __name__ == "__main__":
    main()
