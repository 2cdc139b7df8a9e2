"""Batch normalisation over counted rows and several processes."""

from __future__ import annotations

import pytest
import torch

from c2vl_training import distributed
from c2vl_training.encoders.batchnorm import BatchNorm
from support.encoders import noise, scrambled


@pytest.mark.parametrize("counts", [(3,), (2, 5), (1,)])
@pytest.mark.parametrize("rest", [0, 3])
def test_a_row_that_stands_for_several_counts_as_often(rest, counts):
    plain, ours = (scrambled(BatchNorm(4).double()) for _ in range(2))
    rows = (3 * noise(rest + len(counts), 4, 2, 3) + 5).requires_grad_()
    copies = torch.tensor(counts, dtype=torch.float64)
    again = torch.cat([torch.ones(rest), copies]).long()
    weights = noise(int(again.sum()), 4, 2, 3)
    y, z = ours(rows, copies), plain(rows.repeat_interleave(again, dim=0))
    torch.testing.assert_close(y.repeat_interleave(again, dim=0), z, rtol=1e-11, atol=1e-11)
    expected = torch.autograd.grad((z * weights).sum(), (rows, *plain.parameters()))
    found = torch.autograd.grad((y.repeat_interleave(again, dim=0) * weights).sum(), (rows, *ours.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("counts", [(), (3,)])
def test_statistics_are_those_of_all_processes(counts, monkeypatch):
    plain, ours = (scrambled(BatchNorm(4).double()) for _ in range(2))
    rows = (noise(3 + len(counts), 4, 2, 3) + 2).requires_grad_()
    copies = torch.tensor(counts, dtype=torch.float64) if counts else None
    again = torch.tensor([1, 1, 1, *counts])
    weights = noise(int(again.sum()), 4, 2, 3)
    whole = rows.repeat_interleave(again, dim=0)
    z = plain(torch.cat([whole, whole]))  # what two processes with equal rows see together
    expected = torch.autograd.grad((z * torch.cat([weights, weights])).sum() / 2, (rows, *plain.parameters()))
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "moments", lambda n, mean, squares: (2 * n, mean, 2 * squares))
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda sums: 2 * sums)
    y = ours(rows, copies).repeat_interleave(again, dim=0)
    torch.testing.assert_close(y, z[: len(y)], rtol=1e-11, atol=1e-11)
    for one, other in zip(torch.autograd.grad((y * weights).sum(), (rows, *ours.parameters())), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-11, atol=1e-11)
