from __future__ import annotations

import hashlib
import html
import json
import math
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.manifest import commit_table, read_shard, read_shard_manifest
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_manifests.schema import CAPTIONS, CROPS
from c2vl_pipeline.browse import audit, caption_stats, gallery, trace
from c2vl_pipeline.browse import html as pages
from c2vl_pipeline.browse.caption_stats import Corpus
from c2vl_pipeline.browse.gallery import Filters
from c2vl_pipeline.browse.reader import Lookup
from c2vl_pipeline.workspace import load, shard_path
from conftest import run_factory

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }}'


class Page(HTMLParser):
    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = path.read_text("utf-8")
        self.feed(self.text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag]


def assert_self_contained(path: Path) -> Page:
    page = Page(path)
    assert {t for t, _ in page.tags} & {
        "script",
        "iframe",
        "link",
        "object",
        "embed",
        "base",
        "form",
    } == set()
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href"}:
                assert value is not None
                assert value.startswith("data:image/jpeg;base64,")
    assert "url(" not in page.text
    assert "@import" not in page.text
    assert any("default-src 'none'" in (m.get("content") or "") for m in page.of("meta"))
    return page


def rewrite(work: Path, stage: str, schema: pa.Schema, change) -> None:
    path = shard_path(work, stage, 0)
    manifest = read_shard_manifest(path)
    assert manifest is not None
    rows = read_shard(path).to_pylist()
    change(rows)
    commit_table(
        path,
        pa.Table.from_pylist(rows, schema=schema),
        key=manifest.key,
        row_group=20,
        extra=manifest.extra,
    )


@pytest.fixture(scope="module")
def odd(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the work folder with a hostile caption, a lost person and a failed caption."""
    folder = tmp_path_factory.mktemp("odd") / "work"
    shutil.copytree(work, folder)

    def captions(rows):
        for row in (rows[0], *rows[8:16]):  # often enough for the most frequent ones
            row["caption"] = HOSTILE
        rows[1]["caption"] = "A" * 400
        rows[29].update(status="failed", error_class="ValueError", error="broke <b>here</b>", caption=None)

    def crops(rows):
        rows[17].update(status="no_person", box=None, score=None, jpeg=None, people=0)

    rewrite(folder, "captions", CAPTIONS, captions)
    rewrite(folder, "crops", CROPS, crops)
    return folder


def names(work: Path, **filters) -> list[str]:
    index = load(work)
    ids = index.table["sample_id"].to_pylist()
    return [ids[n] for n in gallery.select(index, Filters(**filters))]


# --------------------------------------------------------------------------------------------- pages


def test_spans_write_runs_shortly():
    assert pages.spans([0, 1, 2, 5]) == "0–2, 5"
    assert pages.spans([1, 0]) == "0, 1"
    assert pages.spans([]) == ""


def test_percent_never_rounds_to_none_or_all():
    assert pages.percent(0.0001) == "< 0.1"
    assert pages.percent(0.9999) == "> 99.9"
    assert (pages.percent(0), pages.percent(1), pages.percent(None)) == ("0.0", "100.0", "–")


def test_a_thumbnail_of_rubbish_is_none():
    assert pages.thumbnail(b"no jpeg at all") is None
    assert pages.thumbnail(None) is None


def test_every_page_is_one_valid_file_that_asks_for_nothing(odd, tmp_path):
    sample = load(odd).table["sample_id"][0].as_py()
    for path in (
        gallery.gallery(odd, tmp_path / "i.html").path,
        trace.explain(odd, sample, tmp_path / "e.html"),
        audit.audit(odd, tmp_path / "a.html"),
    ):
        page = assert_self_contained(path)
        assert HOSTILE not in page.text
        assert html.escape(HOSTILE, quote=True).replace("&quot;", "&#34;") in page.text
        assert str(odd) not in page.text


# ------------------------------------------------------------------------------------------- inspect


def test_filters_select_what_a_scan_of_all_rows_selects(odd):
    index = load(odd)
    rows = index.table.to_pylist()
    ids = [r["sample_id"] for r in rows]
    assert names(odd) == ids
    assert names(odd, label=index.classes[2].upper()) == [r["sample_id"] for r in rows if r["label"] == 2]
    assert names(odd, label="2") == names(odd, label=index.classes[2])
    assert names(odd, subject=3, camera="2") == [
        r["sample_id"] for r in rows if r["subject"] == 3 and r["view"] == 2
    ]
    assert names(odd, split="xsub:test") == [r["sample_id"] for r in rows if ("xsub", "test") in r["splits"]]
    assert names(odd, samples=(ids[3], "*A002")) == [i for i in ids if i == ids[3] or i.endswith("A002")]
    captions = read_shard(shard_path(odd, "captions", 0)).to_pylist()
    start, stop = index.plan[0]
    for text in ("SITTING", "<script>", "no such words"):
        wanted = {c["sample_id"] for c in captions if text.lower() in (c["caption"] or "").lower()}
        assert [n for n in names(odd, text=text) if n in ids[start:stop]] == [
            i for i in ids[start:stop] if i in wanted
        ]


def test_statuses_select_the_samples_that_hold_them(odd):
    ids = load(odd).table["sample_id"].to_pylist()
    slots = len(read_shard(shard_path(odd, "crops", 0)).filter(pa.compute.field("sample_id") == ids[0]))
    assert names(odd, status="no_person") == [ids[17 // slots]]
    assert names(odd, status="failed") == names(odd, status="captions:failed") == [ids[29 // slots]]
    assert names(odd, status="crops:failed") == []
    assert names(odd, status="not-ok") == sorted({ids[17 // slots], ids[29 // slots]}, key=ids.index)


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"status": "no_persn"}, "unknown status 'no_persn'; did you mean 'no_person'?"),
        ({"status": "crop:failed"}, "did you mean 'crops'"),
        ({"split": "xsub:tset"}, "did you mean 'xsub:test'"),
        ({"shard": 99}, "unknown shard '99'"),
        ({"samples": ("S001C001P001R001A0O1",)}, "did you mean S001C001P001R001A001"),
    ],
)
def test_unknown_filters_name_the_near_ones(odd, filters, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        names(odd, **filters)


def test_a_gallery_shows_the_limit_and_counts_all(odd, tmp_path):
    made = gallery.gallery(odd, tmp_path / "g.html", limit=3)
    page = assert_self_contained(made.path)
    total = load(odd).table.num_rows
    assert (made.matched, made.shown, made.total) == (total, 3, total)
    assert len(page.of("article")) == 3
    assert f"3 of {total} samples that match" in page.text
    random = [gallery.gallery(odd, tmp_path / f"{s}.html", limit=3, seed=s).path for s in (1, 1, 2)]
    first, again, other = (p.read_text("utf-8") for p in random)
    assert first == again != other


def test_an_empty_selection_is_a_page_too(odd, tmp_path):
    made = gallery.gallery(odd, tmp_path / "g.html", Filters(text="no such words"))
    assert (made.matched, made.shown) == (0, 0)
    assert "No sample matches." in assert_self_contained(made.path).text


def test_work_without_a_single_caption_is_audited(work, tmp_path):
    folder = tmp_path / "w"
    shutil.copytree(work, folder)
    for shard in range(1, len(load(folder).plan)):
        shard_path(folder, "captions", shard).with_suffix(".json").unlink()

    def nothing(rows):
        for row in rows:
            row.update(status="missing_skeleton", caption=None, tokens=None)

    rewrite(folder, "captions", CAPTIONS, nothing)
    found = audit.measure(folder)
    assert found.captions is not None
    assert found.captions.wording is None
    assert found.captions.classes == []
    assert_self_contained(audit.write(found, tmp_path / "a.html"))


def test_a_gallery_without_stages_says_so(work, tmp_path):
    folder = tmp_path / "w"
    folder.mkdir()
    for name in ("samples.parquet", "samples.json"):
        shutil.copy(work / name, folder / name)
    made = gallery.gallery(folder, tmp_path / "g.html")
    assert "There are no crops yet; `c2vl-pipeline crop` makes them." in made.notes
    assert_self_contained(made.path)
    facts = trace.trace(folder, load(folder).table["sample_id"][0].as_py()).facts
    assert {s["state"] for s in facts["stages"]} == {"not run"}
    assert [s["frame"] for s in facts["slots"]]
    found = audit.measure(folder)
    assert found.crops is found.captions is found.joints is None
    assert_self_contained(audit.write(found, tmp_path / "a.html"))


def test_lookup_returns_the_rows_a_whole_read_returns(odd):
    index = load(odd)
    whole: dict[str, list] = {}
    for shard in range(len(index.plan)):
        for row in read_shard(shard_path(odd, "captions", shard)).to_pylist():
            whole.setdefault(row["sample_id"], []).append(row)
    lookup = Lookup(index)
    found = lookup.rows("captions", [0, 3, index.table.num_rows - 1])
    assert lookup.notes == []
    for number, rows in found.items():
        assert rows == whole[index.table["sample_id"][number].as_py()]
    assert sorted(found) == [0, 3, index.table.num_rows - 1]


def test_a_damaged_shard_is_passed_over_with_a_note(work, tmp_path):
    folder = tmp_path / "w"
    shutil.copytree(work, folder)
    path = shard_path(folder, "crops", 0)
    path.write_bytes(path.read_bytes()[:1000])
    made = gallery.gallery(folder, tmp_path / "g.html", limit=2)
    assert any("crops cannot be read" in note for note in made.notes)
    assert made.shown == 2
    stages = trace.trace(folder, load(folder).table["sample_id"][0].as_py()).facts["stages"]
    assert {s["stage"]: s["agrees"] for s in stages}["crops"] == "no"


# ------------------------------------------------------------------------------------------- explain


def test_explain_hashes_what_lies_on_the_disk(work):
    index = load(work)
    sample = index.table.slice(5, 1).to_pylist()[0]
    facts = trace.trace(work, sample["sample_id"]).facts
    json.dumps(facts, allow_nan=False)
    for what in ("video", "skeleton"):
        data = (index.root / sample[what]).read_bytes()
        assert facts["raw"][what]["sha256"] == hashlib.sha256(data).hexdigest()
        assert facts["raw"][what]["bytes"] == len(data)
    shard = facts["sample"]["shard"]
    crops = [
        r
        for r in read_shard(shard_path(work, "crops", shard)).to_pylist()
        if r["sample_id"] == sample["sample_id"]
    ]
    assert len(facts["slots"]) == len(crops) > 1
    for slot, row in zip(facts["slots"], crops, strict=True):
        assert slot["crop"]["jpeg_sha256"] == hashlib.sha256(row["jpeg"]).hexdigest()
        assert slot["frame"] == row["frame_index"]
        assert slot["seconds"] == pytest.approx(row["frame_index"] / facts["raw"]["video"]["fps"], abs=1e-3)
    for stage in facts["stages"]:
        path = shard_path(work, stage["stage"], shard)
        assert stage["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() == stage["sha256_recorded"]
        assert (stage["agrees"], stage["same_samples"]) == ("bytes", True)
    vectors = [
        r
        for r in read_shard(shard_path(work, "embeddings", shard)).to_pylist()
        if r["sample_id"] == sample["sample_id"]
    ]
    a, b = (np.asarray(vectors[i]["vision"], np.float64) for i in (0, 1))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert facts["similarity"]["vision"]["matrix"][0][1] == pytest.approx(cosine, abs=1e-3)


def test_explain_sees_a_rewritten_shard_and_a_lost_video(work, raw, tmp_path):
    folder, own = tmp_path / "w", tmp_path / "raw"
    shutil.copytree(raw, own)
    run_factory(own, folder, load_recipe("debug"))
    index = load(folder)
    sample = index.table.slice(0, 1).to_pylist()[0]
    path = shard_path(folder, "captions", 0)
    table = pq.read_table(path)
    pq.write_table(table, path, compression="none")
    (index.root / sample["video"]).unlink()
    found = trace.trace(folder, sample["sample_id"])
    assert {s["stage"]: s["agrees"] for s in found.facts["stages"]}["captions"] == "rows"
    assert found.facts["raw"]["video"]["sha256"] is None
    assert found.frames == {}
    assert found.crops
    assert_self_contained(trace.write(found, tmp_path / "e.html"))


def test_an_unknown_sample_names_the_near_ones(work):
    with pytest.raises(
        ConfigError, match=r"no sample 'S001C001P001R001A00'.*did you mean S001C001P001R001A00"
    ):
        trace.trace(work, "S001C001P001R001A00")


def test_page_names_hold_no_path():
    assert trace.page_name("../../etc/x y") == "explain-..-..-etc-x-y.html".replace("..-..-", "-..-")
    assert "/" not in trace.page_name("a/b")


# --------------------------------------------------------------------------------------------- audit


def test_joints_inside_are_counted_against_the_box_and_the_frame():
    joints = np.array([[[5, 5], [15, 5], [10, 5], [-1, 5], [np.nan, 5]]], np.float32)
    points, held, outside = audit.inside(joints, [0, 0, 10, 10], (20, 20))
    assert len(points) == 3
    assert held.tolist() == [True, False, False]
    assert outside == 1


def test_the_crops_of_the_skeleton_engine_hold_their_joints(work, tmp_path):
    found = audit.measure(work)
    assert found.joints is not None
    assert found.crops is not None
    assert found.joints.frames == found.crops.statuses["ok"]
    if found.joints.derived:
        assert found.joints.passed == 1


def test_crops_moved_off_the_person_are_the_worst(work, tmp_path):
    folder = tmp_path / "w"
    shutil.copytree(work, folder)

    def shift(rows):
        rows[21]["box"] = [0.0, 0.0, 3.0, 3.0]

    rewrite(folder, "crops", CROPS, shift)
    found = audit.measure(folder)
    assert found.joints is not None
    row = read_shard(shard_path(folder, "crops", 0)).slice(21, 1).to_pylist()[0]
    worst = found.joints.worst[0]
    assert (worst.sample_id, worst.slot, worst.share) == (row["sample_id"], row["slot"], 0)
    assert found.joints.passed < 1
    assert_self_contained(audit.write(found, tmp_path / "a.html"))


def test_caption_figures_equal_a_naive_count(odd):
    found = audit.measure(odd)
    rows = [
        r
        for shard in range(len(load(odd).plan))
        for r in read_shard(shard_path(odd, "captions", shard)).to_pylist()
    ]
    said = [r["caption"] for r in rows if r["status"] == "ok"]
    counts = Counter(said)
    assert found.captions is not None
    w = found.captions.wording
    assert w is not None
    assert found.captions.statuses == Counter(r["status"] for r in rows)
    assert (w.captions, w.unique) == (len(said), len(counts))
    assert w.repeats == pytest.approx(1 - len(counts) / len(said))
    assert w.top[0][1] == counts.most_common(1)[0][1]
    assert w.vocabulary == len({word for text in said for word in caption_stats.words(text)})
    assert w.running_words == sum(len(caption_stats.words(text)) for text in said)
    assert w.growth[-1] == (w.running_words, w.vocabulary)
    labels = dict(zip(*(load(odd).table[c].to_pylist() for c in ("sample_id", "label")), strict=True))
    for label, c in enumerate(found.captions.classes):
        own = Counter(r["caption"] for r in rows if r["status"] == "ok" and labels[r["sample_id"]] == label)
        n = sum(own.values())
        entropy = -sum(v / n * math.log2(v / n) for v in own.values())
        assert c.entropy == pytest.approx(entropy)
        assert c.normalised == pytest.approx(entropy / math.log2(n))
        assert c.most_common == pytest.approx(max(own.values()) / n)


@pytest.mark.parametrize(
    ("text", "stance", "thing"),
    [
        ("He is standing and holding a remote control in his hand.", "standing", "remote control"),
        (
            "She is sitting on a chair. She is holding a large blue jacket up to her face.",
            "sitting",
            "jacket",
        ),
        ("No, the person is not holding anything in their hand. They are standing.", "standing", ""),
        ("The person is holding still.", "", ""),
        ("They are not standing, they are sitting and holding two cups.", "sitting", "cups"),
        ("He stands while she sits.", "both", ""),
        ("He is not currently holding a cup.", "", ""),
    ],
)
def test_posture_and_held_thing_are_read_from_the_answer(text, stance, thing):
    assert caption_stats.posture(text) == stance
    assert caption_stats.held(text) == thing


def test_samples_that_say_the_same_or_contradict_themselves_are_counted():
    corpus = Corpus.of(
        [["standing", "standing"], ["standing", "sitting"], ["a", None], ["he sits", "he is standing"]]
    )
    w = caption_stats.describe(corpus)
    assert w is not None
    assert w.all_equal == pytest.approx(1 / 3)
    assert w.contradicting == pytest.approx(2 / 4)


def test_lift_is_the_share_in_the_class_over_the_share_in_all():
    corpus = Corpus.of([["holding a cup"] * 4, ["holding a book", "holding a book", "x", "holding a cup"]])
    first, second = caption_stats.by_class(corpus, np.array([0, 1]), {0: "drink", 1: "read"})
    assert (first.thing, first.thing_share, first.lift) == ("cup", 1, pytest.approx(8 / 5))
    assert (second.thing, second.thing_share, second.lift) == ("book", 0.5, pytest.approx(2))


def test_agreement_equals_a_naive_count():
    ours = [["he is sitting", "he holds a cup"], ["a a b", None]]
    theirs = [["he is standing", "he holds a cup"], ["a b c", "x"]]
    found = caption_stats.agreement(Corpus.of(ours), Corpus.of(theirs))
    pairs = [
        (a, b)
        for x, y in zip(ours, theirs, strict=True)
        for a, b in zip(x, y, strict=True)
        if a is not None and b is not None
    ]

    def f1(a, b):
        x, y = Counter(caption_stats.words(a)), Counter(caption_stats.words(b))
        return 2 * (x & y).total() / (x.total() + y.total())

    def jaccard(a, b):
        x, y = set(caption_stats.words(a)), set(caption_stats.words(b))
        return len(x & y) / len(x | y)

    assert found is not None
    assert found.pairs == len(pairs) == 3
    assert found.exact == pytest.approx(1 / 3)
    assert found.f1 == pytest.approx(np.mean([f1(*p) for p in pairs]))
    assert found.jaccard == pytest.approx(np.mean([jaccard(*p) for p in pairs]))
    assert (found.posture, found.posture_pairs, found.holding) == (0, 1, 1)


def test_shuffling_gives_every_sample_anothers_captions():
    corpus = Corpus.of([[str(i)] for i in range(20)])
    other = caption_stats.shuffled(corpus, 3)
    assert sorted(other.codes[:, 0]) == list(range(20))
    assert (other.codes != corpus.codes).all()


def test_captions_of_the_same_samples_are_compared(work, tmp_path):
    ids = load(work).table["sample_id"].to_pylist()
    captions: dict[str, list[str]] = {}
    for shard in range(len(load(work).plan)):
        for row in read_shard(shard_path(work, "captions", shard)).to_pylist():
            captions.setdefault(row["sample_id"], []).append(row["caption"])
    path = tmp_path / "same.json"
    path.write_text(json.dumps({i: captions[i] for i in ids[:8]}))
    found = audit.measure(work, path).released
    assert found is not None
    assert found.agreement is not None
    assert found.control is not None
    assert found.common == 8
    assert (found.agreement.exact, found.agreement.f1) == (1, pytest.approx(1))
    assert found.control.f1 < 1
    assert len(found.slots) == len(captions[ids[0]])
    assert_self_contained(audit.audit(work, tmp_path / "a.html", path))
    assert json.loads((tmp_path / "a.json").read_text())["released"]["common"] == 8


def test_the_released_captions_are_what_their_authors_counted(shared):
    path = shared / "captions" / "pkuv2_language.zip"
    table = audit.read_captions(path)
    w = caption_stats.describe(Corpus.of(list(table.values())))
    assert w is not None
    assert (w.samples, w.captions, w.unique) == (6952, 111_232, 47_529)
    assert round(100 * w.repeats) == 57
    # 25 exceed CLIP's context by its own tokenizer; without it the count is a lower bound
    assert 15 <= w.over_context <= 25


# ------------------------------------------------------------------------------------------- browser

PROBE = """<script>addEventListener("load", () => {{
const frame = document.querySelector("iframe"), root = frame.contentDocument.documentElement;
document.title = [root.scrollWidth, frame.contentWindow.innerWidth, root.scrollHeight,
  [...frame.contentDocument.images].filter(i => i.naturalWidth > 0).length].join(" ");
}})</script><title></title><iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>"""


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("kind", ["inspect", "explain", "audit"])
def test_a_browser_shows_the_page_without_overflow(odd, tmp_path, kind, width):
    browser = next(
        (b for n in ("chromium", "chromium-browser", "google-chrome") if (b := shutil.which(n))), None
    )
    if browser is None:
        pytest.skip("needs a chromium binary")
    page = tmp_path / "page.html"
    if kind == "inspect":
        gallery.gallery(odd, page, limit=6)
    elif kind == "explain":
        trace.explain(odd, load(odd).table["sample_id"][0].as_py(), page)
    else:
        audit.audit(odd, page)
    (tmp_path / "probe.html").write_text(PROBE.format(width=width))
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --allow-file-access-from-files --virtual-time-budget=5000"
    )
    done = subprocess.run(
        [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width + 40},1000",
         "--dump-dom", f"file://{tmp_path / 'probe.html'}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", done.stdout)
    assert found, done.stdout[:500] + done.stderr[-500:]
    wide, window, tall, images = map(int, found.groups())
    assert window == width
    assert wide <= window
    assert tall > 900
    assert images > 0 or kind == "audit"
