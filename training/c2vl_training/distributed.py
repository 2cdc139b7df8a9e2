"""Several processes, one run: `torchrun --no-python --nproc-per-node 8 c2vl-train pretrain …`.

Each process (rank) encodes its part of every batch; embeddings are gathered, so that the loss sees the whole batch:
loss and gradients equal those of one process with the whole batch. Every rank computes that loss in full.
`DistributedDataParallel` averages gradients over ranks, hence `gather` multiplies the gradients it returns by the
number of ranks; parameters of the loss itself (temperatures) need no correction. With one process nothing changes.

Batch normalisation over ranks is in `encoders/batchnorm.py`: torch's SyncBatchNorm rejects CPU tensors. Any other custom
normalisation must send its sums through `moments` in the forward and `all_reduce_sum` in the backward pass.
"""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from c2vl_manifests.errors import C2VLError, ConfigError, one_line

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others before it reports them as dead."""


def size() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0; process 0 writes and reports."""
    return dist.get_rank() if size() > 1 else 0


class ProcessLostError(C2VLError):
    """Another process of the run has died or cannot be reached."""


@contextmanager
def joined() -> Iterator[int]:
    """Join the processes started by torchrun, if any, and yield this one's rank.

    An error is reported by one process: the first to meet it raises, the others exit with code 1.

    Raises:
        C2VLError: the error of the body, on one rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield 0
        return
    cuda = torch.cuda.is_available()
    try:
        store, me, count = next(rendezvous("env://", timeout=PATIENCE))
        # a run restarted by torchrun must not read the messages of the last attempt
        store = PrefixStore(f"c2vl-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=me, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ProcessLostError(
            f"the processes of this run cannot reach each other ({one_line(error)}); "
            "start them by torchrun and check its address and port"
        ) from error
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        yield me
    except (C2VLError, OSError, KeyboardInterrupt) as error:
        if _first_to_report(store):
            raise
        raise SystemExit(1) from error
    finally:
        dist.destroy_process_group()


def end_process(code: int = 0) -> NoReturn:
    """End a process of several at once, after `joined`.

    Torch keeps threads of a process group after it was destroyed; they abort a process that ends as usual, now and then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _first_to_report(store: Store) -> bool:
    try:
        return int(store.add("reported", 1)) == 1
    except (RuntimeError, ValueError):  # the process that held the store is gone
        return True


def device_of(name: str) -> torch.device:
    """Return the device of that name, `auto` included.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        # each process of a run has its own GPU: `joined` chose it
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"training.device = {name!r} is not a device; use auto, cpu, cuda or cuda:<number>"
        ) from error
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"training.device = {name!r}: training runs on cpu and cuda; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"training.device = {name!r} and this machine has no CUDA device; use auto or cpu")
    return device


@contextmanager
def collective_errors(remedy: Callable[[], str]) -> Iterator[None]:
    """Turn the failure of a collective operation into `ProcessLostError` with a remedy."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        words = ("gloo", "NCCL", "Connection", "peer", "socket", "ProcessGroup", "Timed out")
        if size() > 1 and (isinstance(error, dist.DistError) or any(word in text for word in words)):
            raise ProcessLostError(f"another of the {size()} processes of this run has died; {remedy()}") from error
        raise


def slow_precision(precision: str, device: torch.device) -> str:
    """Return what to tell of bfloat16 on an x86 processor that has no instructions for it; empty elsewhere."""
    x86 = device.type == "cpu" and platform.machine() in {"x86_64", "AMD64"}
    if precision != "bfloat16" or not x86 or torch.backends.cpu.get_cpu_capability() not in {"AVX2", "DEFAULT"}:
        return ""
    return (
        "this processor has no AVX-512 and imitates bfloat16, many times slower than float32; "
        "give --set training.precision=float32"
    )


def per_rank(batch: int) -> int:
    """Return the number of samples of a batch per rank.

    Raises:
        ConfigError: the batch cannot be shared evenly.
    """
    if batch % size():
        raise ConfigError(
            f"a batch of {batch} cannot be shared evenly by {size()} processes; "
            f"choose a batch_size that is a multiple of {size()}, e.g. {max(1, batch // size()) * size()}"
        )
    return batch // size()


def local_rows(rows: Any) -> Any:
    """Return this rank's part of an array with one row per sample of the batch."""
    if size() == 1:
        return rows
    part = per_rank(len(rows))
    return rows[rank() * part : (rank() + 1) * part]


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return True if `flag` is True on any rank."""
    return flag if size() == 1 else bool(all_reduce_sum(torch.tensor([float(flag)], device=device)) > 0)


def check_equal(values: list[int], what: str, device: torch.device) -> None:
    """Raise ConfigError unless all ranks give the same numbers."""
    if size() > 1 and (spread := _all(torch.tensor(values, device=device))).ne(spread[0]).any():
        raise ConfigError(
            f"the processes of this run do not see the same {what}: {spread.tolist()}; "
            "--data and --out must lie on a disk that all of them share"
        )


# ------------------------------------------------------------------------------------ tensors of all ranks


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over ranks, without gradient. The same shape."""
    if size() == 1:
        return x
    x = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x


def _all(x: Tensor) -> Tensor:
    """Shape: S -> (ranks, *S), without gradient."""
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.stack(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all(x).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # all ranks have the same loss, so the sum over ranks of this gradient is their number times this one
        return size() * gradients[0].chunk(size())[rank()]


def gather(x: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, with exact gradients. Shape: (B / ranks, ...) -> (B, ...)."""
    gathered: Tensor = x if size() == 1 else _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered


def moments(count: Tensor, mean: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Combine the statistics of the ranks into those of all samples, without gradient.

    Means are combined by their distances, so that nothing cancels as it does in a sum of squares.

    Args:
        count: samples (or their weights) a channel was averaged over. Shape ().
        mean: their mean. Shape (C,).
        squares: sum of squared distances from that mean. Shape (C,).

    Returns:
        Count, mean and squares over all ranks.
    """
    if size() == 1:
        return count, mean, squares
    C = len(mean)
    of_all = _all(torch.cat([mean, squares, count.to(mean).view(1)]))
    means, distances, counts = of_all[:, :C], of_all[:, C:-1], of_all[:, -1:]
    n = counts.sum()
    middle = (counts * means).sum(0) / n
    return n, middle, distances.sum(0) + (counts * (means - middle).square()).sum(0)


def distribute(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the module to call instead of a model: itself, or its `DistributedDataParallel` over all ranks."""
    if size() == 1:
        return model
    # convolution weights are channels-last, buckets are not: a copy of some megabytes a step
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        # newer torch renames the argument, the torch we support does not know the new name
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        # statistics are equal on all ranks, so buffers need not travel
        return DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
        )
