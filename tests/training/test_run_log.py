"""Logs of a run: histograms and TensorBoard."""

from __future__ import annotations

import numpy as np
import pytest

from c2vl_manifests.errors import DataError
from c2vl_training.run_log import BINS, read_histograms, read_metrics
from c2vl_training.trainer import train
from support.training import StoppedError, run, stop_after


def test_histograms_count_every_pair_and_every_non_pair_of_an_epoch(data, tmp_path):
    train(run(data, tmp_path / "run"))
    lines = read_histograms(tmp_path / "run")
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        assert (line["low"], line["high"]) == (-1.0, 1.0)
        for kind in ("vision", "language"):
            assert len(line[f"{kind}/positive"]) == len(line[f"{kind}/negative"]) == BINS
            assert sum(line[f"{kind}/positive"]) == 2 * 5  # two batches of five
            assert sum(line[f"{kind}/negative"]) == 2 * 5 * 4


def test_histograms_lie_where_the_mean_similarities_are(data, tmp_path):
    train(run(data, tmp_path / "run"))
    middles = (np.arange(BINS) + 0.5) * 2 / BINS - 1
    for line, said in zip(read_histograms(tmp_path / "run"), read_metrics(tmp_path / "run"), strict=True):
        for name in ("vision/positive", "vision/negative", "language/positive", "language/negative"):
            assert np.average(middles, weights=line[name]) == pytest.approx(said[name], abs=1 / BINS)


@pytest.mark.slow
def test_histograms_of_long_runs_are_few(data, tmp_path):
    train(run(data, tmp_path / "run", "training.pretrain.epochs=45"))
    epochs = [line["epoch"] for line in read_histograms(tmp_path / "run")]
    assert epochs[0] == 0
    assert epochs[-1] == 44
    assert len(epochs) <= 13


def test_tensorboard_reads_what_a_resumed_run_wrote(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(run(data, out, "training.checkpoint_every=2"), stop_after(3))
    train(run(data, out, "training.checkpoint_every=2"))
    board = EventAccumulator(str(out / "tensorboard"), size_guidance={"histograms": 0})
    board.Reload()
    said = board.Scalars("loss")
    assert [event.step for event in said] == [0, 1, 2, 3]
    assert [event.value for event in said] == pytest.approx([line["loss"] for line in read_metrics(out)])
    assert [event.step for event in board.Histograms("similarity/vision/positive")] == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["link", "hard link", "link to nothing"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "histograms.jsonl"])
def test_a_log_that_is_a_link_is_not_written_through(data, tmp_path, name, kind):
    out, precious = tmp_path / "run", tmp_path / "precious"
    out.mkdir()
    precious.write_text('{"epoch": 0, "loss": 1.0}\n')
    if kind == "link to nothing":
        (out / name).symlink_to(tmp_path / "new")
        with pytest.raises(DataError, match="a symbolic link, expected a file of its own; remove it"):
            train(run(data, out))
    else:
        ((out / name).symlink_to if kind == "link" else (out / name).hardlink_to)(precious)
        train(run(data, out))
        assert [line["epoch"] for line in read_metrics(out)] == [0, 1, 2, 3]
    assert precious.read_text() == '{"epoch": 0, "loss": 1.0}\n'
    assert not (tmp_path / "new").exists()
