"""Training and full-size models on one GPU, each beside the usual way in the same run: one table and one JSON.

    python benchmarks/bench_gpu.py [--minutes 9] [--only models] [--tiny]

Weights are random and made on the device; nothing is fetched, and no weights are stored. Without a GPU, sizes
are tiny and figures mean nothing but that the script works. An item that fails or takes too long is a row with its reason.
The JSON (C2VL_BENCH, else bench-gpu.json here) is written after every row.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # checkpoints and packed sets of the tests

from gpu import models, ranks, training
from gpu.session import Session
from timing import FILE

ITEMS: dict[str, list[tuple[str, float, Callable[[Session], None]]]] = {
    "training": [
        ("pre-training", 90, training.beside("ours, bf16", "plain, bf16 autocast", training.USUAL)),
        ("pre-training, compiled", 100, training.beside("ours, bf16", training.USUAL, "ours, bf16, compiled")),
        ("pre-training, no skip", 35, training.beside("ours, bf16, no skip", "plain, bf16 autocast", training.USUAL)),
        ("pre-training, profiled", 25, training.profiled),
    ],
    "models": [(name, seconds, models.item(name)) for name, seconds in models.SECONDS.items()],
    "ranks": [("two processes", 60, ranks.two_processes)],
}
"""Part -> (name, most seconds, what to run): together the nine minutes of a run. What matters most comes first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for the whole run (default 9)")
    parser.add_argument("--pairs", type=int, default=7, help="most turns of each comparison (default 7)")
    parser.add_argument("--only", action="append", choices=ITEMS, help="part to run; may be repeated")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, as without a GPU")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    if FILE not in os.environ:
        os.environ[FILE] = "bench-gpu.json"
        Path(os.environ[FILE]).unlink(missing_ok=True)  # rows of another run
    with tempfile.TemporaryDirectory() as name:
        session = Session(
            torch.device("cuda", 0) if cuda else torch.device("cpu"),
            options.tiny or not cuda,
            Path(name),
            60 * options.minutes,
            options.pairs,
        )
        try:
            for part in options.only or ITEMS:
                for item, seconds, run in ITEMS[part]:
                    session.item(item, seconds, run)
        finally:
            session.show()


if __name__ == "__main__":
    main()
