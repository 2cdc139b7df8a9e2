"""Kill a pre-training by SIGKILL at random moments, resume it each time, and compare with an undisturbed run.

python benchmarks/stress/kill_training.py --work WORK [--kills 20] [--epochs 150] [--within 4] [--json FILE]

Prints where each kill hit (last logged epoch, epochs in the checkpoint) and whether weights, optimiser state,
projectors, figures and histograms of both runs are equal, bit by bit. Random frames, dropout and a moving average
teacher are on, so that everything that is drawn or remembered takes part.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from c2vl_training import checkpoint
from c2vl_training.run_log import read_histograms, read_metrics

SETTINGS = (
    "training.pretrain.pooling=random",
    "training.pretrain.standardise=true",
    "training.pretrain.teacher=ema",
    "training.pretrain.temperature.mode=learnable",
    "training.encoder.dropout=0.2",
    "training.pretrain.optimiser.lr=0.03",
    "training.checkpoint_every=2",
    "training.encoder.blocks=[[4,1],[8,2]]",
    "training.input.frames=8",
)


def command(data: Path, out: Path, epochs: int) -> list[str]:
    settings = (*SETTINGS, f"training.pretrain.epochs={epochs}")
    sets = [word for value in settings for word in ("--set", value)]
    program = str(Path(sys.executable).parent / "c2vl-train")
    return [program, "pretrain", "--data", str(data), "--out", str(out), "--recipe", "debug", *sets]


def kill_once(words: list[str], out: Path, rng: random.Random, within: float) -> dict[str, Any] | None:
    """Start, wait until it trains and a random moment more, kill. None if it finished before that."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) and '"progress"' not in line:
            pass
        delay = rng.uniform(0, within)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            return None
    kept = out / checkpoint.CHECKPOINT
    done = checkpoint.load(kept)[1]["epochs_done"] if kept.is_file() else 0
    return {"after_s": round(delay, 3), "epochs_logged": len(read_metrics(out)), "epochs_kept": done}


def equal(one: Path, other: Path) -> dict[str, bool]:
    found = {}
    for name in (checkpoint.CHECKPOINT, checkpoint.ENCODER, checkpoint.PROJECTORS):
        a, b = checkpoint.load(one / name)[0], checkpoint.load(other / name)[0]
        found[name] = a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    figures = [[{**x, "seconds": 0} for x in read_metrics(run)] for run in (one, other)]
    found["metrics.jsonl"] = figures[0] == figures[1]
    found["histograms.jsonl"] = read_histograms(one) == read_histograms(other)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--within", type=float, default=4.0, help="seconds of training before a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rng, began = random.Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        subprocess.run(command(args.work, whole, args.epochs), check=True, stdout=subprocess.DEVNULL)
        words = command(args.work, killed, args.epochs)
        kills: list[dict[str, Any]] = []
        while len(kills) < args.kills and (hit := kill_once(words, killed, rng, args.within)) is not None:
            kills.append(hit)
            print(len(kills), hit, flush=True)
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        found = equal(whole, killed)
        left = [path.name for path in killed.iterdir() if path.name.endswith(".tmp")]
    record = {
        "kills": kills, "epochs": args.epochs, "bitwise_equal": found, "temporary_files_left": left,
        "torch": torch.__version__, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    print(json.dumps({key: value for key, value in record.items() if key != "kills"}))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    if len(kills) < args.kills:
        sys.exit(f"only {len(kills)} kills before the run was finished; give more --epochs")
    sys.exit(0 if all(found.values()) else 1)


if __name__ == "__main__":
    main()
