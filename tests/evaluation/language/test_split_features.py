"""Features of a zero-shot split, read as public zero-shot code reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from c2vl_evaluation.cache import weights_of
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import extract
from c2vl_evaluation.language.class_split import class_split
from c2vl_evaluation.language.split_features import write
from c2vl_manifests.errors import DataError
from c2vl_training.dataset import PackedDataset
from c2vl_training.trainer import train
from support.cli import Cli, refused
from support.evaluation import another
from support.packed import COUNT, sticks
from support.training import recipe, run

LABELS = np.array([n // 4 for n in range(COUNT)])
"""Four classes of one test and three training clips each."""


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> EvalContext:
    root = tmp_path_factory.mktemp("features")
    data = sticks(root / "packed", labels=LABELS.tolist())
    train(run(data, root / "floor", kind="random"))
    return EvalContext(root / "floor", PackedDataset(data), "xsub", recipe(), 0)


def as_synse_reads(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What the loaders of SynSE, SA-DVAE and TDSM open: three arrays by name and their labels as whole numbers."""
    path = str(folder)
    files = {"train": "train_label", "ztest": "z_label", "gtest": "g_label"}
    read = {name: (np.load(f"{path}/{name}.npy"), np.load(f"{path}/{label}.npy")) for name, label in files.items()}
    return {name: (x, np.array(y, dtype="int")) for name, (x, y) in read.items()}


def test_the_arrays_are_the_features_of_their_clips(subject, tmp_path):
    written = write(subject, class_split(subject.packed, ["class 1", "3"]), tmp_path / "out")
    read = as_synse_reads(tmp_path / "out")
    train_, test = (extract(subject.run, subject.packed, "xsub", split) for split in ("train", "test"))
    seen, new = ~np.isin(train_.labels, [1, 3]), np.isin(test.labels, [1, 3])
    for name, values, labels in (
        ("train", train_.values[seen], train_.labels[seen]),
        ("ztest", test.values[new], test.labels[new]),
        ("gtest", test.values, test.labels),
    ):
        assert read[name][0].dtype == np.float32
        np.testing.assert_array_equal(read[name][0], values)
        assert read[name][1].tolist() == labels.tolist()
    assert written.clips == {"train": 6, "ztest": 2, "gtest": 4}
    assert read["train"][0].shape[1] == written.dim


def test_class_numbers_find_their_text_and_their_part(subject, tmp_path):
    """The readers index texts by label, and map an answer back by the sorted unseen classes."""
    write(subject, class_split(subject.packed, ["3", "class 1"]), tmp_path)
    unseen, seen = np.load(tmp_path / "label_splits" / "ru2.npy"), np.load(tmp_path / "label_splits" / "rs2.npy")
    assert (np.sort(unseen).tolist(), seen.tolist()) == ([1, 3], [0, 2])
    read = as_synse_reads(tmp_path)
    assert set(read["ztest"][1]) == set(unseen.tolist())
    assert set(read["train"][1]) == set(seen.tolist())
    facts = json.loads((tmp_path / "features.json").read_text())
    assert [facts["classes"][n] for n in unseen] == facts["unseen"] == ["class 1", "class 3"]
    assert facts["encoder_sha256"] == weights_of(subject.run)
    assert (facts["split"], facts["kind"], facts["benchmark"]) == ("2/2 (own)", "random", "xsub")


def test_a_part_without_clips_is_refused(subject, tmp_path):
    def change(folder: Path) -> None:
        np.save(folder / "labels.npy", np.where(np.arange(COUNT) % 4, LABELS, 0).astype(np.int16))

    there = another(subject, tmp_path, change)
    with pytest.raises(DataError, match="no test clip is of an unseen class in xsub"):
        write(there, class_split(there.packed, ["1", "3"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_them_and_refuses_what_is_no_split(cli: Cli, subject, tmp_path):
    words = ("c2vl-eval", "features", "--run", subject.run, "--data", subject.packed.folder, "--recipe", "debug")
    said = cli(*words, "--split", "class 1", "--split", "2", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert "train 6 clips, ztest 2 clips, gtest 4 clips" in " ".join(said.out.split())
    assert len(as_synse_reads(tmp_path / "out")["gtest"][0]) == 4
    refused(cli(*words, "--split", "55/5", "--out", tmp_path / "no"), "'55/5' is no class of synthetic")
    assert not (tmp_path / "no").exists()
