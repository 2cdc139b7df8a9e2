"""Report: one file that loads nothing, says what the numbers say, and stands when parts are missing."""

import base64
import functools
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from c2vl_evaluation.report import build
from c2vl_evaluation.report import samples as gallery
from c2vl_evaluation.results import Results, Row, mean_std
from c2vl_manifests.schema import CAPTIONS, CROPS, SAMPLES

CLASSES = ("wave", "clap", "sit <down>")
BASE = {
    ("partition(cosine)", "pretrained"): (0.62, 0.71),
    ("hard", "pretrained"): (0.6, 0.7),
    ("random encoder", "floor"): (0.5, 0.6),
    ("supervised", "ceiling"): (0.8, 0.9),
    ("shuffled pairs", "shuffled"): (0.51, 0.62),
}
VOID = {"meta", "link", "img", "br", "hr", "input", "rect", "path", "use"}


def table(accuracies=None, seeds=3, derived=True, runs="runs", **changes):
    rows = []
    for (name, role), (knn, linear) in (accuracies or BASE).items():
        trained = role in {"pretrained", "shuffled"}
        for seed in range(seeds):
            rows.append(
                Row(
                    name=name, role=role, seed=seed, run=f"{runs}/{name.split('(')[0].replace(' ', '-')}-seed{seed}",
                    knowledge="both" if trained else "", derived_from_joints=trained and derived,
                    knn=knn + seed / 1000, linear=linear + seed / 1000, linear_best=linear + 0.01, linear_lr=0.3,
                    epochs=3, seconds=12.5, samples=1234, left_out=5,
                )
            )  # fmt: skip
    facts = {
        "dataset": "toy", "title": "Toy & Co", "benchmark": "xsub", "recipe": "debug", "recipe_fingerprint": "f" * 32,
        "data_fingerprint": "d" * 32, "engines": {"crops": "motion", "captions": "posecode"}, "classes": CLASSES,
        "train": 1234, "test": 60, "chance": 1 / 3, "majority": 0.4, "rows": tuple(rows),
        "seconds": {"crops": 3725.0, "captions": 2.0},
    }  # fmt: skip
    return Results(**(facts | changes))


def main_run(count=60):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % len(CLASSES)
    features = rng.normal(size=(count, 6)).astype(np.float32) + labels[:, None]
    predictions = np.where(np.arange(count) % 7 == 0, 1, labels)
    return build.MainRun(features, labels, predictions, [f"s{i}" for i in range(count)])


@functools.cache
def jpeg(height=300):
    file = io.BytesIO()
    Image.new("RGB", (height // 2, height), (200, 60, 20)).save(file, "JPEG")
    return file.getvalue()


def work_folder(folder, samples=30, slots=6, bad=None, caption="{id} slot {slot}", shards=2):
    """Write shards like the factory's; `bad` maps (sample, slot) to (stage, status, error)."""
    bad = bad or {}
    for stage, schema in (("crops", CROPS), ("captions", CAPTIONS)):
        (folder / stage).mkdir(parents=True)
        for shard in range(shards):
            rows = []
            for n in range(shard * samples // shards, (shard + 1) * samples // shards):
                for slot in range(slots):
                    at, status, error = bad.get((n, slot), (stage, "ok", None))
                    status, error = (status, error) if at == stage else ("ok", None)
                    row = dict.fromkeys(schema.names) | {
                        "sample_id": f"s{n:03d}", "slot": slot, "status": status, "error": error, "attempts": 1,
                    }  # fmt: skip
                    fill = (
                        {"people": 1, "jpeg": jpeg()}
                        if stage == "crops"
                        else {"caption": caption, "tokens": 4}
                    )
                    if "caption" in fill:
                        fill["caption"] = caption.format(id=f"s{n:03d}", slot=slot)
                    rows.append(row | (fill if status == "ok" else {"people": 0} if stage == "crops" else {}))
            pq.write_table(
                pa.Table.from_pylist(rows, schema=schema), folder / stage / f"shard-{shard:05d}.parquet"
            )
    known = [
        dict.fromkeys(SAMPLES.names)
        | {"sample_id": f"s{n:03d}", "label": n % 4 - 1, "camera": "c", "known_missing": False, "splits": []}
        for n in range(samples)
    ]
    pq.write_table(pa.Table.from_pylist(known, schema=SAMPLES), folder / "samples.parquet")
    return folder


def write_runs(results, folder):
    for row in results.rows:
        run = folder / row.run
        run.mkdir(parents=True)
        if row.role in {"pretrained", "shuffled"}:
            epochs = [
                {
                    "epoch": e,
                    "loss": 3.0 - e,
                    "alpha": 0.5,
                    "vision/positive": 0.1 * e,
                    "vision/negative": 0.0,
                }
                for e in range(3)
            ]
            counts = {"vision/positive": [0, 1, 3, 0], "vision/negative": [1, 5, 1, 0]}
            lines = [{"epoch": e, "low": -1.0, "high": 1.0, **counts} for e in range(3)]
            (run / "histograms.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in epochs))


class Page(HTMLParser):
    """Collects tags, links and text, and checks that every element is closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.links, self.said = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [
            value for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "action"}
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for name, value in attrs if name in {"src", "href", "xlink:href"}]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.said.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.said))

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def read(path):
    return Page(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    results = table()
    write_runs(results, folder)
    bad = {(17, 2): ("crops", "no_person", "nobody above 0.3 in /home/someone/secret/video.avi")}
    work = work_folder(folder / "work", bad=bad)
    path = build.build(results, folder / "report.html", work=work, main=main_run())
    return results, folder, path


def test_page_is_small_and_loads_nothing(full):
    _, folder, path = full
    html = path.read_text("utf-8")
    page = Page(html)
    assert path.stat().st_size < 4_000_000
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "default-src 'none'" in html
    assert str(folder) not in html
    assert "/home/someone" not in html


def test_page_minds_phones_and_dark_rooms(full):
    html = full[2].read_text("utf-8")
    assert 'name="viewport" content="width=device-width' in html
    assert "prefers-color-scheme: dark" in html
    assert "tabular-nums" in html


def test_equal_input_writes_equal_bytes(full, tmp_path):
    results, folder, path = full
    again = build.build(results, folder / "again.html", work=folder / "work", main=main_run())
    assert again.read_bytes() == path.read_bytes()


def test_every_row_is_on_the_page(full):
    results, _, path = full
    text = read(path).text
    for name in results.names():
        of = results.of(name)
        for measure in ("knn", "linear", "linear_best"):
            assert mean_std([getattr(row, measure) for row in of]) in text
    for row in results.rows:
        assert row.run.rsplit("/", 1)[1] in text
    for fact in ("33.3", "40.0", "1 h 02 min", "1,234", "f" * 32, "d" * 32, "posecode", "Toy & Co"):
        assert fact in text


def test_controls_and_derived_rows_are_marked(full):
    page = read(full[2])
    classes = [attrs.get("class", "") for tag, attrs in page.tags if tag == "tr"]
    assert classes.count("control") == 3
    assert classes.count("main") == 1
    assert page.text.count("derived from joints") == 3 + 1  # three lines and the explanation
    assert "captions of these rows are computed from the skeleton itself" in page.text


def test_page_without_derived_rows_does_not_speak_of_them(tmp_path):
    assert "derived from joints" not in read(build.build(table(derived=False), tmp_path / "r.html")).text


def test_all_figures_are_drawn_with_captions(full):
    page = read(full[2])
    assert page.count("svg") == 7
    for word in (
        "metrics.jsonl",
        "perplexity 19.7",
        "t-SNE seed 0",
        "60 test samples of the 3 most frequent of 3 classes",
    ):
        assert word in page.text
    assert "Not drawn" not in page.text


def test_most_frequent_mistakes_are_named_with_a_sample(full):
    assert (
        "Most often mistaken: wave for clap, 3 of 20 (such as s0); sit <down> for clap, 3 of 20 (such as s14)"
        in read(full[2]).text
    )


def test_gallery_shows_crops_and_captions(full):
    page = read(full[2])
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert page.count("article") == gallery.SAMPLES
    assert len(images) == gallery.SAMPLES * gallery.SLOTS - 1
    for word in ("s000 slot 0", "s029 slot 5", "no_person", "nobody above 0.3 in …/video.avi"):
        assert word in page.text


def test_crops_are_made_small(tmp_path):
    found = gallery.read(work_folder(tmp_path / "w"), CLASSES)
    for sample in found.samples:
        for crop in sample["crops"]:
            data = base64.b64decode(crop["image"].split(",")[1])
            assert Image.open(io.BytesIO(data)).size == (80, 160)


def test_gallery_is_spread_and_chosen_by_the_shards_alone(tmp_path):
    first = gallery.read(work_folder(tmp_path / "a"), CLASSES)
    again = gallery.read(work_folder(tmp_path / "b"), CLASSES)
    assert first == again
    ids = [int(sample["id"][1:]) for sample in first.samples]
    assert (ids[0], ids[-1]) == (0, 29)
    assert max(np.diff(ids)) <= 3
    assert [crop["slot"] for crop in first.samples[0]["crops"]] == [0, 2, 3, 5]
    assert {sample["title"] for sample in first.samples} <= {"", *CLASSES}


@pytest.mark.parametrize("stage", ["crops", "captions"])
@pytest.mark.parametrize("at", [(0, 0), (1, 1), (16, 4), (29, 5)])
def test_one_row_that_is_not_ok_is_always_shown(tmp_path, stage, at):
    found = gallery.read(work_folder(tmp_path / "w", bad={at: (stage, "failed", "engine said no")}), CLASSES)
    assert len(found.samples) == gallery.SAMPLES
    entries = [entry for sample in found.samples for entry in sample[stage]]
    assert [entry["error"] for entry in entries if entry["status"] == "failed"] == ["engine said no"]


def test_equal_captions_in_a_row_are_written_once(tmp_path):
    found = gallery.read(work_folder(tmp_path / "w", caption="stands"), CLASSES)
    assert [entry["slots"] for entry in found.samples[0]["captions"]] == ["0, 2, 3, 5"]


def test_captions_and_names_are_escaped(tmp_path):
    evil = '<script>alert(1)</script>"><img src=https://evil.example/x.png>'
    work = work_folder(tmp_path / "w", samples=3, caption=evil)
    results = table(
        {(evil, "pretrained"): (0.5, 0.5)}, title=evil, classes=(evil, "b", "c"), engines={evil: evil}
    )
    write_runs(results.model_copy(update={"rows": ()}), tmp_path)
    path = build.build(results, tmp_path / "r.html", work=work, main=main_run())
    page = read(path)
    assert page.count("script") == 0
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert evil in page.text


def test_truncated_shard_is_passed_over_with_a_sentence(tmp_path):
    work = work_folder(tmp_path / "w")
    shard = work / "crops" / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    page = read(build.build(table(), tmp_path / "r.html", work=work))
    assert page.text.count("crops/shard-00001.parquet cannot be read and is passed over") == 1
    assert page.count("article") == gallery.SAMPLES
    assert str(tmp_path) not in page.text


def test_damaged_crop_is_said_to_be_unreadable(tmp_path):
    work = work_folder(tmp_path / "w", samples=2)
    path = work / "crops" / "shard-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["jpeg"] = b"\xff\xd8 not a picture"
    pq.write_table(pa.Table.from_pylist(rows, schema=CROPS), path)
    found = gallery.read(work, CLASSES)
    assert found.samples[0]["crops"][0]["status"] == "unreadable"


def test_empty_work_folder_is_said(tmp_path):
    text = read(build.build(table(), tmp_path / "r.html", work=tmp_path / "nowhere")).text
    assert "The work folder holds no readable crops." in text
    assert "The work folder holds no readable captions." in text


def test_table_alone_makes_a_page_that_says_what_is_missing(tmp_path):
    page = read(
        build.build(
            table({("random encoder", "floor"): (0.4, 0.5)}, seeds=1, seconds={}, engines={}),
            tmp_path / "r.html",
        )
    )
    assert page.count("svg") == 1  # the bars
    for sentence in (
        "No pre-trained encoder is in this table; random encoder reaches 40.0 % kNN and 50.0 % linear.",
        "No work folder was given",
        "Not drawn: the main run, or the packed data it was evaluated on, is not at hand.",
        "there is no curve to draw",
        "No stage recorded its time.",
    ):
        assert sentence in page.text


@pytest.mark.parametrize("damage", ["", '{"epoch": 0, "lo', "[1]\n", "3\n", '{"epoch": "x", "loss": null}\n'])
def test_damaged_metrics_are_named_not_fatal(tmp_path, damage):
    results = table()
    write_runs(results, tmp_path)
    (tmp_path / results.rows[0].run / "metrics.jsonl").write_text(damage)
    page = read(build.build(results, tmp_path / "r.html"))
    assert "Without readable metrics.jsonl, hence not drawn: partition-seed0." in page.text
    assert page.count("svg") == 4


def test_runs_are_found_where_the_table_was_moved_to(tmp_path):
    results = table()
    assert not Path(results.rows[0].run).is_absolute()
    write_runs(results, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    page = read(build.build(results, tmp_path / "there" / "r.html"))
    assert page.count("svg") == 4


def test_more_labels_than_class_names(tmp_path):
    page = read(build.build(table(classes=()), tmp_path / "r.html", main=main_run()))
    assert "class 2" in page.text


def test_a_main_run_that_is_gone_says_why_on_the_page(tmp_path):
    why = build.main_run(table(), tmp_path, tmp_path)
    assert "holds no packed data; run `c2vl-pipeline pack --work" in why
    text = read(build.build(table(), tmp_path / "r.html", main=why)).text
    assert "Not drawn: …/packed holds no packed data; run `c2vl-pipeline pack --work …/" in text
    assert str(tmp_path) not in text


# --------------------------------------------------------------------------------------------- verdict


def said(seeds=3, **changes):
    roles = {role: name for name, role in reversed(BASE)}
    return build.verdict(table(BASE | {(roles[role], role): value for role, value in changes.items()}, seeds))


def test_verdict_is_one_sentence_of_the_numbers():
    assert said() == (
        "partition(cosine) gains 12.0 points kNN and 11.0 points linear over random encoder (3 seeds, both beyond two "
        "standard errors); with shuffled pairs it is +1.0 and +2.0, so most of the gain comes from pairing each "
        "skeleton with its own prompts."
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"pretrained": (0.45, 0.61)},
            "loses 5.0 points kNN and gains 1.0 points linear against random encoder",
        ),
        ({"pretrained": (0.4, 0.5)}, "so there is no gain to explain."),
        ({"shuffled": (0.6, 0.7)}, "so most of the gain is there without the right pairing."),
        ({"shuffled": (0.6, 0.6)}, "so most of the linear gain comes from pairing"),
        ({"shuffled": (0.45, 0.6)}, "it is −5.0 and +0.0"),
        ({"pretrained": (0.5005, 0.6)}, "3 seeds, neither beyond two standard errors"),
        ({"pretrained": (0.7, 0.6)}, "3 seeds, only kNN beyond two standard errors"),
        ({"seeds": 1}, "one seed, so how much of it is luck is unknown"),
    ],
)
def test_verdict_changes_with_the_numbers(changes, words):
    assert words in said(**changes)


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("floor", "without a random encoder in the table, what it gained is unknown."),
        ("shuffled", "without shuffled pairs in the table, what the pairing adds is unknown."),
    ],
)
def test_verdict_names_the_control_that_is_missing(role, words):
    assert build.verdict(table({key: value for key, value in BASE.items() if key[1] != role})).endswith(words)


def test_the_verdict_names_joints_without_an_encoder():
    results = table()
    assert "raw joints" not in build.verdict(results)
    raw = results.rows[0].model_copy(
        update={"name": "raw joints", "role": "baseline", "knn": 0.9, "linear": 0.5}
    )
    spoken = build.verdict(results.model_copy(update={"rows": (*results.rows, raw)}))
    assert (
        spoken
        == f"{build.verdict(results)} The raw joints, without any encoder, reach 90.0 % kNN and 50.0 % linear."
    )
