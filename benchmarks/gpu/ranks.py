"""One pre-training by two processes that share a GPU (NCCL; gloo on a CPU), beside one process with the whole batch.

Two processes on one GPU are no faster: what counts is that they work and that the loss is that of one process.

    python -m gpu.ranks PACKED OUT.json EPOCHS TINY     # what `two_processes` starts twice, with torchrun's variables
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from c2vl_manifests.reading import read_json
from c2vl_training import distributed
from c2vl_training.dataset import PackedDataset
from gpu.session import Session, flops_of
from gpu.training import Variant, packed_set, recipe_of

_NCCL = {
    "NCCL_MULTI_RANK_GPU_ENABLE": "1",
    "NCCL_IB_DISABLE": "1",
    "NCCL_DEBUG": "WARN",
    **({"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
}
"""Both processes use the first GPU. NCCL refuses that of processes on one machine before version 2.30, so that each also names
another one in NCCL_HOSTID; they talk by sockets of this machine, whose name need not be known."""


def two_processes(session: Session) -> None:
    """Add the row of two processes, or why there is none."""
    recipe, out = recipe_of(session.tiny), session.folder / "ranks.json"
    packed = packed_set(session, recipe)
    alone = Variant.of(packed, recipe, session.device)
    loss = alone.epoch()
    (times,) = session.timed({"": alone.epoch}).values()
    session.free()  # for the processes beside this one
    arguments = [str(packed.folder), str(out), str(len(times)), "1" if session.tiny else ""]
    _started(arguments, session.left() - 15, session.folder)
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


def _started(arguments: list[str], seconds: float, folder: Path) -> None:
    """Run this module in two processes until both end; RuntimeError with what they say if one fails or hangs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = os.environ | _NCCL | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    shared |= {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logs = [folder / f"rank{rank}.txt" for rank in range(2)]
    end, children = time.monotonic() + seconds, []
    try:
        for rank, log in enumerate(logs):
            own = shared | {"RANK": str(rank), "NCCL_HOSTID": f"rank {rank}"}
            with log.open("w") as said:
                command = [sys.executable, "-m", __name__, *arguments]
                children.append(subprocess.Popen(command, env=own, stdout=said, stderr=subprocess.STDOUT))
        while any(child.poll() is None for child in children):
            if any(child.poll() for child in children):
                break
            if time.monotonic() > end:
                raise RuntimeError(reason(logs, f"the two processes took longer than their {seconds:.0f} s"))
            time.sleep(0.1)
    finally:
        for child in children:
            child.kill()
            with suppress(subprocess.TimeoutExpired):  # a process that hangs in a driver does not end
                child.wait(5)
    if codes := [child.returncode for child in children if child.returncode]:
        raise RuntimeError(reason(logs, f"a process ended with exit code {codes[0]}"))


def reason(logs: list[Path], otherwise: str) -> str:
    """Return the line of what the processes said that tells most, or `otherwise`."""
    lines = [line.strip() for log in logs for line in log.read_text(errors="replace").splitlines()]
    for pattern in ("Duplicate GPU|same GPU", "NCCL WARN", "NCCL error", r"Error\b"):
        if found := next((line for line in lines if re.search(pattern, line)), ""):
            return f"{found} ({otherwise})"
    return otherwise


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
    torch.set_num_threads(1)
    with distributed.joined():
        _rank(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), bool(sys.argv[4]))
    distributed.end_process()
