"""Clips and their augmentation against a per-sample reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional as F

from c2vl_manifests.layouts import Layout
from c2vl_manifests.recipe_training import Augmentation, InputConfig
from c2vl_training.augmentation import AugmentationDraws, draw, rotations
from c2vl_training.clips import Clips
from c2vl_training.dataset import PackedDataset
from c2vl_training.seeding import generator_of as _generator
from support.packed import LENGTHS, STICK, T, random_joints, write_packed

FLAT = Layout("flat", STICK.names, STICK.parents, 2)
CPU = torch.device("cpu")


def clips_of(folder: Path, config: InputConfig) -> Clips:
    packed = PackedDataset(folder)
    return Clips(packed, np.arange(packed.manifest.samples), config, CPU)


# ------------------------------------------------------------------------------------ one sample at a time


def about(axis: int, angle: float) -> np.ndarray:
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    turn = np.eye(3)
    turn[a, a] = turn[b, b] = np.cos(angle)
    turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
    return turn


def naive_resize(joints: np.ndarray, frames: int) -> np.ndarray:
    _, M, V, C = joints.shape
    resized = np.zeros((frames, M, V, C))
    for m in range(M):
        for v in range(V):
            for c in range(C):
                series = torch.from_numpy(joints[:, m, v, c].astype(np.float64))[None, None]
                resized[:, m, v, c] = F.interpolate(series, size=frames, mode="linear", align_corners=False)[0, 0]
    return resized


def naive_clip(
    joints: np.ndarray,
    start: int,
    length: int,
    angles: Sequence[float] | None,
    stream: str,
    layout: Layout,
    frames: int = T,
    shares: Sequence[float] | None = None,
) -> np.ndarray:
    clip = naive_resize(joints[start : start + length], frames)
    if shares is not None:
        others = [(i, j) for i in range(3) for j in range(3) if i != j]
        still = clip.copy()
        for (i, j), share in zip(others, shares, strict=True):
            if max(i, j) < layout.dims:
                clip[..., i] += share * still[..., j]
    if angles is not None:
        R = about(2, angles[2]) @ about(1, angles[1]) @ about(0, angles[0])
        if layout.dims == 2:
            R = about(2, angles[2])[:2, :2]
        clip = np.einsum("ij,tmvj->tmvi", R, clip)
    out = clip.copy()
    for t in range(frames):
        for v in range(layout.joints):
            if stream == "bone":
                out[t, :, v] = clip[t, :, v] - clip[t, :, layout.parents[v]]
            elif stream == "motion":
                out[t, :, v] = clip[t + 1, :, v] - clip[t, :, v] if t + 1 < frames else 0
    return out.transpose(3, 0, 2, 1)


@pytest.mark.parametrize("layout", [STICK, FLAT], ids=["3d", "2d"])
@pytest.mark.parametrize("bodies", [1, 2])
@pytest.mark.parametrize("stream", ["joint", "bone", "motion"])
@pytest.mark.parametrize("shear", [0.0, 0.5])
def test_training_clips_match_a_per_sample_reference(tmp_path, stream, bodies, layout, shear):
    joints = random_joints(LENGTHS, bodies, layout)
    config = InputConfig(stream=stream, frames=T, augmentation=Augmentation(rotation=1.5, shear=shear))
    clips = clips_of(write_packed(tmp_path / "packed", joints, layout=layout), config)
    order = torch.tensor([8, 3, 0, 5, 1, 7, 2, 6, 4, 8])
    draws = draw(len(order), config, torch.Generator().manual_seed(3))
    batch = clips.train(order, draws)
    assert batch.shape == (10, layout.dims, T, layout.joints, bodies)
    for place, n in enumerate(order.tolist()):
        count = LENGTHS[n]
        share, where = draws.window[place].item(), draws.start[place].item()
        length = min(max(int(share * count), T), count)
        start = int(where * (count - length + 1))
        shares = draws.shares[place].tolist() if shear else None
        wanted = naive_clip(joints[n], start, length, draws.angles[place].tolist(), stream, layout, shares=shares)
        np.testing.assert_allclose(batch[place].numpy(), wanted, atol=1e-5, rtol=1e-5)


def test_a_shear_moves_no_other_draw_and_stays_in_its_range():
    plain, sheared = (
        draw(200, InputConfig(augmentation=Augmentation(shear=shear)), torch.Generator().manual_seed(3))
        for shear in (0.0, 0.5)
    )
    assert plain.shares is None
    for name in ("window", "start", "angles"):
        assert torch.equal(getattr(plain, name), getattr(sheared, name))
    assert 0.45 < sheared.shares.abs().max() < 0.5


@pytest.mark.parametrize("layout", [STICK, FLAT], ids=["3d", "2d"])
@pytest.mark.parametrize("bodies", [1, 2])
@pytest.mark.parametrize("stream", ["joint", "bone", "motion"])
def test_test_clips_are_the_central_window_and_not_rotated(tmp_path, stream, bodies, layout):
    joints = random_joints(LENGTHS, bodies, layout)
    config = InputConfig(stream=stream, frames=T, augmentation=Augmentation(test_window=0.75))
    clips = clips_of(write_packed(tmp_path / "packed", joints, layout=layout), config)
    batch = clips.test(torch.arange(len(LENGTHS)))
    for n, count in enumerate(LENGTHS):
        cut = int((1 - 0.75) * count / 2)
        wanted = naive_clip(joints[n], cut, count - 2 * cut, None, stream, layout)
        np.testing.assert_allclose(batch[n].numpy(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stream", ["joint", "bone", "motion"])
@pytest.mark.parametrize("turned", [False, True])
def test_missing_joints_are_zero_in_every_stream(tmp_path, stream, turned):
    """A hand is missing in frames 10 to 19, the chest, which is the origin and a parent, in 30 to 34, a body in 5 to 8."""
    (joints,) = random_joints((60,), 2, STICK)
    joints -= joints[0, 0, 1]
    whole = joints.copy()
    joints[10:20, 0, 3] = joints[30:35, 0, 1] = joints[5:9, 1] = 0
    config = InputConfig(stream=stream, frames=60, augmentation=Augmentation(test_window=1.0))
    made, full = (
        clips_of(write_packed(tmp_path / name, [clip]), config) for name, clip in (("gaps", joints), ("full", whole))
    )
    draws = AugmentationDraws(torch.ones(1), torch.zeros(1), torch.full((1, 3), 0.3 if turned else 0.0))
    clip, other = (c.train(torch.tensor([0]), draws)[0].numpy() for c in (made, full))
    gone = np.zeros((60, 5), bool)
    gone[10:20, 3] = gone[30:35, 1] = True
    if stream == "bone":
        gone[30:35, [0, 2, 3]] = True  # their parent
    elif stream == "motion":
        gone[9, 3] = gone[29, 1] = True
    assert not clip[:, gone, 0].any()
    np.testing.assert_array_equal(clip[:, ~gone, 0], other[:, ~gone, 0])
    there = np.r_[0:4, 10:60]  # a body that comes and goes is as ever
    np.testing.assert_array_equal(clip[:, there, :, 1], other[:, there, :, 1])


def test_frames_between_a_missing_and_a_seen_joint_lack_it(tmp_path):
    (joints,) = random_joints((12,), 1, STICK)
    joints[4:6, 0, 3] = 0
    config = InputConfig(frames=31, augmentation=Augmentation(test_window=1.0))
    clip = clips_of(write_packed(tmp_path / "packed", [joints]), config).test(torch.tensor([0]))[0, :, :, 3, 0].numpy()
    centres = ((np.arange(31) + 0.5) * 12 / 31 - 0.5).clip(0, 11)
    lacks = np.isin(np.floor(centres), (4, 5)) | (np.isin(np.ceil(centres), (4, 5)))
    assert (~clip.any(axis=0)).tolist() == lacks.tolist()


def test_sets_that_are_known_to_have_no_gaps_are_not_searched(tmp_path, monkeypatch):
    folder = write_packed(tmp_path / "packed", random_joints(LENGTHS, 2, STICK))
    looked = []
    monkeypatch.setattr("c2vl_training.clips.missing_joints", lambda *_: looked.append(1) or np.zeros((1, 2, 5), bool))
    clips_of(folder, InputConfig())
    assert len(looked) == len(LENGTHS)
    text = (folder / "packed.json").read_text()
    (folder / "packed.json").write_text(text.replace('"gaps":true', '"gaps":false'))
    clips_of(folder, InputConfig())
    assert len(looked) == len(LENGTHS)


def test_the_fields_test_window_is_cut_alike_for_every_length_up_to_300(tmp_path):
    ramps = [np.arange(n, dtype=np.float32).reshape(-1, 1, 1, 1).repeat(2, axis=3) for n in range(1, 301)]
    point = Layout("point", ("all",), (0,), 2)
    clips = clips_of(write_packed(tmp_path / "packed", ramps, layout=point), InputConfig(frames=T))
    batch = clips.test(torch.arange(300))[:, 0, :, 0, 0].numpy()
    for n, found in enumerate(batch, start=1):
        cut = int((1 - 0.95) * n / 2)
        wanted = naive_resize(ramps[n - 1][cut : n - cut], T)[:, 0, 0, 0]
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("frames", [50, 64])
def test_long_clips_match_a_reference_in_double_precision_to_1e_5(tmp_path, frames):
    lengths = (1, 20, 64, 65, 127, 211, 299, 300, 2, 1)  # one frame at the very end of the store
    joints = [np.random.default_rng(n).normal(size=(n, 2, 5, 3)).astype(np.float32) for n in lengths]
    config = InputConfig(frames=frames)
    clips = clips_of(write_packed(tmp_path / "packed", joints), config)
    draws = draw(len(lengths), config, torch.Generator().manual_seed(1))
    batch = clips.train(torch.arange(len(lengths)), draws)
    for n, count in enumerate(lengths):
        length = min(max(int(draws.window[n].item() * count), frames), count)
        start = int(draws.start[n].item() * (count - length + 1))
        wanted = naive_clip(joints[n], start, length, draws.angles[n].tolist(), "joint", STICK, frames)
        assert np.abs(batch[n].numpy() - wanted).max() < 1e-5


@pytest.mark.parametrize(
    ("share", "where", "first", "last"), [(1.0, 0.99, 0, 39), (0.5, 0.0, 0, 19), (0.5, 1 - 2**-24, 20, 39)]
)
def test_windows_reach_both_ends_of_a_sample_and_never_beyond(tmp_path, share, where, first, last):
    ramp = np.arange(40, dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones((1, 1, 5, 3), np.float32)
    clips = clips_of(write_packed(tmp_path / "packed", [ramp, 1000 + ramp]), InputConfig(frames=40))
    config = InputConfig(frames=4)
    clips.config = config
    draws = AugmentationDraws(torch.tensor([share]), torch.tensor([where]), torch.zeros(1, 3))
    values = clips.train(torch.tensor([0]), draws)[0, 0, :, 0, 0]
    length = last - first + 1
    assert values[0].item() == pytest.approx(first + length / 8 - 0.5)
    assert values[-1].item() == pytest.approx(last - length / 8 + 0.5)


def test_empty_second_bodies_stay_zero_in_every_stream(tmp_path):
    joints = random_joints(LENGTHS, 2, STICK)
    for clip in joints:
        clip[:, 1] = 0
    folder = write_packed(tmp_path / "packed", joints)
    for stream in ("joint", "bone", "motion"):
        config = InputConfig(stream=stream, frames=T)
        draws = draw(len(LENGTHS), config, torch.Generator().manual_seed(0))
        batch = clips_of(folder, config).train(torch.arange(len(LENGTHS)), draws)
        assert (batch[..., 1] == 0).all()
        assert (batch[3:, ..., 0] != 0).any()


# ------------------------------------------------------------------------------------------------- draws


def test_rotations_are_proper_and_turn_about_x_then_y_then_z():
    angles = 2 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    R = rotations(angles)
    identity = torch.eye(3, dtype=torch.float64).expand(50, 3, 3)
    torch.testing.assert_close(R @ R.transpose(1, 2), identity)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(50, dtype=torch.float64))
    np.testing.assert_allclose(R.numpy(), Rotation.from_euler("xyz", angles.numpy()).as_matrix(), atol=1e-12)


def test_draws_are_uniform_over_their_ranges():
    draws = draw(4000, InputConfig(), torch.Generator().manual_seed(0))
    for values, low, high in ((draws.window, 0.5, 1.0), (draws.start, 0.0, 1.0), (draws.angles, -0.3, 0.3)):
        assert low <= values.min().item() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max().item() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.02)
    assert draws.start.max().item() < 1


def epoch_of(clips: Clips, seed: int, epoch: int) -> tuple[torch.Tensor, AugmentationDraws]:
    """The order and the draws of an epoch, as the trainer makes them."""
    generator = _generator(seed, epoch)
    return torch.randperm(len(clips), generator=generator), draw(len(clips), clips.config, generator)


def test_draws_never_repeat_between_seeds_epochs_places_or_workers(tmp_path):
    clips = clips_of(write_packed(tmp_path / "packed", random_joints([30] * 64, 1, STICK)), InputConfig())
    seen = []
    for seed in range(3):
        for epoch in range(5):
            _, draws = epoch_of(clips, seed, epoch)
            for worker in range(4):  # each takes its part of the epoch, as a process of several would
                part = draws.take(slice(worker * 16, (worker + 1) * 16))
                seen += torch.cat([part.window[:, None], part.start[:, None], part.angles], dim=1).tolist()
    assert len(seen) == len({tuple(row) for row in seen}) == 3 * 5 * 64
    angles = [row[2] for row in seen]
    assert len(set(angles)) > 0.999 * len(angles)  # 24 bits: a collision is luck, a repeated stream is not


def test_the_same_seed_gives_the_same_batches_whatever_the_batch_size(tmp_path):
    folder = write_packed(tmp_path / "packed", random_joints([10, 20, 30, 40] * 8, 2, STICK))
    config = InputConfig(frames=T)

    def batches(seed: int, epoch: int, size: int) -> torch.Tensor:
        clips = clips_of(folder, config)
        order, draws = epoch_of(clips, seed, epoch)
        places = [slice(at, at + size) for at in range(0, len(clips), size)]
        return torch.cat([clips.train(order[at], draws.take(at)) for at in places])

    first = batches(1, 2, 8)
    assert torch.equal(first, batches(1, 2, 8))
    assert torch.equal(first, batches(1, 2, 16))
    assert not torch.equal(first, batches(1, 3, 8))
    assert not torch.equal(first, batches(2, 2, 8))
