"""One pre-training by two processes that share a GPU (NCCL; gloo on a CPU), beside one process with the whole batch.

Two processes on one GPU are no faster: what counts is that they work and that the loss is that of one process.

    torchrun --nproc-per-node 2 -m gpu.ranks PACKED OUT.json EPOCHS TINY     # what `two_processes` starts
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from c2vl_manifests.errors import one_line
from c2vl_manifests.reading import read_json
from c2vl_training import distributed
from c2vl_training.dataset import PackedDataset
from gpu.session import Session, flops_of
from gpu.training import Variant, packed_set, recipe_of


def two_processes(session: Session) -> None:
    """Add the row of two processes, or why there is none."""
    recipe, out = recipe_of(session.tiny), session.folder / "ranks.json"
    packed = packed_set(session, recipe)
    alone = Variant.of(packed, recipe, session.device)
    loss = alone.epoch()
    (times,) = session.timed({"": alone.epoch}).values()
    _started([str(packed.folder), str(out), str(len(times)), "1" if session.tiny else ""], session.left() - 5)
    found = read_json(out)
    session.row(
        f"pre-training, two processes by {found['backend']}",
        found["seconds"],
        ("one process, before", times),
        (alone.steps * alone.method.batch_size, "samples"),
        flops_of(alone.epoch),
        alone.dtype,
        loss_of_one=loss,
        loss_of_two=found["loss"],
    )
    session.notes.append(f"two processes: mean loss of the first epoch {found['loss']:.6f}, of one process {loss:.6f}")


def _started(arguments: list[str], seconds: float) -> None:
    """Run this module in two processes; RuntimeError with what they say if they fail."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", __name__]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen([*command, *arguments], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        _, said = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"the two processes took longer than their {seconds:.0f} s") from None
    finally:
        if child.poll() is None:
            child.terminate()  # torchrun then ends its processes, which a kill would leave behind
            child.communicate()
    if child.returncode:
        lines = [line for line in said.splitlines() if re.search(r"NCCL|Error", line)]
        raise RuntimeError(one_line(RuntimeError(lines[0] if lines else f"exit code {child.returncode}")))


def _rank(packed: Path, out: Path, epochs: int, tiny: bool) -> None:
    """Write the loss of the first epoch and the seconds of further ones."""
    device = distributed.device_of("auto")
    variant = Variant.of(PackedDataset(packed), recipe_of(tiny), device)
    loss, seconds = variant.epoch(), []
    for _ in range(epochs):
        started = time.perf_counter()
        variant.epoch()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    if distributed.rank() == 0:
        backend = "nccl" if device.type == "cuda" else "gloo"
        out.write_text(json.dumps({"loss": loss, "seconds": seconds, "backend": backend}))
    torch.distributed.barrier()  # no process leaves the group while the other is still writing


if __name__ == "__main__":
    # both processes use the first GPU; NCCL refuses that of processes on one machine, so each names another one
    os.environ |= {"LOCAL_RANK": "0", "NCCL_HOSTID": f"rank {os.environ['RANK']}"}
    torch.set_num_threads(1)
    with distributed.joined():
        _rank(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), bool(sys.argv[4]))
