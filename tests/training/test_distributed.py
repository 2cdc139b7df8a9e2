"""Training in several processes: gradients, weights and failures."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from c2vl_manifests.errors import ConfigError
from c2vl_training import checkpoint, distributed
from c2vl_training.encoders import batchnorm
from c2vl_training.run_log import read_metrics
from c2vl_training.trainer import train
from support import rank_step
from support.packed import moving, write_packed
from support.training import BASE, run, tensors

BIN = Path(sys.executable).parent
TORCHRUN = (str(BIN / "torchrun"), "--master-addr", "127.0.0.1", "--nproc-per-node", "2")
COUNT = 420
STEP = (*BASE, "training.precision=float64", "training.pretrain.batch_size=400", "training.supervised.batch_size=400")


def port() -> tuple[str, str]:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return ("--master-port", str(found.getsockname()[1]))


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def words_of(*overrides: str) -> list[str]:
    return [word for value in overrides for word in ("--set", value)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("many") / "packed"
    joints = moving(COUNT)
    # every third clip has a second body, so that ranks meet different numbers of bodies
    joints = [np.concatenate([j, j[:, :, ::-1] * (n % 3 == 0)], axis=1) for n, j in enumerate(joints)]
    labels = rng.integers(0, 3, COUNT).tolist()
    return write_packed(folder, joints, labels=labels, splits=[{"xsub": "train"}] * COUNT)


SETTINGS = {
    "pretrain": ("pretrain",),
    "supervised": ("supervised",),
    "free temperature, moving average": (
        "pretrain",
        "training.pretrain.temperature.mode=learnable",
        "training.pretrain.teacher=ema",
    ),
    "two views, heads of their own, all negatives": (
        *("pretrain", "training.pretrain.views=2", "training.pretrain.view_weight=0.5"),
        *("training.pretrain.skeleton_heads=per_kind", "training.pretrain.negatives=all"),
        *("training.pretrain.equal_prompts=positives", "training.pretrain.directions=mean"),
    ),
    "sigmoid": ("pretrain", "training.pretrain.targets=sigmoid", "training.pretrain.negatives=all"),
    "empty bodies computed": ("pretrain", "training.encoder.empty_bodies=compute"),
    "empty bodies computed once": ("pretrain", "training.encoder.empty_bodies=exact_skip"),
    "empty bodies left out": ("pretrain", "training.encoder.empty_bodies=leave_out"),
}


@pytest.fixture(scope="module")
def stepped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders with one step of every setting: made by this process, and by two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    wanted = {name: (kind, *STEP, *more) for name, (kind, *more) in SETTINGS.items()}
    rank_step.steps(data, one, wanted)
    command = [*TORCHRUN, *port(), rank_step.__file__, str(data), str(two), json.dumps(wanted)]
    subprocess.run(command, check=True, env=environment(), timeout=240)
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_two_processes_with_200_give_loss_and_gradients_of_one_with_400(
    stepped: tuple[Path, Path], setting: str
) -> None:
    alone, shared = (checkpoint.load(folder / f"{setting}.safetensors")[0] for folder in stepped)
    assert alone.keys() == shared.keys()
    gradients = [name for name in alone if name.startswith("gradient.")]
    assert len(gradients) > 10
    norm = torch.sqrt(sum((alone[n].square().sum() for n in gradients), torch.zeros(()).double()))
    away = torch.sqrt(sum(((alone[n] - shared[n]).square().sum() for n in gradients), torch.zeros(()).double()))
    assert float(norm) > 1e-3
    assert torch.allclose(alone["loss"], shared["loss"], rtol=1e-12, atol=0)
    assert float(away / norm) < 1e-11
    for name in alone:
        torch.testing.assert_close(shared[name], alone[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.slow
def test_a_run_of_two_processes_ends_with_the_weights_of_one(data, tmp_path):
    more = (
        *("training.precision=float64", "training.pretrain.batch_size=100", "training.pretrain.epochs=2"),
        "training.pretrain.teacher=memory",  # which the second epoch reads
    )
    out = tmp_path / "two"
    command = [*TORCHRUN, *port(), "--no-python", str(BIN / "c2vl-train"), "pretrain", "--data", str(data)]
    command += ["--benchmark", "xsub", "--out", str(out), "--recipe", "debug", *words_of(*BASE, *more)]
    found = subprocess.run(command, check=False, env=environment(), capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("next: c2vl-eval") == 1  # one of them reports
    train(run(data, tmp_path / "one", *more))
    for name in (checkpoint.ENCODER, checkpoint.CHECKPOINT):
        one, two = tensors(tmp_path / "one", name), tensors(out, name)
        assert all(torch.allclose(one[n], two[n], rtol=1e-9, atol=1e-11) for n in one)
    assert 400 <= two["teacher.known"].sum() <= COUNT
    assert [x["epoch"] for x in read_metrics(out)] == [0, 1]
    facts = json.loads((out / "run.json").read_text())
    assert facts["processes"] == 2


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_one_line_and_it_goes_on(data, tmp_path):
    more = ("training.pretrain.epochs=2000", "training.checkpoint_every=2", "training.pretrain.batch_size=400")
    out = tmp_path / "run"
    words = [str(BIN / "c2vl-train"), "pretrain", "--data", str(data), "--benchmark", "xsub"]
    words += ["--out", str(out), "--recipe", "debug", *words_of(*BASE, *more)]
    process = subprocess.Popen(
        [*TORCHRUN, *port(), "--no-python", *words],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        limit = time.monotonic() + 90
        while len(read_metrics(out)) < 5:
            assert time.monotonic() < limit
            assert process.poll() is None
            time.sleep(0.02)
        second = [
            child for child in psutil.Process(process.pid).children(recursive=True)
            if child.environ().get("RANK") == "1"
        ]  # fmt: skip
        second[0].send_signal(signal.SIGKILL)
        said = process.communicate(timeout=90)[1]
    finally:
        process.kill()
    assert process.returncode != 0
    kept = out / checkpoint.CHECKPOINT
    lines = [line for line in said.splitlines() if "error:" in line and "torch" not in line]
    assert len(lines) == 1
    assert re.search(r"another of the 2 processes of this run has died; the same command resumes from ", lines[0])
    assert str(kept) in lines[0]
    done = checkpoint.load(kept)[1]["epochs_done"]
    assert done >= 4
    assert not (out / checkpoint.ENCODER).exists()
    # what a lone process makes of that checkpoint is what it says: the run goes on from it
    again = subprocess.Popen(
        [*TORCHRUN, *port(), "--no-python", *words],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert again.stdout is not None
        assert f"resuming after epoch {done} of 2000" in again.stdout.readline()
    finally:
        again.terminate()
        again.wait(60)


def test_an_uneven_batch_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 3)
    with pytest.raises(
        ConfigError,
        match=r"a batch of 400 cannot be shared evenly by 3 processes; choose a batch_size that is a multiple of 3, e.g. 399",
    ):
        distributed.per_rank(400)


def test_one_process_changes_nothing():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert distributed.distribute(model, torch.device("cpu")) is model
    x = torch.randn(5, 3, requires_grad=True)
    assert distributed.gather(x) is x
    assert distributed.local_rows([1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 5, 3)])
def test_our_normalisation_is_torchs(shape):
    torch.manual_seed(0)
    theirs = (nn.BatchNorm1d if len(shape) < 4 else nn.BatchNorm2d)(4).double()
    with torch.no_grad():
        theirs.weight.uniform_(0.5, 2)
        theirs.bias.normal_()
    wrapped = nn.Sequential(nn.BatchNorm2d(4) if len(shape) == 4 else nn.BatchNorm1d(4)).double()
    wrapped[0].load_state_dict(theirs.state_dict())
    before = list(wrapped.state_dict())
    batchnorm.convert_sync_batchnorm(wrapped)
    assert isinstance(wrapped[0], batchnorm.SyncBatchNorm)
    assert list(wrapped.state_dict()) == before
    a, b = (
        torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 7 for _ in range(2)
    )
    a.requires_grad_()
    b.requires_grad_()
    for _ in range(2):
        y, z = wrapped(a), theirs(b)
        torch.testing.assert_close(y, z)
        (y.pow(3).sum()).backward()
        (z.pow(3).sum()).backward()
    torch.testing.assert_close(a.grad, b.grad)
    for mine, other in zip(wrapped[0].parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    assert all(torch.allclose(wrapped[0].state_dict()[n], t) for n, t in theirs.state_dict().items())
    wrapped.eval()
    theirs.eval()
    torch.testing.assert_close(wrapped(a), theirs(b))


def test_bfloat16_that_is_imitated_is_told(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert "training.precision=float32" in distributed.slow_precision("bfloat16", cpu)
    assert (distributed.slow_precision("float32", cpu), distributed.slow_precision("bfloat16", gpu)) == ("", "")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert not distributed.slow_precision("bfloat16", cpu)
