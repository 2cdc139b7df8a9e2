"""Features of a frozen encoder: values, cache, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import extract
from c2vl_evaluation.protocols import knn, linear
from c2vl_manifests.errors import CheckpointError, DataError
from c2vl_training import checkpoint
from c2vl_training.clips import Clips
from c2vl_training.dataset import PackedDataset
from c2vl_training.trainer import train
from support.evaluation import evaluated, table_lines
from support.packed import COUNT, STICK, sticks, write_packed
from support.training import StoppedError, run, stop_after


def cache(folder: Path, split: str = "train") -> Path:
    return folder / "features" / f"xsub-{split}.safetensors"


def test_features_are_those_of_the_frozen_encoder_on_central_windows(data, floor):
    loaded = checkpoint.load_encoder(floor, torch.device("cpu"))
    found = extract(floor, data, "xsub", "test", "cpu", batch_size=3)
    assert found.rows.tolist() == [0, 4, 8, 12]
    assert data.sample_ids(found.rows) == ["s00", "s04", "s08", "s12"]
    assert found.labels.tolist() == [0, 1, 2, 0]
    clips = Clips(data, found.rows, loaded.input, torch.device("cpu"))
    with torch.no_grad():
        for place in range(4):
            wanted = loaded.module(clips.test(torch.tensor([place])))[0].numpy()
            np.testing.assert_allclose(found.values[place], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stream", ["bone", "motion"])
def test_a_run_is_evaluated_on_its_own_stream(data, tmp_path, stream):
    train(run(data.folder, tmp_path / "own", f"training.input.stream={stream}", kind="random"))
    loaded = checkpoint.load_encoder(tmp_path / "own", torch.device("cpu"))
    found = extract(tmp_path / "own", data, "xsub", "test", "cpu")
    for name in ("joint", stream):
        config = loaded.input.model_copy(update={"stream": name})
        clips = Clips(data, found.rows, config, torch.device("cpu")).test(torch.arange(4))
        with torch.no_grad():
            wanted = loaded.module(clips).numpy()
        assert np.allclose(found.values, wanted, rtol=1e-4, atol=1e-6) == (name == stream)


def test_features_are_cached(data, floor):
    first = extract(floor, data, "xsub", "train")
    stamp = cache(floor).stat().st_mtime_ns
    again = extract(floor, data, "xsub", "train")
    assert cache(floor).stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(first.values, again.values)


def test_other_weights_are_encoded_anew(data, floor):
    first = extract(floor, data, "xsub", "train").values
    found, facts = checkpoint.load(floor / checkpoint.ENCODER)
    changed = {k: v + 0.1 if v.is_floating_point() else v for k, v in found.items()}
    checkpoint.save(floor / checkpoint.ENCODER, changed, facts)
    assert not np.allclose(extract(floor, data, "xsub", "train").values, first)
    checkpoint.save(floor / checkpoint.ENCODER, found, facts)
    np.testing.assert_array_equal(extract(floor, data, "xsub", "train").values, first)


def test_other_data_are_encoded_anew(data, floor, tmp_path):
    first = extract(floor, data, "xsub", "train").values
    rng = np.random.default_rng(7)
    joints = [rng.normal(size=(9, 1, 5, 3)) for _ in range(COUNT)]
    folder = sticks(tmp_path / "other", joints=joints)
    text = (folder / "packed.json").read_text()
    (folder / "packed.json").write_text(text.replace("f" * 32, "e" * 32))
    other = extract(floor, PackedDataset(folder), "xsub", "train").values
    assert other.shape == first.shape
    assert not np.allclose(other, first)
    np.testing.assert_array_equal(extract(floor, data, "xsub", "train").values, first)


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_cache_is_made_again(data, floor, damage):
    first = extract(floor, data, "xsub", "train").values
    path = cache(floor)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello" * 50}[damage])
    np.testing.assert_array_equal(extract(floor, data, "xsub", "train").values, first)
    assert path.read_bytes() == whole


def spoil(folder: Path, value: float) -> None:
    """Set a weight of an encoder."""
    found, facts = checkpoint.load(folder / checkpoint.ENCODER)
    name = next(name for name, tensor in found.items() if name.endswith("weight") and tensor.ndim > 1)
    found[name] = torch.full_like(found[name], value)
    checkpoint.save(folder / checkpoint.ENCODER, found, facts)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, r"encoder\.safetensors holds weights that are NaN or infinite, expected finite numbers"),
        (3e38, r"floor: of its train features of xsub, \d+ of 12 are NaN or infinite, expected finite numbers"),
    ],
)
@pytest.mark.parametrize("protocol", [knn, linear])
def test_an_encoder_that_diverged_is_refused_and_nothing_is_kept(data, floor, value, said, protocol):
    spoil(floor, value)
    with pytest.raises(CheckpointError, match=f"{said}.*; train it again with a lower learning rate") as caught:
        evaluated(protocol, EvalContext(floor, data, "xsub", table_lines()[0].recipe, 0))
    assert "\n" not in str(caught.value)
    assert not (floor / "features").exists()
    assert not (floor / "evaluations").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda values: torch.full_like(values, np.nan),
        lambda values: torch.tensor(1.0),
        lambda values: values[:, None],
        lambda values: values[:, :1].contiguous(),
        torch.Tensor.bfloat16,
        torch.Tensor.int,
    ],
)
def test_cached_features_that_are_none_are_made_again(data, floor, change):
    from safetensors import safe_open
    from safetensors.torch import save_file

    first = extract(floor, data, "xsub", "train").values
    with safe_open(cache(floor), framework="np") as handle:
        told = handle.metadata()
    save_file({"features": change(torch.from_numpy(first.copy()))}, cache(floor), told)
    np.testing.assert_array_equal(extract(floor, data, "xsub", "train").values, first)


def test_unlabelled_samples_are_refused_naming_the_first(floor, tmp_path):
    packed = PackedDataset(sticks(tmp_path / "packed", labels=[-1 if n in {4, 8} else 0 for n in range(COUNT)]))
    with pytest.raises(
        DataError, match=r"2 of 4 test samples of xsub have no label \(first: s04\); evaluation needs all of them"
    ):
        extract(floor, packed, "xsub", "test")


def test_an_unfinished_run_says_to_finish_it(data, tmp_path):
    with pytest.raises(StoppedError):
        train(run(data.folder, tmp_path / "run"), stop_after(1))
    with pytest.raises(
        CheckpointError, match="run is an unfinished run; run the same c2vl-train command again to finish it"
    ):
        extract(tmp_path / "run", data, "xsub", "train")
    with pytest.raises(
        CheckpointError, match=r"encoder\.safetensors does not exist; give the folder of a finished run"
    ):
        extract(tmp_path / "nowhere", data, "xsub", "train")


def test_data_of_another_joint_layout_are_refused_naming_both(floor, tmp_path):
    layout = type(STICK)("kite", ("hip", "chest", "tail"), (1, 1, 0))
    joints = [np.zeros((5, 1, 3, 3))] * 4
    packed = PackedDataset(write_packed(tmp_path / "packed", joints, layout=layout))
    with pytest.raises(
        CheckpointError,
        match=r"was trained on the joints of layout 'stick' \(5\), .*packed holds 'kite' \(3\); use data of the same layout",
    ):
        extract(floor, packed, "xsub", "train")
