"""Recognition of unseen classes, alone and among all: against loops in float64, and what is refused and said."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from c2vl_evaluation import cache, metrics
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.language import class_split as class_split_module
from c2vl_evaluation.language import shared_space, text_encoder, unseen
from c2vl_evaluation.language.class_prompts import class_means
from c2vl_evaluation.language.class_split import ClassSplit, class_split, clips_trained_on, published, training_note
from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import CheckpointError, ConfigError, DataError
from c2vl_training.dataset import PackedDataset
from c2vl_training.inference import load_joint_embedding
from c2vl_training.trainer import train
from support.cli import Cli, refused
from support.evaluation import another, manifest, spoken
from support.packed import moving
from support.training import recipe, run

NAMES = ["wave", "sit down", "kick", "clap", "jump", "throw"]
LABELS = [n // 4 % 6 for n in range(48)]
"""Two clips of four are test clips, so that every class has both."""
SPLITS = [{"xsub": "train" if n % 2 else "test"} for n in range(48)]
WORDS = ["clap", "1"]
UNSEEN = [1, 3]
KEY = "training.pretrain.exclude_classes"


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed data of six classes, 24 training and 24 test clips."""
    language = np.random.default_rng(3).normal(size=(48, 4, 5))
    folder = tmp_path_factory.mktemp("six") / "packed"
    spoken(folder, joints=moving(48), labels=LABELS, splits=SPLITS, language=language)
    manifest(folder, classes=NAMES)
    return folder


@pytest.fixture(scope="module")
def runs(six: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that saw all classes, and one that was trained without two."""
    root = tmp_path_factory.mktemp("runs")
    train(run(six, root / "all"))
    train(run(six, root / "without", f'{KEY}=["clap",1]'))
    return {name: root / name for name in ("all", "without")}


@pytest.fixture
def subject(six: Path, runs: dict[str, Path]) -> EvalContext:
    return EvalContext(runs["without"], PackedDataset(six), "xsub", recipe(), 0)


def cosines(subject: EvalContext, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the clips of a split to all class names, one at a time in float64, and their classes."""
    space, packed = load_joint_embedding(subject.run), subject.packed
    encoder = text_encoder.load(packed)
    targets = []
    for name in NAMES:
        vector = encoder.encode_texts([name]).vectors
        targets.append(space.knowledge("language", class_means(vector, [1]))[0])
    rows = packed.select("xsub", split).rows
    clips = []
    for row in rows:
        joints = packed.joints[packed.offsets[row] : packed.offsets[row + 1]].transpose(0, 2, 3, 1)
        clips.append(space.skeleton(joints))
    return np.array(clips, np.float64) @ np.array(targets, np.float64).T, packed.labels()[rows]


def naive(values: np.ndarray, labels: np.ndarray, new: list[int], constant: float) -> tuple[float, float, float]:
    """Seen and unseen accuracy and their harmonic mean, one clip at a time."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    for line, label in zip(values, labels, strict=True):
        scores = [float(value) - (0.0 if c in new else constant) for c, value in enumerate(line)]
        right[int(label) in new].append(max(range(len(scores)), key=lambda c: (scores[c], -c)) == label)
    seen, known = np.mean(right[False]), np.mean(right[True])
    return float(seen), float(known), float(2 * seen * known / (seen + known)) if seen + known else 0.0


# ------------------------------------------------------------------------------------------------ scores


def test_unseen_classes_alone_are_told_from_each_other_only(subject):
    found = unseen.evaluate(subject, WORDS)
    values, labels = cosines(subject, "test")
    rows = [n for n, label in enumerate(labels) if label in UNSEEN]
    right = [UNSEEN[int(values[n, UNSEEN].argmax())] == labels[n] for n in rows]
    assert found.last.top1 == pytest.approx(np.mean(right))
    recalls = [np.mean([r for r, n in zip(right, rows, strict=True) if labels[n] == c]) for c in UNSEEN]
    assert found.last.balanced == pytest.approx(np.mean(recalls))
    assert (found.test, found.unseen, found.last.top5) == (8, ("sit down", "clap"), None)
    assert found.chance == metrics.chance(2)
    assert "of 2 unseen classes were ever answered" in found.verdict()


def test_all_clips_among_all_classes_as_they_are_and_calibrated(subject):
    found = unseen.evaluate(subject, WORDS).generalised
    assert found is not None
    assert found.constant is not None
    assert found.calibrated is not None
    values, labels = cosines(subject, "test")
    for got, constant in ((found.plain, 0.0), (found.calibrated, found.constant)):
        assert (got.seen, got.unseen, got.harmonic) == pytest.approx(naive(values, labels, UNSEEN, constant))
    assert (found.test, found.calibrated_on) == (24, 16)
    assert found.chance.harmonic == pytest.approx(1 / 6)
    training, known = cosines(subject, "train")
    seen = [0, 2, 4, 5]
    kept = np.isin(known, seen)
    own = np.searchsorted(seen, known[kept])
    assert found.constant == pytest.approx(unseen.calibration(training[kept][:, seen], own, 2), abs=1e-5)


def test_the_stored_scores_are_the_calibrated_ones(subject):
    found = unseen.evaluate(subject, WORDS).generalised
    assert found is not None
    (path,) = (p for p in (subject.run / cache.FOLDER).glob("zeroshot-*.parquet") if cache.load(p).scores.shape[1] == 6)
    kept = cache.load(path)
    values, labels = cosines(subject, "test")
    values[:, [0, 2, 4, 5]] -= found.constant
    np.testing.assert_allclose(kept.scores, values, atol=1e-5)
    assert kept.labels.tolist() == labels.tolist()
    assert kept.answers.tolist() == values.argmax(axis=1).tolist()


def test_standardised_cosines_are_those_of_the_clips_that_are_recognised_together(subject):
    found = unseen.evaluate(subject, WORDS, standardise=True)
    values, labels = cosines(subject, "test")
    rows = np.isin(labels, UNSEEN)
    among = values[rows][:, UNSEEN]
    among = (among - among.mean(0)) / among.std(0)
    assert found.last.top1 == pytest.approx(np.mean(np.array(UNSEEN)[among.argmax(1)] == labels[rows]))
    assert found.generalised is not None
    every = (values - values.mean(0)) / values.std(0)
    got = found.generalised.plain
    assert (got.seen, got.unseen, got.harmonic) == pytest.approx(naive(every, labels, UNSEEN, 0.0))
    assert (found.standardised, found.temperature) == (True, 1.0)


def split_of(new: list[int], classes: int) -> ClassSplit:
    return ClassSplit((), "", np.array(new), classes, tuple(map(str, range(classes))))


@pytest.mark.parametrize("seed", range(5))
def test_generalised_accuracies_match_a_loop(seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % 7
    values = np.round(rng.normal(size=(60, 7)), 1)  # with ties
    values[np.arange(60), labels] += 1
    found = unseen.generalise(values, labels, split_of([2, 5], 7), 0.35, 9)
    assert found.calibrated is not None
    for got, constant in ((found.plain, 0.0), (found.calibrated, 0.35)):
        assert (got.seen, got.unseen, got.harmonic) == pytest.approx(naive(values, labels, [2, 5], constant))
        recalls = [
            np.mean((unseen.stacked(values, np.array([2, 5]), constant).argmax(1) == labels)[labels == c])
            for c in range(7)
        ]
        assert got.unseen_balanced == pytest.approx(np.mean([recalls[c] for c in (2, 5)]))
        assert got.seen_balanced == pytest.approx(np.mean([recalls[c] for c in (0, 1, 3, 4, 6)]))


def test_permuted_names_lose_what_the_names_gave():
    labels = np.repeat(np.arange(8), 30)
    values = np.eye(8)[labels]
    found = unseen.generalise(values, labels, split_of([1, 6], 8), 0.0, 0)
    assert (found.plain.seen, found.plain.unseen, found.plain.harmonic) == (1, 1, 1)
    assert found.shuffled.seen == pytest.approx(1 / 8, abs=0.04)
    assert found.shuffled.unseen == pytest.approx(1 / 8, abs=0.06)
    assert found.shuffled_std.seen > 0


def test_the_harmonic_mean_of_nothing_is_nothing():
    assert unseen.harmonic([0, 1, 0.5, 0], [0, 1, 0.25, 1]).tolist() == [0, 1, pytest.approx(1 / 3), 0]


# ------------------------------------------------------------------------------------------- calibration


def by_search(values: np.ndarray, labels: np.ndarray, played: list[list[int]], constants: np.ndarray) -> np.ndarray:
    """Mean harmonic mean under each constant, one clip, choice and constant at a time."""
    return np.array([np.mean([naive(values, labels, new, c)[2] for new in played]) for c in constants])


def test_the_constant_is_the_best_of_a_search_one_clip_at_a_time(monkeypatch):
    monkeypatch.setattr(unseen, "DRAWS", 3)
    rng = np.random.default_rng(1)
    labels = np.arange(96) % 12
    values = rng.normal(size=(96, 12))
    values[np.arange(96), labels] += 0.7
    found = unseen.calibration(values, labels, 2)
    draws = np.random.default_rng(0)
    played = [draws.choice(12, 2, replace=False).tolist() for _ in range(3)]
    grid = np.linspace(-3, 3, 121)
    reached = by_search(values, labels, played, np.array([found]))[0]
    assert reached >= by_search(values, labels, played, grid).max() - 0.005
    assert reached > by_search(values, labels, played, np.zeros(1))[0]
    assert found > 0  # two classes among ten lose more clips to the others than they take


def test_unseen_classes_are_never_put_at_a_disadvantage():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    assert min(unseen.calibration(rng.normal(size=(40, 4)), labels, 2) for _ in range(20)) == 0


def test_a_constant_that_changes_nothing_is_zero():
    labels = np.arange(12) % 4
    assert unseen.calibration(np.eye(4)[labels], labels, 2) == 0
    assert unseen.calibration(np.roll(np.eye(4), 1, axis=1)[labels], labels, 2) == 0  # nothing is ever right
    assert unseen.calibration(np.zeros((4, 2)), np.array([0, 1, 0, 1]), 5) == 0


def test_no_clip_of_an_unseen_class_and_no_test_clip_has_a_part_in_the_constant(subject, tmp_path):
    def change(folder: Path) -> None:
        joints, offsets = np.load(folder / "joints.npy"), np.load(folder / "offsets.npy")
        for n in range(48):
            if LABELS[n] in UNSEEN or n % 2 == 0:
                joints[offsets[n] : offsets[n + 1]] *= 1.5
        np.save(folder / "joints.npy", joints)

    first = unseen.evaluate(subject, WORDS).generalised
    there = another(subject, tmp_path, change)
    split, shared = class_split(there.packed, WORDS), shared_space.open_space(there)
    vectors, _ = shared.texts(NAMES)
    targets = shared.project(class_means(vectors, [1] * 6))
    (subject.run / "features" / "xsub-train.safetensors").unlink()  # its key holds the hashes of joints, which stay
    constant, clips = unseen._calibrated(shared, split, targets, standardise=False)
    (subject.run / "features" / "xsub-train.safetensors").unlink()
    assert first is not None
    assert (constant, clips) == (first.constant, 16)


# ----------------------------------------------------------------------------------- what a run has seen


def test_a_run_that_has_seen_the_unseen_classes_is_told_from_one_that_has_not(six, runs, subject, tmp_path):
    packed = subject.packed
    split = class_split(packed, WORDS)
    seen = EvalContext(runs["all"], packed, "xsub", recipe(), 0)
    assert (clips_trained_on(seen, split), clips_trained_on(subject, split)) == (8, 0)
    note = training_note(seen, split)
    assert "has seen 8 clips of the unseen classes, without their labels" in note
    assert note.endswith(f"""--set {KEY}='["clap","1"]'""")
    assert training_note(subject, split) == ""
    strangers = spoken(tmp_path / "strangers" / "packed", joints=moving(48, 9), labels=LABELS, splits=SPLITS)
    manifest(strangers, classes=NAMES)
    there = EvalContext(runs["all"], PackedDataset(strangers), "xsub", recipe(), 0)
    assert clips_trained_on(there, split) is None
    assert "is not known" in training_note(there, split)
    train(run(six, tmp_path / "ceiling", kind="supervised"))
    train(run(six, tmp_path / "floor", kind="random"))
    ceiling, floor = (EvalContext(tmp_path / name, packed, "xsub", recipe(), 0) for name in ("ceiling", "floor"))
    assert "8 clips of the unseen classes with their labels: this is no zero-shot result" in training_note(
        ceiling, split
    )
    assert training_note(floor, split) == ""


def test_published_figures_belong_to_splits_that_exist():
    held = [(name, split) for name in ("ntu60", "ntu120", "pku-mmd-1") for split in load_dataset(name).zero_shot]
    found = {place: published(place[0], "xsub", place[1]) for place in held}
    assert found["ntu60", "55/5"]["TDSM"] == pytest.approx(0.8649)
    assert [len(found[place]) for place in held] == [7, 3, 2, 7, 0, 0]
    assert (
        published("ntu60", "xview", "55/5") == published("ntu60", "xsub", "") == published("own", "xsub", "55/5") == {}
    )
    file = tomllib.loads(Path(class_split_module.__file__).with_name("published.toml").read_text("utf-8"))
    assert {work for splits in file["accuracies"].values() for works in splits.values() for work in works} == set(
        file["sources"]
    )
    assert {(name, split) for name, splits in file["accuracies"].items() for split in splits} <= set(held)


def test_the_name_of_a_split_is_found_from_its_classes():
    manifest = SimpleNamespace(dataset="ntu60", title="NTU", classes=load_dataset("ntu60").classes)
    packed = cast("PackedDataset", SimpleNamespace(manifest=manifest, labels=lambda: np.arange(60)))
    own = class_split(packed, ["57", "reading", "11", "19", "26"])
    assert (own.name, own.title) == ("", "55/5 (own)")
    assert class_split(packed, ["56", "reading", "11", "19", "26"]).name == class_split(packed, ["55/5"]).name == "55/5"


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wafe", "clap"], "'wafe' is no class of synthetic and no zero-shot split of it; did you mean 'wave'?"),
        (["clap"], "--split names 1 unseen class; name at least 2"),
        (["clap", "clap"], r"class 3 \('clap'\) is named twice"),
        (["0", "1", "2", "3", "4", "5"], "--split names all 6 classes of Sticks; leave seen ones"),
        (["55/5"], r"it is one of NTU RGB\+D 60"),
    ],
)
def test_splits_that_are_none_are_refused(subject, words, said):
    with pytest.raises(ConfigError, match=said):
        unseen.evaluate(subject, words)


def relabelled(subject: EvalContext, tmp_path: Path, new: dict[int, int], only_test: bool = True) -> EvalContext:
    def change(folder: Path) -> None:
        labels = [new.get(label, label) if n % 2 == 0 or not only_test else label for n, label in enumerate(LABELS)]
        np.save(folder / "labels.npy", np.array(labels, np.int16))

    return another(subject, tmp_path, change)


def test_classes_without_test_clips_are_said(subject, tmp_path):
    with pytest.raises(DataError, match=r"no test clip of xsub is of an unseen class \(sit down, clap\)"):
        unseen.evaluate(relabelled(subject, tmp_path / "a", {1: 0, 3: 0}), WORDS)
    one = unseen.evaluate(relabelled(subject, tmp_path / "b", {1: 0}), WORDS)
    assert "No test clip is of the unseen classes sit down; they can only be answered wrongly." in one.notes
    held = (subject.run / cache.FOLDER).glob
    before = {*held("zeroshot-*.parquet")}
    none = unseen.evaluate(relabelled(subject, tmp_path / "c", {0: 1, 2: 1, 4: 3, 5: 3}), WORDS)
    (path,) = {*held("zeroshot-*.parquet")} - before
    assert np.isin(cache.load(path).answers, UNSEEN).all()
    assert none.generalised is None
    assert "No test clip is of a seen class, so there is no generalised result." in none.notes


def test_without_labels_of_training_clips_there_is_no_calibration(subject, tmp_path):
    def forget(folder: Path) -> None:
        np.save(folder / "labels.npy", np.array([-1 if n % 2 else label for n, label in enumerate(LABELS)], np.int16))

    found = unseen.evaluate(another(subject, tmp_path, forget), WORDS)
    assert found.generalised is not None
    assert (found.generalised.calibrated, found.generalised.constant, found.generalised.calibrated_on) == (
        None,
        None,
        0,
    )
    assert any(note.startswith("Nothing could be calibrated") for note in found.notes)


def test_a_run_without_projectors_has_no_unseen_classes(six, tmp_path):
    train(run(six, tmp_path / "floor", kind="random"))
    with pytest.raises(CheckpointError, match="is a random run and has no projectors"):
        unseen.evaluate(EvalContext(tmp_path / "floor", PackedDataset(six), "xsub", recipe(), 0), WORDS)


# ----------------------------------------------------------------------------------------------- command


def test_the_command_shows_both_tables_and_warns_of_what_was_seen(cli: Cli, runs, six):
    words = ("c2vl-eval", "zeroshot", "--data", six, "--recipe", "debug", "--split", "clap", "--split", "sit down")
    said = cli(*words, "--run", runs["without"])
    assert said.code == 0, said.err
    text = " ".join(said.out.split())
    for part in (
        "Sticks, xsub, split 4/2 (own): zero-shot by the names of the classes, %, 8 test clips of 2 unseen classes",
        "generalised: 24 test clips among all 6 classes, 2 unseen classes, %",
        "harmonic",
        "names permuted",
        "unseen: sit down, clap",
        "chosen on 16 training clips of seen classes",
    ):
        assert part in text
    assert "has seen" not in said.out + said.err
    warned = cli(*words, "--run", runs["all"])
    assert warned.code == 0, warned.err
    assert "has seen 8 clips of the unseen classes, without their labels" in " ".join((warned.out + warned.err).split())
    refused(cli(*words[:6], "--split", "48/12", "--run", runs["all"]), "'48/12' is no class of synthetic")


def test_the_same_result_is_not_computed_twice(subject, monkeypatch):
    first = unseen.evaluate(subject, WORDS)
    monkeypatch.setattr(shared_space.SharedSpace, "texts", lambda *_: pytest.fail("encoded again"))
    assert unseen.evaluate(subject, ["sit down", "3"]) == first
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        unseen.evaluate(subject, ["wave", "clap"])
