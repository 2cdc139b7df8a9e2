"""Packed arrays to batches: the batched augmentation against one sample at a time, selection and pooling against loops."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional as F

from c2vl_manifests.errors import ConfigError, DataError, StageError
from c2vl_manifests.layouts import Layout
from c2vl_manifests.packed import PackedManifest
from c2vl_manifests.recipe import Augmentation, InputConfig, PretrainConfig
from c2vl_pipeline.stages.pack import INDEX
from c2vl_training.augmentation import Draws, draw, rotations
from c2vl_training.dataset import Clips, Packed, resident
from c2vl_training.knowledge import Knowledge
from c2vl_training.methods import generator_of as _generator

STICK = Layout("stick", ("hip", "chest", "head", "hand", "foot"), (1, 1, 1, 1, 0))
FLAT = Layout("flat", STICK.names, STICK.parents, 2)
T = 8
LENGTHS = (1, 2, 5, 7, 8, 9, 13, 16, 40)
CPU = torch.device("cpu")
DEVICES = [
    pytest.param(
        torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


def write_packed(
    folder: Path,
    joints: Sequence[np.ndarray],
    *,
    layout: Layout = STICK,
    vision: np.ndarray | None = None,
    language: np.ndarray | None = None,
    vision_ok: np.ndarray | None = None,
    language_ok: np.ndarray | None = None,
    labels: Sequence[int] | None = None,
    subjects: Sequence[int | None] | None = None,
    splits: Sequence[dict[str, str]] | None = None,
    reasons: dict[int, str] | None = None,
) -> Path:
    """Write what `c2vl-pipeline pack` writes, from arrays: joints[n] is (T, M, V, C) here, planar on disk."""
    folder.mkdir(parents=True)
    count = len(joints)
    rng = np.random.default_rng(0)
    vision = rng.normal(size=(count, 4, 6)) if vision is None else vision
    language = rng.normal(size=(count, 4, 5)) if language is None else language
    ok = {
        "vision": np.ones(vision.shape[:2], bool) if vision_ok is None else vision_ok,
        "language": np.ones(language.shape[:2], bool) if language_ok is None else language_ok,
    }
    frames = [len(j) for j in joints]
    planes = np.concatenate(joints).astype(np.float32).transpose(0, 3, 1, 2)
    np.save(folder / "joints.npy", np.ascontiguousarray(planes))
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(frames)]).astype(np.int64))
    for name, vectors in (("vision", vision), ("language", language)):
        np.save(folder / f"{name}.npy", vectors.astype(np.float16))
        np.save(folder / f"{name}_ok.npy", ok[name])
    np.save(folder / "labels.npy", np.asarray(labels if labels is not None else [0] * count, np.int16))
    rows: list[dict[str, Any]] = [
        {
            "sample_id": f"s{n:02d}",
            "frames": frames[n],
            "skeleton_status": "ok" if frames[n] else "missing_skeleton",
            "vision_rows": int(ok["vision"][n].sum()),
            "language_rows": int(ok["language"][n].sum()),
            "reason": (reasons or {}).get(n),
            "subject": subjects[n] if subjects is not None else n,
            "view": 1,
            "splits": list((splits[n] if splits is not None else {"xsub": "train"}).items()),
        }
        for n in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), folder / "index.parquet")
    manifest = PackedManifest(
        dataset="synthetic",
        title="Sticks",
        fingerprint="f" * 32,
        layout={
            "name": layout.name,
            "names": layout.names,
            "parents": layout.parents,
            "dims": layout.dims,
        },
        classes=tuple(f"class {n}" for n in range(max(labels) + 1)) if labels is not None else ("class 0",),
        samples=count,
        frames=sum(frames),
        bodies=joints[0].shape[1],
        slots=vision.shape[1],
        vision_dim=vision.shape[2],
        language_dim=language.shape[2],
        engines={
            "crops": {"backend": "skeleton"},
            "captions": {"backend": "posecode", "derived_from": "joints"},
            "embeddings": {"backend": "classical"},
        },
        second_body="zeros",
    )
    (folder / "packed.json").write_text(manifest.model_dump_json())
    return folder


def random_joints(lengths: Sequence[int], bodies: int, layout: Layout, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(n, bodies, layout.joints, layout.dims)).astype(np.float32).cumsum(axis=0)
        for n in lengths
    ]


def clips_of(folder: Path, config: InputConfig) -> Clips:
    packed = Packed(folder)
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
                resized[:, m, v, c] = F.interpolate(series, size=frames, mode="linear", align_corners=False)[
                    0, 0
                ]
    return resized


def naive_clip(
    joints: np.ndarray,
    start: int,
    length: int,
    angles: Sequence[float] | None,
    stream: str,
    layout: Layout,
    frames: int = T,
) -> np.ndarray:
    clip = naive_resize(joints[start : start + length], frames)
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
def test_training_clips_match_a_per_sample_reference(tmp_path, stream, bodies, layout):
    joints = random_joints(LENGTHS, bodies, layout)
    config = InputConfig(stream=stream, frames=T, augmentation=Augmentation(rotation=1.5))
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
        wanted = naive_clip(joints[n], start, length, draws.angles[place].tolist(), stream, layout)
        np.testing.assert_allclose(batch[place].numpy(), wanted, atol=1e-5, rtol=1e-5)


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
    draws = Draws(torch.tensor([share]), torch.tensor([where]), torch.zeros(1, 3))
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


def epoch_of(clips: Clips, seed: int, epoch: int) -> tuple[torch.Tensor, Draws]:
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


# ------------------------------------------------------------------------------------------------- store


def test_on_a_cpu_the_mapped_file_itself_is_read(tmp_path):
    packed = Packed(write_packed(tmp_path / "packed", random_joints(LENGTHS, 2, STICK)))
    assert isinstance(packed.joints, np.memmap)
    clips = Clips(packed, np.array([3, 5]), InputConfig(), CPU)
    assert clips._planes.data_ptr() == packed.joints.ctypes.data


def test_resident_frames_are_those_of_the_rows_in_their_order(tmp_path):
    joints = random_joints(LENGTHS, 2, STICK)
    packed = Packed(write_packed(tmp_path / "packed", joints))
    rows = np.array([8, 0, 3, 3, 5])
    for at_once in (2, 1024):
        frames, first = resident(packed, rows, CPU, at_once)
        assert len(frames) == sum(LENGTHS[r] for r in rows)
        for place, r in enumerate(rows):
            found = frames[first[place] : first[place] + LENGTHS[r]].numpy()
            np.testing.assert_array_equal(found, joints[r].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("device", DEVICES)
def test_resident_clips_are_the_mapped_clips(tmp_path, device):
    packed = Packed(write_packed(tmp_path / "packed", random_joints(LENGTHS, 2, STICK)))
    rows, config = np.array([8, 0, 3, 5, 1, 2]), InputConfig(frames=T)
    mapped = Clips(packed, rows, config, CPU)
    held = Clips(packed, rows, config, device)
    at, draws = torch.arange(6), draw(6, config, torch.Generator().manual_seed(0))
    torch.testing.assert_close(held.test(at.to(device)).cpu(), mapped.test(at))
    torch.testing.assert_close(
        held.train(at.to(device), draws).cpu(), mapped.train(at, draws), atol=1e-5, rtol=0
    )


def test_sample_ids_are_those_of_the_rows(tmp_path):
    packed = Packed(write_packed(tmp_path / "packed", random_joints((5, 6, 7), 1, STICK)))
    assert packed.sample_ids(np.array([2, 0])) == ["s02", "s00"]


# -------------------------------------------------------------------------------------------- refusals


def test_a_folder_of_an_older_format_names_the_command(tmp_path):
    folder = write_packed(tmp_path / "work" / "packed", random_joints((5,), 1, STICK))
    facts = json.loads((folder / "packed.json").read_text())
    del facts["format"]
    (folder / "packed.json").write_text(json.dumps(facts))
    with pytest.raises(
        StageError,
        match=f"packed in format 1, expected 2; run `c2vl-pipeline pack --work {tmp_path / 'work'}` again",
    ):
        Packed(tmp_path / "work")


def test_the_work_folder_will_do_and_a_folder_without_arrays_names_the_command(tmp_path):
    write_packed(tmp_path / "work" / "packed", random_joints((5,), 1, STICK))
    assert Packed(tmp_path / "work").folder == tmp_path / "work" / "packed"
    with pytest.raises(
        StageError,
        match=f"other/packed holds no packed data; run `c2vl-pipeline pack --work {tmp_path / 'other'}` first",
    ):
        Packed(tmp_path / "other")


@pytest.mark.parametrize("name", ["offsets.npy", "joints.npy", "index.parquet"])
@pytest.mark.parametrize("damage", ["empty", "cut", "other", "absent"])
def test_damaged_arrays_are_refused_naming_the_file(tmp_path, name, damage):
    folder = write_packed(tmp_path / "packed", random_joints((30, 30), 1, STICK))
    path = folder / name
    if damage == "absent":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "other": b"not an array"}[damage])
    with pytest.raises(DataError, match=rf"{name}: cannot be read .*; run `c2vl-pipeline pack` again"):
        Packed(folder)


def test_arrays_of_another_shape_than_promised_are_refused(tmp_path):
    folder = write_packed(tmp_path / "packed", random_joints((5, 6), 1, STICK))
    np.save(folder / "offsets.npy", np.zeros(7, np.int64))
    with pytest.raises(DataError, match=r"offsets.npy: shape \(7,\), expected \(3,\)"):
        Packed(folder)
    write_packed(tmp_path / "more", random_joints((5, 6, 7), 1, STICK))
    (tmp_path / "more" / "index.parquet").replace(folder / "index.parquet")
    with pytest.raises(DataError, match=r"index\.parquet: 3 rows, expected 2"):
        Packed(folder)


# --------------------------------------------------------------------------------------------- select


@pytest.fixture
def mixed(tmp_path) -> Packed:
    """Ten samples: subjects 0 to 7 train, 8 and 9 test; s01 has no skeleton, s02 no crops, s09 no captions."""
    joints = random_joints([0 if n == 1 else 6 for n in range(10)], 1, STICK)
    vision_ok, language_ok = np.ones((10, 4), bool), np.ones((10, 4), bool)
    vision_ok[2] = language_ok[9] = False
    vision_ok[3, :3] = False
    splits = [{"xsub": "train" if n < 8 else "test", "a-val": "train"} for n in range(10)]
    return Packed(
        write_packed(
            tmp_path / "packed",
            joints,
            vision_ok=vision_ok,
            language_ok=language_ok,
            splits=splits,
            reasons={1: "file lost", 9: "model spoke nonsense"},
        )
    )


def test_select_returns_the_rows_of_a_split_and_why_others_are_left_out(mixed):
    plain = mixed.select("xsub", "train")
    assert plain.rows.tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert plain.left_out == (("s01", "missing_skeleton: file lost"),)
    seen = mixed.select("xsub", "train", ("vision",))
    assert seen.rows.tolist() == [0, 3, 4, 5, 6, 7]
    assert seen.left_out[1] == ("s02", "no usable vision rows: nobody found in any frame")
    told = mixed.select("xsub", "test", ("vision", "language"))
    assert told.rows.tolist() == [8]
    assert told.left_out == (("s09", "no usable language rows: model spoke nonsense"),)


def test_unknown_benchmark_names_the_known_ones(mixed):
    with pytest.raises(
        ConfigError, match=r"Sticks has no benchmark 'xviw'; it has a-val, xsub \(and each as <name>-val\)"
    ):
        mixed.select("xviw", "train")


def test_val_holds_out_only_training_subjects(mixed):
    train, test = (mixed.select("xsub-val", split).rows.tolist() for split in ("train", "test"))
    assert train == [0, 2, 3, 4, 5]
    assert test == [6, 7]  # a quarter of eight subjects, the last ones
    assert not {*train, *test} & {*mixed.select("xsub", "test").rows.tolist()}


def test_a_benchmark_may_itself_end_in_val(mixed):
    assert mixed.select("a-val", "train").rows.tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9]


def test_val_needs_two_subjects(tmp_path):
    joints = random_joints((5, 5), 1, STICK)
    packed = Packed(write_packed(tmp_path / "packed", joints, subjects=[None, 4]))
    with pytest.raises(
        ConfigError,
        match="'xsub-val' holds out subjects of the training split, which names 1; at least 2 are needed",
    ):
        packed.select("xsub-val", "train")


def test_nothing_usable_gives_the_first_reason(tmp_path):
    joints = random_joints((5, 0), 1, STICK)
    splits = [{"xsub": "train"}, {"xsub": "test"}]
    packed = Packed(write_packed(tmp_path / "packed", joints, splits=splits))
    with pytest.raises(
        DataError,
        match="no usable test samples in xsub; the first was left out because of missing_skeleton: no skeleton",
    ):
        packed.select("xsub", "test")


# ------------------------------------------------------------------------------------------- knowledge

SLOTS, DIM = 10, 6


@pytest.fixture
def spoken(tmp_path) -> tuple[Packed, np.ndarray, np.ndarray]:
    """Seven samples of 10 slots, a third unusable and filled with numbers that must not matter."""
    rng = np.random.default_rng(5)
    vectors = (rng.normal(size=(7, SLOTS, DIM)) * rng.uniform(0.5, 20, size=(7, SLOTS, 1))).astype(np.float16)
    ok = rng.random((7, SLOTS)) > 0.3
    ok[2] = [True] + [False] * 9
    vectors[~ok] = np.where(rng.random(((~ok).sum(), 1)) > 0.5, np.nan, 1e4)
    folder = write_packed(tmp_path / "packed", random_joints([5] * 7, 1, STICK), vision=vectors, vision_ok=ok)
    return Packed(folder), vectors.astype(np.float64), ok


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def knowledge(packed: Packed, rows: Sequence[int], **config: Any) -> Knowledge:
    return Knowledge(packed, np.array(rows), "vision", PretrainConfig(**config))


def test_mean_pooling_matches_a_loop_over_usable_slots(spoken):
    packed, vectors, ok = spoken
    rows = [6, 0, 2, 3]
    found = knowledge(packed, rows, pooling="mean").epoch(torch.Generator())
    for place, n in enumerate(rows):
        wanted = unit(sum(unit(vectors[n, s]) for s in range(SLOTS) if ok[n, s]))
        np.testing.assert_allclose(found[place].numpy(), wanted, atol=1e-5)


def test_ordered_pooling_is_the_means_of_four_quarters_side_by_side(spoken):
    packed, vectors, ok = spoken
    source = knowledge(packed, range(7), pooling="ordered")
    found = source.epoch(torch.Generator())
    assert source.dim == found.shape[1] == 4 * DIM
    quarters = [(0, 1, 2), (3, 4, 5), (6, 7), (8, 9)]
    fell_back = 0
    for n in range(7):
        whole = unit(sum(unit(vectors[n, s]) for s in range(SLOTS) if ok[n, s]))
        for q, slots in enumerate(quarters):
            seen = [unit(vectors[n, s]) for s in slots if ok[n, s]]
            fell_back += not seen
            wanted = (unit(sum(seen)) if seen else whole) / 2
            np.testing.assert_allclose(found[n, q * DIM : (q + 1) * DIM].numpy(), wanted, atol=1e-5)
    assert fell_back >= 3
    torch.testing.assert_close(found.norm(dim=1), torch.ones(7))


def test_random_pooling_draws_every_usable_slot_and_no_other(spoken):
    packed, vectors, ok = spoken
    source = knowledge(packed, range(7), pooling="random")
    drawn: list[set[int]] = [set() for _ in range(7)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        found = source.epoch(generator).numpy()
        for n in range(7):
            slots = [
                s for s in range(SLOTS) if ok[n, s] and np.allclose(found[n], unit(vectors[n, s]), atol=1e-5)
            ]
            assert len(slots) == 1
            drawn[n].update(slots)
    assert drawn == [{s for s in range(SLOTS) if ok[n, s]} for n in range(7)]


def test_random_pooling_is_keyed_by_its_generator(spoken):
    source = knowledge(spoken[0], range(7), pooling="random")
    one, same, other = (source.epoch(torch.Generator().manual_seed(seed)) for seed in (4, 4, 5))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("pooling", ["mean", "ordered"])
def test_standardise_uses_the_given_rows_only(spoken, pooling):
    packed = spoken[0]
    rows = [0, 1, 4, 5]
    raw = knowledge(packed, rows, pooling=pooling).epoch(torch.Generator()).numpy().astype(np.float64)
    wanted = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    found = knowledge(packed, rows, pooling=pooling, standardise=True).epoch(torch.Generator())
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-3)


def test_standardise_of_random_pooling_uses_the_usable_slots_of_the_given_rows(spoken):
    packed, vectors, ok = spoken
    rows = [0, 1, 4, 5]
    pool = np.array([unit(vectors[n, s]) for n in rows for s in range(SLOTS) if ok[n, s]])
    found = knowledge(packed, rows, pooling="random", standardise=True).epoch(
        torch.Generator().manual_seed(1)
    )
    plain = knowledge(packed, rows, pooling="random").epoch(torch.Generator().manual_seed(1)).numpy()
    np.testing.assert_allclose(found.numpy(), (plain - pool.mean(axis=0)) / pool.std(axis=0), atol=1e-4)
