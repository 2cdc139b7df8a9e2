"""`--help` of the three commands: it must not load torch, and answers within 0.2 s (median, warm)."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    for command in ("c2vl-pipeline", "c2vl-train", "c2vl-eval"):
        times = []
        for _ in range(12):
            started = time.perf_counter()
            subprocess.run([str(Path(sys.executable).parent / command), "--help"], check=True, capture_output=True)
            times.append(time.perf_counter() - started)
        kept = times[2:]  # the first two warm the file cache
        print(
            f"{command} --help: median {statistics.median(kept):.3f} s ({min(kept):.3f} to {max(kept):.3f}, {len(kept)} runs)"
        )


if __name__ == "__main__":
    main()
