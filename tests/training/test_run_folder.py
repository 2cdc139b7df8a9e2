"""Run folders: finished runs, changed configurations, recorded facts."""

from __future__ import annotations

import csv
import json
from importlib.metadata import version

import numpy as np
import pytest

from c2vl_manifests.errors import CheckpointError
from c2vl_manifests.events import Event, Note
from c2vl_training import trainer
from c2vl_training.run_folder import rows_trained_on
from c2vl_training.trainer import train
from support.packed import COUNT, moving, sticks
from support.training import StoppedError, recipe, run, stop_after


def test_a_finished_run_is_returned_untouched(data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    first = train(run(data, out))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir() if path.is_file()}
    monkeypatch.setattr(trainer, "fit", lambda *_: pytest.fail("trained again"))
    again = train(run(data, out))
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before}
    assert (again.epochs, again.samples, again.left_out, again.last) == (4, 12, 0, first.last)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"kind": "supervised"}, "kind is 'pretrain' there and 'supervised' here"),
        ({"set": "training.pretrain.targets=hard"}, "config.targets.kind is 'partition' there and 'hard' here"),
        ({"set": "training.pretrain.epochs=9"}, "config.epochs is 4 there and 9 here"),
        ({"set": "training.input.frames=9"}, "input.frames is 8 there and 9 here"),
    ],
)
def test_another_configuration_is_refused_naming_the_first_difference(data, tmp_path, finished, change, said):
    out = tmp_path / "run"
    if finished:
        train(run(data, out))
    else:
        with pytest.raises(StoppedError):
            train(run(data, out), stop_after(1))
    extra = [change["set"]] if "set" in change else []
    other = run(data, out, *extra, kind=change.get("kind", "pretrain"), seed=change.get("seed", 0))
    with pytest.raises(CheckpointError) as caught:
        train(other)
    assert str(caught.value).endswith(
        f"is of another run: {said}; choose another --out, or delete the folder to start over"
    )


def test_left_out_samples_are_counted_named_and_listed(tmp_path):
    joints = moving()
    joints[1] = joints[1][:0]
    vision_ok = np.ones((COUNT, 4), bool)
    vision_ok[2] = False
    folder = sticks(tmp_path / "packed", joints=joints, vision_ok=vision_ok, reasons={1: "file, lost"})
    notes: list[Event] = []
    out = tmp_path / "run"
    result = train(run(folder, out), notes.append)
    assert (result.samples, result.left_out) == (10, 2)
    warning = f"2 of 12 training samples are left out: see {out / 'left_out.csv'}"
    assert Note(warning, "warning") in notes
    with (out / "left_out.csv").open(newline="") as handle:
        assert list(csv.reader(handle)) == [
            ["sample_id", "reason"],
            ["s01", "missing_skeleton: file, lost"],
            ["s02", "no usable vision rows: nobody found in any frame"],
        ]
    facts = json.loads((out / "run.json").read_text())
    assert (facts["samples"], facts["left_out"]) == (10, 2)
    # who only listens misses less
    told = train(run(folder, tmp_path / "told", "training.pretrain.knowledge=language"))
    assert (told.samples, told.left_out) == (11, 1)


def test_run_json_says_what_was_run(data, tmp_path):
    result = train(run(data, tmp_path / "run", seed=5))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["kind"], facts["benchmark"], facts["seed"], facts["epochs"]) == ("pretrain", "xsub", 5, 4)
    assert facts["recipe_fingerprint"] == recipe().fingerprint()
    assert set(facts["data"]) == {"samples", "joints", "vision", "language"}
    assert facts["last"] == pytest.approx(result.last)
    assert facts["versions"]["torch"] == version("torch")


# ------------------------------------------------------------------------------ what a run has read of the data


KINDS = ("pretrain", "supervised", "random")
SPLITS = [{"xsub": "train" if n % 4 else "test"} for n in range(COUNT)]
SPARE = next(n for n in range(COUNT) if n % 4 == 0)
"""A test sample: no training reads it."""


def changed(tmp_path, kind, name="other", **more):
    return run(sticks(tmp_path / name / "packed", **more), tmp_path / "run", kind=kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "more",
    [
        {"splits": [one | {"x-other": "train"} for one in SPLITS]},
        {"joints": [clip + 1 if n == SPARE else clip for n, clip in enumerate(moving())]},
        {"labels": [2 if n == SPARE else n % 3 for n in range(COUNT)]},
        {"subjects": [None] * COUNT},
    ],
    ids=["split column", "test clip", "test label", "subjects"],
)
def test_a_finished_run_is_taken_although_what_it_did_not_read_changed(data, tmp_path, kind, more):
    first = train(run(data, tmp_path / "run", kind=kind))
    assert train(changed(tmp_path, kind, **more)) == first


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("pretrain", {"joints": [clip * 2 if n == 1 else clip for n, clip in enumerate(moving())]}, "the joints of"),
        ("pretrain", {"vision": np.ones((COUNT, 4, 6))}, "the vision of"),
        ("supervised", {"labels": [n % 2 for n in range(COUNT)]}, "the labels of"),
        ("random", {"splits": [{"xsub": "train"}] * COUNT}, "training samples are others now;"),
    ],
)
def test_what_it_read_is_named_where_it_changed(data, tmp_path, kind, more, said):
    train(run(data, tmp_path / "run", kind=kind))
    with pytest.raises(CheckpointError, match=said):
        train(changed(tmp_path, kind, **more))


def test_a_label_is_no_matter_to_a_pretraining_nor_a_vector_to_the_control(data, tmp_path):
    labels, vectors = {"labels": [(n + 1) % 3 for n in range(COUNT)]}, {"vision": np.ones((COUNT, 4, 6))}
    for kind, more in (("pretrain", labels), ("supervised", vectors)):
        facts = run(data, tmp_path, kind=kind).facts()
        assert changed(tmp_path, kind, name=kind, **more).facts() == facts


def trained_with(one) -> dict[str, object]:
    """What a finished run keeps of its data, as it is read again from a file."""
    return json.loads(json.dumps(one.trained_with(one.select())))


TRAINED = [n for n in range(COUNT) if n % 4]


@pytest.mark.parametrize(
    ("more", "rows"),
    [
        ({"splits": [{"xsub": "test" if n % 4 else "train"} for n in range(COUNT)]}, TRAINED),
        ({"joints": [clip * 2 if n % 2 else clip for n, clip in enumerate(moving())]}, TRAINED),
        ({"joints": [clip * 2 if n != 2 else clip for n, clip in enumerate(moving())]}, TRAINED),
        ({"joints": moving()[2:] + moving()[:2]}, None),
        ({"joints": moving(COUNT, 99)}, []),
        ({"labels": [2] * COUNT, "vision": np.ones((COUNT, 4, 6)), "splits": [{"other": "train"}] * COUNT}, TRAINED),
    ],
    ids=["splits", "some joints", "nearly all joints", "order", "other data", "the rest"],
)
def test_clips_that_a_run_was_trained_on_are_known_whatever_becomes_of_the_table(data, tmp_path, more, rows):
    facts = trained_with(run(data, tmp_path))
    seen = rows_trained_on(facts, changed(tmp_path, "pretrain", **more).packed).tolist()
    assert seen == rows if rows is not None else {(n - 2) % COUNT for n in TRAINED} <= set(seen)
    assert rows_trained_on({}, changed(tmp_path, "pretrain", "again", **more).packed).tolist() == []


def test_classes_that_sort_otherwise_after_a_correction_matter_only_while_a_classifier_is_trained(data, tmp_path):
    renumbered = {"labels": [(n + 1) % 3 for n in range(COUNT)]}
    with pytest.raises(StoppedError):
        train(run(data, tmp_path / "run", kind="supervised"), stop_after(1))
    with pytest.raises(CheckpointError, match="the class numbers of"):
        train(changed(tmp_path, "supervised", **renumbered))
    first = train(run(data, tmp_path / "run", kind="supervised"))
    assert train(changed(tmp_path, "supervised", name="again", **renumbered)) == first
