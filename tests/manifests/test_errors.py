"""Errors of disks: file, cause and remedy in one line, whatever the file system answers."""

from __future__ import annotations

import errno
import os
import pickle
import resource
from pathlib import Path

import pytest

from c2vl_manifests.errors import disk_error, gpu_failed, memory_ran_out, naming, passing


@pytest.mark.parametrize(
    ("number", "cause", "remedy"),
    [
        (errno.ENOSPC, "disk is full", "free some space"),
        (errno.EDQUOT, "quota", "free some space"),
        (errno.EROFS, "read-only", "can be written"),
        (errno.EACCES, "permission denied", "ls -ld"),
        (errno.EPERM, "permission denied", "ls -ld"),
        (errno.ESTALE, "stale file handle", "mount it again"),
        (errno.EIO, "input/output error", "dmesg"),
        (errno.ENOTCONN, "gone away", "mount it again"),
        (errno.EMFILE, "too many open files", "ulimit -n"),
        (errno.EFBIG, "too large", "another disk"),
        (errno.ENAMETOOLONG, "too long", "shorter path"),
        (errno.ENOSYS, "lacks a call", "another file system"),
        (errno.EILSEQ, "letters", "another name"),
        (errno.ENOENT, "no such file", "check the path"),
        (errno.EPROTO, os.strerror(errno.EPROTO), "run the same command again"),
    ],
)
def test_a_disk_error_names_file_cause_and_remedy(number: int, cause: str, remedy: str) -> None:
    for error, path in ((OSError(number, os.strerror(number), "/w/a.json"), None), (OSError(number, "?"), "/w/a.json")):
        text = disk_error(error, path)
        assert text.startswith("/w/a.json: ")
        assert remedy in text
        assert "None" not in text
    assert cause in disk_error(OSError(number, os.strerror(number), "x"))


def test_an_error_without_a_number_keeps_its_words() -> None:
    assert disk_error(OSError("/w/x: written but unreadable; check the disk")).startswith(
        "/w/x: written but unreadable"
    )


def test_a_lost_connection_is_no_lost_file_system() -> None:
    assert disk_error(OSError(errno.ETIMEDOUT, "Connection timed out")).startswith("Connection timed out; ")


def test_naming_adds_the_file_where_none_is_named_and_hides_temporary_ones() -> None:
    path, temporary = Path("/w/a.json"), Path("/w/.a.json.1.tmp")
    for named, expected in ((None, str(path)), (str(temporary), str(path)), ("/elsewhere", "/elsewhere")):
        with pytest.raises(OSError, match="quota") as caught, naming(path, temporary):
            raise OSError(errno.EDQUOT, "Disk quota exceeded", *([named] if named else []))
        assert pickle.loads(pickle.dumps(caught.value)).filename == expected  # workers send it
    with pytest.raises(ValueError, match="no disk"), naming(path):
        raise ValueError("no disk")


def test_only_what_may_pass_is_no_proof_of_damage() -> None:
    for number in (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EACCES, errno.EMFILE):
        assert passing(OSError(number, "x"))
    for error in (OSError(errno.EIO, "x"), FileNotFoundError(errno.ENOENT, "x"), OSError("x"), ValueError("x")):
        assert not passing(error)


@pytest.mark.parametrize(
    ("error", "memory", "gpu"),
    [
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True, False),
        (OSError("libgomp.so.1: failed to map segment from shared object"), True, False),
        (ImportError("libjemalloc.so.2: cannot allocate memory in static TLS block"), False, False),
        (RuntimeError("CUDA error: out of memory"), True, True),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), False, True),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (AssertionError("Torch not compiled with CUDA enabled"), False, True),
        (RuntimeError("found at least two devices, cuda:0 and cpu!"), False, False),
        (ValueError("CUDA error: in a name of a user"), False, False),
    ],
)
def test_memory_and_a_gpu_that_fails_are_told_apart_from_mistakes(error, memory, gpu):
    assert (memory_ran_out(error), gpu_failed(error)) == (memory, gpu)


@pytest.mark.parametrize(
    "error", [SystemError("error return without exception set"), RuntimeError("can't start new thread")]
)
@pytest.mark.parametrize("limited", [True, False])
def test_what_has_no_other_cause_is_memory_where_the_address_space_is_limited(monkeypatch, error, limited):
    soft = 2**30 if limited else resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, soft))
    assert memory_ran_out(error) is limited
