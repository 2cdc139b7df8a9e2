"""Zero-shot recognition: against a loop, what texts are taken, which space is asked, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c2vl_evaluation import cache, metrics
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.language import class_prompts, shared_space, text_encoder, zeroshot
from c2vl_evaluation.results import Score
from c2vl_manifests.errors import CheckpointError, ConfigError, DataError
from c2vl_pipeline import engines
from c2vl_training import checkpoint
from c2vl_training.dataset import PackedDataset
from c2vl_training.inference import load_joint_embedding
from c2vl_training.trainer import train
from support.cli import Cli, refused
from support.evaluation import TwoEars, another, manifest, spoken
from support.packed import COUNT
from support.training import recipe, run


def naive(subject: EvalContext, texts: list[list[str]]) -> np.ndarray:
    """One clip and one text at a time, by the space's own methods."""
    space, packed = load_joint_embedding(subject.run), subject.packed
    encoder = text_encoder.load(packed)
    found = []
    for row in packed.select("xsub", "test").rows:
        joints = packed.joints[packed.offsets[row] : packed.offsets[row + 1]].transpose(0, 2, 3, 1)
        clip, line = space.skeleton(joints), []
        for of in texts:
            units = [v / np.linalg.norm(v) for v in (encoder.encode_texts([t]).vectors[0] for t in of)]
            mean = np.mean(units, axis=0)
            line.append(float(clip @ space.knowledge("language", mean[None] / np.linalg.norm(mean))[0]))
        found.append(line)
    return np.array(found)


# ---------------------------------------------------------------------------------------------- scores


def test_every_clip_gets_the_class_whose_name_is_nearest(subject):
    found = zeroshot.evaluate(subject)
    wanted = naive(subject, [["wave"], ["sit down"], ["kick"]])
    labels = subject.packed.labels()[subject.packed.select("xsub", "test").rows]
    assert found.last.top1 == pytest.approx((wanted.argmax(axis=1) == labels).mean())
    recalls = [(wanted[labels == c].argmax(axis=1) == c).mean() for c in np.unique(labels)]
    assert found.last.balanced == pytest.approx(np.mean(recalls))
    assert found.last.top5 is None  # of three classes
    assert (found.texts, found.classes, found.test, found.described) == (3, 3, 4, False)
    assert found.chance == metrics.chance(3)
    train_labels = subject.packed.labels()[subject.packed.select("xsub", "train").rows]
    assert found.majority == metrics.majority(train_labels, labels, 3)
    (path,) = (subject.run / cache.FOLDER).glob("zeroshot-*.parquet")
    kept = cache.load(path)
    np.testing.assert_allclose(kept.scores, wanted, atol=1e-5)
    assert kept.answers.tolist() == wanted.argmax(axis=1).tolist()
    assert kept.labels.tolist() == labels.tolist()


def test_standardised_cosines_favour_no_class(subject):
    values = naive(subject, [["wave"], ["sit down"], ["kick"]])
    plain, found = zeroshot.evaluate(subject), zeroshot.evaluate(subject, standardise=True)
    labels = subject.packed.labels()[subject.packed.select("xsub", "test").rows]
    wanted = (values - values.mean(axis=0)) / values.std(axis=0)
    assert found.last.top1 == pytest.approx((wanted.argmax(axis=1) == labels).mean())
    assert (plain.standardised, found.standardised, found.temperature) == (False, True, 1.0)
    kept = [cache.load(path) for path in (subject.run / cache.FOLDER).glob("zeroshot-*.parquet")]
    assert len(kept) == 2
    assert any(np.allclose(one.scores, wanted, atol=1e-4) for one in kept)


def test_a_class_at_one_cosine_to_all_clips_has_no_say():
    values = np.array([[0.5, 0.1], [0.5, 0.3]], np.float32)
    assert np.allclose(zeroshot.standardised(values), [[0, -1], [0, 1]])


@pytest.mark.parametrize("mode", ["fixed", "learnable", "raw"])
def test_probabilities_are_those_of_the_temperature_that_the_run_was_trained_with(data, tmp_path, mode):
    sets = (f"training.pretrain.temperature.mode={mode}", "training.pretrain.temperature.tau=0.2")
    train(run(data, tmp_path / "main", *sets))
    subject = EvalContext(tmp_path / "main", PackedDataset(data), "xsub", recipe(), 0)
    found = zeroshot.evaluate(subject)
    value = float(checkpoint.load(subject.run / checkpoint.PROJECTORS)[0]["scales.language.value"])
    wanted = 1 / value if mode == "raw" else math.exp(-value)
    assert found.temperature == pytest.approx(wanted, rel=1e-5)
    assert (found.temperature == pytest.approx(0.2, rel=1e-5)) == (mode == "fixed")
    (path,) = (subject.run / cache.FOLDER).glob("zeroshot-*.parquet")
    for row, line in zip(
        pq.read_table(path).to_pylist(), naive(subject, [["wave"], ["sit down"], ["kick"]]), strict=True
    ):
        assert row["scores"] == pytest.approx(line, abs=1e-5)  # cosines, whatever the temperature
        odds = [math.exp(cosine / wanted) for cosine in row["scores"]]
        assert row["probability"] == pytest.approx(max(odds) / sum(odds), rel=1e-4)
        assert row["top5"] == sorted(range(3), key=lambda c: -row["scores"][c])
        assert row["answer"] == row["top5"][0]


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_descriptions_of_a_class_are_averaged_after_normalisation(subject, tmp_path, suffix):
    told = {
        "kick": ["a leg is thrown forward", "the foot hits a ball"],
        "wave": "a raised hand goes left and right",
        "sit down": ["from standing to sitting", "the person takes a seat on a chair", "knees bend"],
    }
    path = tmp_path / f"texts.{suffix}"
    lines = "".join(f"{json.dumps(name)} = {json.dumps(texts)}\n" for name, texts in told.items())
    path.write_text(lines if suffix == "toml" else json.dumps(told))
    found = zeroshot.evaluate(subject, path)
    assert (found.texts, found.described) == (6, True)
    (kept,) = (subject.run / cache.FOLDER).glob("zeroshot-*.parquet")
    wanted = naive(subject, [[told["wave"]], told["sit down"], told["kick"]])
    np.testing.assert_allclose(cache.load(kept).scores, wanted, atol=1e-5)


def test_descriptions_count_alike_however_long_their_vectors_are():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 4))
    found = class_prompts.class_means(vectors * [[9], [1], [1], [0.1], [3], [1]], [2, 1, 3])
    np.testing.assert_allclose(found, class_prompts.class_means(vectors, [2, 1, 3]), atol=1e-6)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row, part in zip(found, (units[:2], units[2:3], units[3:]), strict=True):
        np.testing.assert_allclose(row, part.mean(0) / np.linalg.norm(part.mean(0)), atol=1e-6)


def test_permuted_texts_are_at_chance_and_the_share_of_them_tells_luck():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 300)
    values = rng.normal(size=(300, 4)).astype(np.float32)
    values[np.arange(300), labels] += 1.2
    last, found = zeroshot.control(values, labels, 600)
    every = [(values[:, list(order)].argmax(axis=1) == labels).mean() for order in itertools.permutations(range(4))]
    assert np.mean(every) == pytest.approx(0.25)  # exactly, whatever the values
    assert found.mean.top1 == pytest.approx(0.25, abs=4 * np.std(every) / 600**0.5)
    assert found.std.top1 == pytest.approx(np.std(every), rel=0.2)
    assert last.top1 == max(every)
    assert found.p == pytest.approx(1 / 24, abs=0.03)
    assert (last.top5, found.mean.top5, found.std.top5) == (None, None, None)


def test_a_good_naming_is_told_from_a_random_one():
    labels = np.repeat(np.arange(8), 5)
    last, found = zeroshot.control(np.eye(8, dtype=np.float32)[labels], labels)
    assert last.top1 == last.top5 == last.balanced == 1
    assert found.p == 1 / 200
    assert found.mean.top5 == pytest.approx(5 / 8, abs=0.1)


def test_classes_of_one_text_are_a_tie_that_the_first_wins(subject, tmp_path):
    same = another(subject, tmp_path, lambda folder: manifest(folder, classes=["kick", "wave", "wave"]))
    zeroshot.evaluate(same)
    (path,) = (subject.run / cache.FOLDER).glob("zeroshot-*.parquet")
    kept = cache.load(path)
    assert (kept.scores[:, 1] == kept.scores[:, 2]).all()
    assert 2 not in kept.answers


# ----------------------------------------------------------------------------------------------- on disk


def test_what_is_finished_is_not_made_again(subject, tmp_path, monkeypatch):
    first = zeroshot.evaluate(subject)
    with monkeypatch.context() as patch:
        patch.setattr(shared_space.SharedSpace, "texts", lambda *_: pytest.fail("encoded again"))
        assert zeroshot.evaluate(subject) == first
        (table,) = (subject.run / cache.FOLDER).glob("zeroshot-*.parquet")
        table.write_bytes(table.read_bytes()[:-3])
        with pytest.raises(pytest.fail.Exception, match="encoded again"):
            zeroshot.evaluate(subject)
    again = zeroshot.evaluate(subject)
    assert again.model_copy(update={"seconds": first.seconds}) == first
    path = tmp_path / "texts.toml"
    path.write_text('wave = "hand"\n"sit down" = "chair"\nkick = "leg"\n')
    zeroshot.evaluate(subject, path)
    assert len(list((subject.run / cache.FOLDER).glob("zeroshot-*.json"))) == 2


def test_a_finding_of_an_earlier_form_is_made_again(subject):
    first = zeroshot.evaluate(subject)
    (path,) = (subject.run / cache.FOLDER).glob("zeroshot-*.json")
    held = json.loads(path.read_text())
    assert held["result"].pop("temperature") == first.temperature
    path.write_text(json.dumps(held))
    again = zeroshot.evaluate(subject)
    assert again.model_copy(update={"seconds": first.seconds}) == first
    assert json.loads(path.read_text())["result"]["temperature"] == first.temperature


def test_a_run_that_saw_crops_alone_is_asked_through_their_projector_and_says_so(tmp_path, monkeypatch):
    folder = spoken(tmp_path / "packed", language=np.random.default_rng(1).normal(size=(COUNT, 4, 6)))
    manifest(folder, embeddings={"backend": "hf", "model": "clip", "joint_space": True})
    train(run(folder, tmp_path / "seen", "training.pretrain.knowledge=vision"))
    subject = EvalContext(tmp_path / "seen", PackedDataset(folder), "xsub", recipe(), 0)
    monkeypatch.setattr(engines, "load", lambda spec: TwoEars())
    monkeypatch.setattr(engines, "key_facts", lambda spec: {})
    found = zeroshot.evaluate(subject)
    assert found.through == "vision"
    assert "trained toward crops only" in found.notes[0]
    space, vector = load_joint_embedding(subject.run), TwoEars().encode_texts(["kick"]).vectors
    clips, _ = shared_space.open_space(subject).clips("test")
    (path,) = (subject.run / cache.FOLDER).glob("zeroshot-*.parquet")
    wanted = clips @ space.knowledge("vision", vector)[0]
    np.testing.assert_allclose(cache.load(path).scores[:, 2], wanted, atol=1e-5)
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"wave": "w" * 30, "sit down": "s", "kick": ["k" * 40, "k"]}))
    assert zeroshot.evaluate(subject, path).notes[-1] == "2 of 4 texts are longer than the encoder reads."


def test_a_run_that_saw_crops_alone_is_refused_where_texts_lie_elsewhere(data, tmp_path):
    train(run(data, tmp_path / "seen", "training.pretrain.knowledge=vision"))
    with pytest.raises(ConfigError, match="trained toward crops only, and the encoder 'classical' puts texts"):
        zeroshot.evaluate(EvalContext(tmp_path / "seen", PackedDataset(data), "xsub", recipe(), 0))


def test_a_run_without_projectors_is_refused(data, tmp_path):
    train(run(data, tmp_path / "floor", kind="random"))
    with pytest.raises(CheckpointError, match="is a random run and has no projectors"):
        zeroshot.evaluate(EvalContext(tmp_path / "floor", PackedDataset(data), "xsub", recipe(), 0))


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ({"backend": "classical", "options": {"text_dim": 5}, "device": "cuda:0"}, False),
        ({"backend": "classical", "options": {"text_dim": 5, "image_dim": 9}}, True),
        ({"backend": "classical", "options": {"text_dim": 5}, "weights": {"a": "1"}}, True),
    ],
    ids=["device", "options", "weights"],
)
def test_vectors_of_another_engine_are_taken_on_trust_and_said(subject, tmp_path, engine, told):
    other = another(subject, tmp_path, lambda folder: manifest(folder, embeddings=engine))
    assert any("another engine" in note for note in zeroshot.evaluate(other).notes) is told
    assert not any("another engine" in note for note in zeroshot.evaluate(subject).notes)


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('wave = "a"\nkick = "b"\n', "has 2 of 3 classes; the first that it leaves out is 'sit down'"),
        ('wave = "a"\nkik = "b"\n', "'kik' is not a class of Sticks; did you mean 'kick'"),
        ('wave = []\nkick = "b"\n"sit down" = "c"\n', r"'wave' = \[\]; expected a description or a list"),
        ('wave = 3\nkick = "b"\n"sit down" = "c"\n', "'wave' = 3; expected a description"),
        ('wave = ["a", " "]\nkick = "b"\n"sit down" = "c"\n', "expected a description"),
        ("wave = \n", r"cannot be read as TOML \(.*line 1"),
    ],
)
def test_a_file_of_descriptions_that_does_not_fit_is_refused(subject, tmp_path, text, said):
    path = tmp_path / "texts.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        zeroshot.evaluate(subject, path)
    assert "\n" not in str(caught.value)
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ConfigError, match="holds no table"):
        zeroshot.evaluate(subject, tmp_path / "list.json")
    with pytest.raises(ConfigError, match="does not exist; give a TOML or JSON"):
        zeroshot.evaluate(subject, tmp_path / "absent.toml")


def test_classes_without_names_need_descriptions(subject, tmp_path):
    other = another(subject, tmp_path, lambda folder: manifest(folder, classes=["wave"]))
    with pytest.raises(ConfigError, match="2 of 3 classes of Sticks have no name; describe them by --desc"):
        zeroshot.evaluate(other)
    path = tmp_path / "texts.toml"
    path.write_text('wave = "hand"\n"class 1" = "chair"\n"class 2" = "leg"\n')
    assert zeroshot.evaluate(other, path).texts == 3


def test_a_text_without_a_word_is_refused(subject, tmp_path):
    other = another(subject, tmp_path, lambda folder: manifest(folder, classes=["wave", "?!", "kick"]))
    with pytest.raises(DataError, match=r"finds no word in '\?!'"):
        zeroshot.evaluate(other)


def test_clips_without_a_label_cannot_be_judged(subject, tmp_path):
    def forget(folder: Path) -> None:
        np.save(folder / "labels.npy", np.full(COUNT, -1, np.int16))

    with pytest.raises(DataError, match="4 of 4 test samples of xsub have no label"):
        zeroshot.evaluate(another(subject, tmp_path, forget))


def test_training_samples_need_no_label(subject, tmp_path):
    def forget(folder: Path) -> None:
        labels = np.load(folder / "labels.npy")
        np.save(folder / "labels.npy", np.where(np.arange(COUNT) % 4, -1, labels).astype(np.int16))

    found = zeroshot.evaluate(another(subject, tmp_path, forget))
    assert found.majority is None
    assert found.last == zeroshot.evaluate(subject).last


# ---------------------------------------------------------------------------------------------- command


def test_the_table_shows_controls_beside_every_run(cli: Cli, subject, tmp_path):
    shuffled = tmp_path / "shuffled"
    train(run(subject.packed.folder, shuffled, "training.pretrain.pairs=shuffled"))
    words = ("--data", subject.packed.folder, "--recipe", "debug", "--run", subject.run)
    found = cli("c2vl-eval", "zeroshot", *words, "--run", shuffled)
    assert found.code == 0, found.err
    text = " ".join(found.out.split())
    for said in (
        "zero-shot by the names of the classes, %, 4 test clips, 3 classes",
        "names permuted",
        "main: ",
        "classes were ever answered",
        "shuffled (control)",
        "majority class",
        "chance",
        "derived from joints, which the encoder itself sees: no evidence for language",
    ):
        assert said in text
    refused(cli("c2vl-eval", "zeroshot", *words, "--descriptions", "no.toml"), "no.toml does not exist")
    refused(cli("c2vl-eval", "zeroshot", *words[:4], "--run", tmp_path), "does not exist; give the folder of a")


def verdict_of(p: float, classes: int = 8, answered: int = 3) -> str:
    score = Score(top1=0.2, top5=None, balanced=0.2)
    shuffled = zeroshot.Control(draws=199, mean=score, std=score, p=p)
    return zeroshot.ZeroShot(
        through="language", texts=classes, described=False, temperature=0.1, last=score, shuffled=shuffled,
        chance=score, majority=None, classes=classes, answered=answered, test=4,
    ).verdict()  # fmt: skip


def test_names_that_permuted_ones_equal_are_said_to_be_indistinguishable():
    assert verdict_of(0.045) == "3 of 8 classes were ever answered; better than permuted names (p = 0.045)"
    assert verdict_of(0.06).endswith("not distinguishable from permuted names (p = 0.060)")
    assert "3 classes have too few orders to tell" in verdict_of(0.2, classes=3)


def test_an_encoder_without_any_sense_of_names_is_rarely_called_better():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 10)
    clear = [
        zeroshot.control(rng.normal(size=(6, 6))[labels].astype(np.float32), labels)[1].p <= zeroshot.SIGNIFICANT
        for _ in range(60)
    ]
    assert sum(clear) <= 9  # 3 expected
    assert zeroshot.control(np.eye(6, dtype=np.float32)[labels], labels)[1].p <= zeroshot.SIGNIFICANT


def test_classes_named_in_words_that_no_caption_holds_are_said(subject, tmp_path):
    assert zeroshot.words_note(subject) == ""  # no captions to look at
    other = another(subject, tmp_path, lambda _: None)
    folder = other.packed.folder.parent / "captions"
    folder.mkdir()
    pq.write_table(pa.table({"caption": ["they kick the ball", "they wave"]}), folder / "shard-00000.parquet")
    note = zeroshot.words_note(other)
    assert note.startswith("No caption holds 'sit', so the run was not trained on it. Captions hold: they, kick")
    assert "1 of 3 classes are named in such words; describe them in words of the captions by --desc" in note


def test_descriptions_nested_without_end_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        class_prompts._load(path)


# ------------------------------------------------------------------------------- vectors made elsewhere


def saved(path: Path, subject: EvalContext, names: tuple[str, ...] = ("kick", "wave", "sit down")) -> Path:
    vectors = text_encoder.load(subject.packed).encode_texts(list(names)).vectors
    np.savez(path, **{name: 3 * vector for name, vector in zip(names, vectors, strict=True)})
    return path


def test_vectors_of_classes_made_elsewhere_say_what_their_texts_say(subject, tmp_path, monkeypatch):
    path, wanted = saved(tmp_path / "classes.npz", subject), zeroshot.evaluate(subject)
    monkeypatch.setattr(text_encoder, "load", lambda *_: pytest.fail("a text encoder is loaded"))
    found = zeroshot.evaluate(subject, class_vectors=path)
    assert (found.last, found.shuffled, found.answered) == (wanted.last, wanted.shuffled, wanted.answered)
    assert found.described
    assert any("made elsewhere" in note for note in found.notes)
    np.savez(path, **{name: np.eye(3, np.load(path)["wave"].size, dtype=np.float32)[n] for n, name in enumerate(("wave", "sit down", "kick"))})  # fmt: skip
    again = zeroshot.evaluate(subject, class_vectors=path)
    assert len([*(subject.run / cache.FOLDER).glob("zeroshot-*.parquet")]) == 3
    assert again.texts == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda held: held.pop("kick"), "has 2 of 3 classes; the first that it leaves out is 'kick'"),
        (lambda held: held.update(wav=held["wave"]), "'wav' is not a class of .*; did you mean 'wave'"),
        (lambda held: held.update({n: v[:3] for n, v in held.items()}), "vectors of width 3; expected"),
        (lambda held: held.update(kick=held["kick"] * np.nan), "class 'kick' has NaN or infinite values"),
        (lambda held: held.update(kick=held["kick"] * 0), "class 'kick' has a vector of zeros"),
    ],
)
def test_vectors_of_classes_that_do_not_fit_are_one_line(subject, tmp_path, change, says):
    held = dict(np.load(saved(tmp_path / "classes.npz", subject)))
    change(held)
    np.savez(tmp_path / "classes.npz", **held)
    with pytest.raises((ConfigError, DataError), match=says):
        zeroshot.evaluate(subject, class_vectors=tmp_path / "classes.npz")


def test_a_run_that_saw_crops_alone_takes_vectors_of_its_space(data, tmp_path):
    out = tmp_path / "run"
    train(run(data, out, "training.pretrain.knowledge=vision"))
    subject = EvalContext(out, PackedDataset(data), "xsub", recipe(), 0)
    width = subject.packed.manifest.vision_dim
    np.savez(tmp_path / "c.npz", **dict(zip(("wave", "sit down", "kick"), np.eye(3, width), strict=True)))
    assert zeroshot.evaluate(subject, class_vectors=tmp_path / "c.npz").through == "vision"


def test_descriptions_and_vectors_are_not_given_together(cli: Cli, subject, data, tmp_path):
    path = saved(tmp_path / "classes.npz", subject)
    (tmp_path / "d.toml").write_text("")
    said = cli(
        "c2vl-eval", "zeroshot", "--run", subject.run, "--data", data, "--class-vectors", path, "--descriptions", tmp_path / "d.toml"
    )  # fmt: skip
    refused(said, "--class-vectors and --descriptions say the same in two ways; give one of them")
