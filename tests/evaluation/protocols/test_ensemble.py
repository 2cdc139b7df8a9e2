"""Ensembles of streams."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from c2vl_evaluation.cache import Predictions
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.protocols import ensemble, finetuning, linear
from c2vl_manifests.errors import ConfigError, DataError
from c2vl_training.dataset import PackedDataset
from c2vl_training.trainer import train
from support.evaluation import evaluated, logits, outcomes, told
from support.training import run


def said(values: Iterable[Iterable[float]], names: str = "abc") -> Predictions:
    scores = np.array(list(values), np.float32)
    return Predictions(list(names), np.zeros(len(scores), np.int64), scores.argmax(axis=1), scores)


def test_scores_are_added_by_weight():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 3, 4)).astype(np.float32)
    parts = dict(zip(ensemble.STREAMS, map(said, values), strict=True))
    found = ensemble.add(parts, {"joint": 0.6, "bone": 0.6, "motion": 0.4})
    wanted = 0.6 * values[0] + 0.6 * values[1] + 0.4 * values[2]
    np.testing.assert_allclose(found.scores, wanted, rtol=1e-5, atol=1e-6)
    assert found.answers.tolist() == wanted.argmax(axis=1).tolist()


def test_streams_of_other_samples_are_not_added():
    parts = {"joint": said(np.eye(3)), "bone": said(np.eye(3), "abd")}
    with pytest.raises(DataError, match="the joint and the bone stream answered other test samples"):
        ensemble.add(parts, {"joint": 1, "bone": 1})


@pytest.fixture
def streams(subject: EvalContext, data: PackedDataset, tmp_path: Path) -> list[EvalContext]:
    found = [subject]
    for stream in ("bone", "motion"):
        train(run(data.folder, tmp_path / stream, f"training.input.stream={stream}", kind="random"))
        found.append(replace(subject, run=tmp_path / stream))
    return found


def test_three_streams_are_known_by_their_runs(streams):
    found = ensemble.joined(streams[::-1]).streams
    assert [found[stream].run for stream in ensemble.STREAMS] == [one.run for one in streams]
    with pytest.raises(ConfigError, match="are both of the bone stream; give one run of each of joint, bone, motion"):
        ensemble.joined([*streams, streams[1]])
    with pytest.raises(ConfigError, match=r"no run of the bone stream is given; .*input.stream=bone"):
        ensemble.joined([streams[0], streams[2]])


@pytest.mark.parametrize("protocol", ["linear", "finetune"])
def test_an_ensemble_is_the_sum_of_its_runs_with_both_weights(streams, protocol):
    some = [told(one, f"evaluation.ensemble.protocol=['{protocol}']") for one in streams]
    fixed, equal = outcomes(ensemble, ensemble.joined(some))
    each = [evaluated(linear, one) if protocol == "linear" else evaluated(finetuning, one) for one in some]
    parts = np.stack([logits(one) for one in each])
    np.testing.assert_allclose(logits(equal), parts.sum(axis=0), rtol=1e-5, atol=1e-6)
    wanted = np.tensordot([0.6, 0.6, 0.4], parts, axes=1)
    np.testing.assert_allclose(logits(fixed), wanted, rtol=1e-5, atol=1e-6)
    assert [o.result.setting for o in (fixed, equal)] == [f"{protocol}, 0.6/0.6/0.4", f"{protocol}, equal weights"]
    assert fixed.result.best is None  # no epoch is chosen


def test_another_stream_makes_another_ensemble(streams, data, tmp_path, monkeypatch):
    by = ensemble.joined(streams)
    first = [o.result for o in outcomes(ensemble, by)]
    with monkeypatch.context() as closed:
        closed.setattr(ensemble, "add", None)
        assert [o.result for o in outcomes(ensemble, by)] == first
    train(run(data.folder, tmp_path / "other", "training.input.stream=bone", kind="random", seed=3))
    changed = replace(by, streams={**by.streams, "bone": replace(by.streams["bone"], run=tmp_path / "other")})
    calls = []
    real = ensemble.add
    monkeypatch.setattr(ensemble, "add", lambda *a: calls.append(a) or real(*a))
    list(outcomes(ensemble, changed))
    assert len(calls) == 2
