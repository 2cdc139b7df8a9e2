"""Figures of the report."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from c2vl_evaluation.report import build, figures
from c2vl_evaluation.report import classes as report_classes
from c2vl_evaluation.report import svg as canvas
from c2vl_evaluation.report.svg import COLOURS, GREY
from c2vl_evaluation.results import Table, TableRow
from support.report import both, score

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("wave", "clap & <jump>", "cost $x_1$", "sit down")


def curves(names=("partition(cosine)", "shuffled pairs"), seeds=2, epochs=4):
    def one(name, seed):
        return [
            {
                "epoch": e,
                "loss": 9.0 - e - seed / 7 - len(name) / 9,
                "alpha": 0.9 - 0.2 * e,
                **{f"{k}/positive": 0.1 * e for k in ("vision", "language")},
                **{f"{k}/negative": 0.01 * e for k in ("vision", "language")},
            }
            for e in range(epochs)
        ]

    return {name: [one(name, seed) for seed in range(seeds)] for name in names}


def table(*rows, classes=NAMES):
    made = [
        TableRow(
            name=name, role=role, seed=seed, run=f"runs/{seed}", results=both(knn, linear),
            epochs=3, seconds=1, samples=9, left_out=0,
        )
        for name, role, seed, knn, linear in rows
    ]  # fmt: skip
    return Table(
        dataset="d", title="D", benchmark="xsub", recipe="r", recipe_fingerprint="f", data_fingerprint="g", engines={},
        classes=classes, train=9, test=9, chance=score(0.25), majority=score(0.3), rows=tuple(made),
    )  # fmt: skip


def features(count=60, classes=4, dims=8):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    return (rng.normal(size=(classes, dims))[labels] * 3 + rng.normal(size=(count, dims))).astype(np.float32), labels


def matrix(classes=4, seed=0, count=80):
    rng = np.random.default_rng(seed)
    return figures.confusion_counts(rng.integers(-1, classes, count), rng.integers(0, classes, count), classes)


ROWS = (
    ("partition(cosine)", "pretrained", 0, 0.6, 0.7),
    ("partition(cosine)", "pretrained", 1, 0.62, 0.7),
    ("random encoder", "floor", 0, 0.4, 0.5),
    ("supervised", "ceiling", 0, 0.8, 0.9),
)
DRAWINGS = {
    "training": lambda: figures.training_curves(curves()),
    "one epoch": lambda: figures.training_curves(curves(epochs=1, seeds=1)),
    "many names": lambda: figures.training_curves(curves([f"name {i}" for i in range(17)], 1)),
    "similarity": lambda: figures.similarity_curves(curves()),
    "confusion": lambda: figures.confusion_matrix(matrix(), NAMES),
    "scatter": lambda: figures.scatter(figures.project(*features()), NAMES, [f"clip <{n}>" for n in range(60)]),
    "bars": lambda: figures.accuracy_bars(table(*ROWS)),
}


def text_of(svg):
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_svg_is_valid_small_and_loads_nothing(draw):
    svg = draw()
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert root.get("viewBox")
    assert len(svg) < 200_000
    links = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', svg)
    assert all((a or b).startswith("#") for a, b in links)
    assert "<style" not in svg  # it would hold for the whole page


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_equal_input_draws_equal_bytes(draw):
    assert draw() == draw()


@pytest.mark.slow
def test_drawings_of_one_page_share_no_id():
    ids = [re.findall(r'\bid="([^"]+)"', DRAWINGS[name]()) for name in ("training", "similarity", "scatter", "bars")]
    flat = [name for found in ids for name in found]
    assert flat
    assert len(flat) == len(set(flat))


def test_axes_take_the_colour_of_the_page():
    svg = DRAWINGS["training"]()
    assert f'color="{GREY}"' in svg  # alone
    assert svg.count(GREY) == 1
    assert "currentColor" in svg


@pytest.mark.slow
def test_matplotlib_settings_are_left_as_they_were():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    DRAWINGS["training"]()
    assert dict(mpl.rcParams) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training", "similarity"])
def test_every_run_name_is_in_the_legend(name):
    said = " ".join(text_of(DRAWINGS[name]()))
    assert all(run in said for run in curves())


@pytest.mark.parametrize("draw", [figures.training_curves, figures.similarity_curves])
@pytest.mark.parametrize("nothing", [{}, {"a": []}, {"a": [[{"epoch": 0, "accuracy": 1.0}]]}])
def test_no_curve_is_an_error_in_words(draw, nothing):
    with pytest.raises(ValueError, match="there is no curve to draw"):
        draw(nothing)


def test_one_kind_of_knowledge_draws_one_axis():
    only = {"a": [[{"epoch": e, "vision/positive": 0.1, "vision/negative": 0.0} for e in range(3)]]}
    said = text_of(figures.similarity_curves(only))
    assert "cosine of skeleton and vision" in said
    assert "cosine of skeleton and language" not in said


@pytest.mark.parametrize("seed", range(5))
def test_confusion_counts_match_naive_count(seed):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(-1, 6, 200), rng.integers(0, 6, 200)
    naive = [[sum((labels == i) & (predictions == j)) for j in range(6)] for i in range(6)]
    assert figures.confusion_counts(labels, predictions, 6).tolist() == naive


def test_confusion_matrix_shows_every_count_and_no_zero():
    counts = matrix()
    counts[2] = 0  # a class without test samples
    root = ET.fromstring(figures.confusion_matrix(counts, NAMES))
    tips = sorted(title.text for title in root.iter(f"{SVG}title"))
    expected = [
        f"{NAMES[i] if i == j else f'{NAMES[i]} taken for {NAMES[j]}'}: {counts[i, j]} of {counts[i].sum()}"
        for i, j in zip(*np.nonzero(counts), strict=True)
    ]
    assert tips == sorted(expected)
    said = [text.text for text in root.iter(f"{SVG}text")]
    assert all(said.count(name) == 2 for name in NAMES)
    shares = [f"{100 * counts[i, j] / counts[i].sum():.0f}" for i, j in zip(*np.nonzero(counts), strict=True)]
    assert sorted(text for text in said if text not in NAMES) == sorted(shares)


def test_sixty_classes_keep_their_names_apart():
    names = [f"touch the other person's pocket {i}" for i in range(60)]
    root = ET.fromstring(figures.confusion_matrix(matrix(60, count=2000), names))
    rows = [t for t in root.iter(f"{SVG}text") if "rotate" not in t.get("transform")]
    heights = [float(re.search(r"translate\(\S+ (\S+)\)", t.get("transform"))[1]) for t in rows]
    assert len(rows) == 60
    assert min(np.diff(heights)) >= float(root.get("font-size"))


def test_counts_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"counts of shape \(4, 4\) for 3 class names"):
        figures.confusion_matrix(matrix(), NAMES[:3])


def test_projection_takes_the_most_frequent_classes_ties_by_id():
    labels = np.repeat(np.arange(13), [3, 3, 3, 3, 3, 3, 3, 3, 9, 3, 3, 3, 4])
    labels = np.append(labels, [-1] * 50)
    values = np.random.default_rng(0).normal(size=(len(labels), 4)).astype(np.float32)
    made = figures.project(values, labels)
    assert made.classes == (8, 12, 0, 1, 2, 3, 4, 5, 6, 7)
    assert set(made.labels.tolist()) == set(made.classes)
    assert made.points.shape == (len(made.labels), 2)


def test_projection_is_drawn_at_random_down_to_its_limit():
    values, labels = features(200)
    made = figures.project(values, labels, limit=40)
    again = figures.project(values, labels, limit=40)
    assert len(made.points) == 40
    assert made.perplexity == 13
    assert np.array_equal(made.points, again.points)
    assert set(made.labels.tolist()) == {0, 1, 2, 3}


def test_projection_knows_nothing_of_the_features_length():
    values, labels = features()
    doubled = figures.project(values * 2, labels)
    assert np.array_equal(figures.project(values, labels).points, doubled.points)


@pytest.mark.parametrize("broken", ["few", "nan"])
def test_projection_refuses_what_it_cannot_lay_out(broken):
    values, labels = features()
    if broken == "nan":
        values[3, 2] = np.nan
    else:
        values, labels = values[:4], labels[:4]
    with pytest.raises(ValueError, match="at least five labelled samples with finite features"):
        figures.project(values, labels)


def test_bars_give_mean_and_deviation_and_mark_the_controls():
    said = " ".join(text_of(DRAWINGS["bars"]()))
    assert "61.0 ± 1.4" in said
    for word in ("floor", "ceiling", "supervised", "random encoder"):
        assert word in said


@pytest.mark.parametrize(("knn", "linear"), [(0.2, 0.9), (0.9, 0.2)])
def test_bars_are_as_long_as_their_numbers_in_both_panels(knn, linear):
    root = ET.fromstring(figures.accuracy_bars(table(("a", "pretrained", 0, knn, linear))))
    bars = [path for path in root.iter(f"{SVG}path") if COLOURS[0] in path.get("style", "")]
    across = [[float(x) for x in re.findall(r"[ML] (\S+) \S+", bar.get("d"))] for bar in bars]
    lengths = [max(xs) - min(xs) for xs in across]
    room = [float(r.get("x")) + float(r.get("width")) for clip in root.iter(f"{SVG}clipPath") for r in clip]
    assert lengths[0] / lengths[1] == pytest.approx(knn / linear, rel=0.01)
    assert max(max(xs) for xs in across) < min(room)


def test_each_point_of_a_projection_names_its_clip():
    layout = figures.project(*features())
    root = ET.fromstring(DRAWINGS["scatter"]())
    titles = [node.text for node in root.iter(f"{SVG}title")]
    expected = [f"{NAMES[c]}, clip <{n}>" for c in layout.classes for n in layout.rows[layout.labels == c]]
    assert titles == expected
    assert len(titles) == 60


def test_class_names_are_not_read_as_formulas():
    said = text_of(DRAWINGS["scatter"]())
    assert "cost $x_1$" in said
    assert "clap & <jump>" in said


def labels_of(svg):
    """Where floor and ceiling are named in each panel: (name, anchor, x)."""
    found = []
    for node in ET.fromstring(svg).iter(f"{SVG}text"):
        if (said := "".join(node.itertext())) in {"floor", "ceiling"}:
            anchor = re.search(r"text-anchor: (\w+)", node.get("style", ""))
            place = node.get("x") or re.search(r"translate\((\S+?)[ ,]", node.get("transform", ""))[1]
            found.append((said, anchor[1] if anchor else "start", float(place)))
    return found


@pytest.mark.parametrize(("floor", "ceiling"), [(0.3, 0.8), (0.8, 0.3), (0.5, 0.5), (0.52, 0.5), (0.5, 0.52)])
def test_names_of_floor_and_ceiling_never_meet(floor, ceiling):
    rows = (("a", "pretrained", 0, 0.6, 0.6), ("r", "floor", 0, floor, floor), ("s", "ceiling", 0, ceiling, ceiling))
    found = labels_of(figures.accuracy_bars(table(*rows)))
    assert len(found) == 4
    for panel in (found[:2], found[2:]):
        (low, anchor, left), (high, other, right) = sorted(panel, key=lambda label: label[2])
        assert (anchor, other) == ("end", "start")
        assert right - left >= 4 - 0.02
        if floor != ceiling:
            assert (low, high) == (("floor", "ceiling") if floor < ceiling else ("ceiling", "floor"))


COUNTED = {
    "partition(cosine)": [
        {"vision/positive": [0, 4, 4, 0], "vision/negative": [2, 8, 8, 2]},
        {"vision/positive": [0, 0, 2, 6], "vision/negative": [0, 12, 8, 0]},
    ],
    "shuffled <pairs>": [{"vision/positive": [0, 4, 4, 0], "vision/negative": [0, 9, 9, 0]}],
}
SERIES = {
    "main": ("pretrained", np.array([1.0, 0.25, np.nan])),
    "random encoder": ("floor", np.array([0.5, 0.5, np.nan])),
}


def outlines(svg: str, colour: str) -> list[np.ndarray]:
    """Corners (n, 2) of the steps that are drawn in a colour, legend lines apart."""
    found = []
    for path in ET.fromstring(svg).iter(f"{SVG}path"):
        corners = re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))
        if f"stroke: {colour}" in path.get("style", "") and len(corners) > 3:
            found.append(np.array(corners, float))
    return found


@pytest.mark.slow
def test_spread_says_whose_it_is_and_loads_nothing():
    svg = figures.similarity_histograms(COUNTED)
    said = text_of(svg)
    assert "vision, partition(cosine)" in said
    assert "vision, shuffled <pairs>" in said
    assert {"own prompt, first epoch", "own prompt, last epoch", "other prompts, last epoch"} <= set(said)
    assert not any("language" in text for text in said)
    assert not re.search(r'(?:href|src)="(?!#)|url\((?!#)', svg)
    assert figures.similarity_histograms(COUNTED) == svg


def test_outlines_are_shares_of_their_own_pairs_at_their_own_cosine():
    one = {"a": COUNTED["partition(cosine)"]}
    own, others = (outlines(figures.similarity_histograms(one), COLOURS[n]) for n in (0, 1))
    assert len(own) == len(others) == 2  # first and last epoch
    ground = max(points[:, 1].max() for points in (*own, *others))
    heights = [ground - points[:, 1].min() for points in (own[0], others[0], own[1], others[1])]
    shares = [4 / 8, 8 / 20, 6 / 8, 12 / 20]
    assert np.array(heights) / heights[0] == pytest.approx(np.array(shares) / shares[0], rel=0.01)
    top = own[1][own[1][:, 1] == own[1][:, 1].min(), 0]
    highest = others[1][others[1][:, 1] == others[1][:, 1].min(), 0]
    assert top.min() > highest.max()  # the last bin lies right of the second


@pytest.mark.parametrize("nothing", [{}, {"a": []}, {"a": [{"other": [1, 2]}]}])
def test_no_counts_is_an_error_in_words(nothing):
    with pytest.raises(ValueError, match=r"no run counted its similarities \(histograms\.jsonl\)"):
        figures.similarity_histograms(nothing)


def test_an_epoch_that_counted_nothing_is_drawn_flat():
    empty = {"a": [{"vision/positive": [0, 0, 0, 0], "vision/negative": [0, 0, 0, 0]}]}
    assert "vision, a" in text_of(figures.similarity_histograms(empty))


def test_seeds_are_added_epoch_by_epoch_and_what_is_no_count_is_passed_over():
    runs = [
        [{"epoch": 0, "low": -1.0, "vision/positive": [1, 2]}, {"epoch": 5, "vision/positive": [0, 3]}],
        [{"epoch": 5, "vision/positive": [4, 0]}, {"epoch": 0, "vision/positive": [1, 1, 1]}],
        [{"epoch": 5, "vision/positive": "damaged", "vision/negative": [-1, 2]}],
    ]
    assert build._counted(runs) == [{"vision/positive": [1, 2]}, {"vision/positive": [4, 3]}]


def test_marks_of_classes_lie_at_their_accuracy():
    svg = report_classes.draw(("wave", "clap", "never"), SERIES)
    marks = [u for u in ET.fromstring(svg).iter(f"{SVG}use") if COLOURS[0] in u.get("style", "")]
    places = [float(mark.get("x")) for mark in marks][:2]
    ticks = [
        (float(t.get("x") or re.search(r"translate\((\S+)", t.get("transform", "(0"))[1]), t.text)
        for t in ET.fromstring(svg).iter(f"{SVG}text")
    ]
    at = {text: x for x, text in ticks if text in {"0", "100"}}
    assert [(x - at["0"]) / (at["100"] - at["0"]) for x in places] == pytest.approx([1, 0.25], abs=0.01)
    assert {"wave", "clap", "never", "main", "random encoder"} <= set(text_of(svg))


@pytest.mark.parametrize(
    ("name", "wanted"), [("a b", "a b"), ("x" * 40, "x" * 9 + "…"), ("two  words and more", "two words…"), ("", "")]
)
def test_long_names_are_cut_even_within_a_word(name, wanted):
    assert canvas.short(name, 10) == wanted
