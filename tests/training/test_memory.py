"""Memory that runs out: one line with the setting to change, whatever library says it."""

from __future__ import annotations

import errno

import pytest
import torch

from c2vl_training import dry_run, inference, trainer
from c2vl_training.clips import Clips
from c2vl_training.dataset import PackedDataset
from c2vl_training.memory import OutOfMemoryError, memory_errors
from support.cli import refused, sets
from support.training import BASE, recipe, run

CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
SAID = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously"),
    RuntimeError(CPU),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError("Unable to allocate 7.5 TiB for an array with shape (1000000, 1000000)"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", SAID, ids=range(len(SAID)))
def test_every_library_has_the_one_line(error):
    with pytest.raises(OutOfMemoryError) as caught, memory_errors("the x training", "training.x.batch_size", 9):
        raise error
    said = str(caught.value)
    assert "--set training.x.batch_size=4 (now 9)" in said
    assert "\n" not in said


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), OSError(errno.ENOSPC, "full"), KeyError("x")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, memory_errors("x"):
        raise error
    assert caught.value is error


def test_a_batch_of_one_is_not_told_to_shrink():
    with pytest.raises(OutOfMemoryError) as caught, memory_errors("x", "training.x.batch_size", 1):
        raise SAID[0]
    assert "--set" not in str(caught.value)


@pytest.mark.parametrize("kind", ["pretrain", "supervised"])
def test_a_training_names_its_own_batch(data, tmp_path, cli, monkeypatch, kind):
    def forward(*_: object, **__: object) -> None:
        raise SAID[0]

    monkeypatch.setattr(trainer, "forward", forward)
    words = ["c2vl-train", kind, "--data", data, "--out", tmp_path / "run", "--recipe", "debug", *sets(*BASE)]
    refused(cli(*words), "Tried to allocate 2.00 GiB", f"--set training.{kind}.batch_size=2 (now 5)")


def test_data_that_do_not_fit_blame_no_batch(data, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise SAID[1]

    monkeypatch.setattr(trainer, "Clips", full)
    with pytest.raises(OutOfMemoryError, match="copying 12 clips") as caught:
        trainer.train(run(data, tmp_path / "run"))
    assert "batch" not in str(caught.value)


@pytest.mark.slow
def test_features_are_encoded_in_smaller_batches(data):
    packed = PackedDataset(data)
    clips = Clips(packed, packed.select("xsub", "train").rows, recipe().training.input, torch.device("cpu"))

    def network(batch):
        if len(batch) > 3:
            raise SAID[0]
        return batch.flatten(1)

    assert torch.equal(inference.encode(network, clips, 8), inference.encode(network, clips, 2))


@pytest.mark.parametrize(
    ("overrides", "benchmark"),
    [((), "nowhere"), (("training.pretrain.batch_size=99",), "xsub"), (("training.device=cuda:77",), "xsub")],
)
def test_a_refused_run_leaves_no_folder(data, tmp_path, cli, overrides, benchmark):
    out = tmp_path / "run"
    words = ["--data", data, "--benchmark", benchmark, "--out", out, "--recipe", "debug", *sets(*BASE, *overrides)]
    if not torch.cuda.is_available():
        assert cli("c2vl-train", "pretrain", *words).code == 1
        assert not out.exists()


def test_a_dry_run_refuses_the_batch_too(data, tmp_path):
    from c2vl_manifests.errors import ConfigError

    with pytest.raises(ConfigError, match="batch_size=3"):
        dry_run.estimate(run(data, tmp_path / "run", "training.pretrain.batch_size=13"))
