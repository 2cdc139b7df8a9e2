"""The report's own drawings: spread of similarities and accuracy by class, true to what they are given."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from c2vl_evaluation.report import build, classes, figures
from c2vl_evaluation.report import svg as canvas
from test_figures import SVG, text_of

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
    own, others = (outlines(figures.similarity_histograms(one), figures.COLOURS[n]) for n in (0, 1))
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
    svg = classes.draw(("wave", "clap", "never"), SERIES)
    marks = [u for u in ET.fromstring(svg).iter(f"{SVG}use") if figures.COLOURS[0] in u.get("style", "")]
    places = [float(mark.get("x")) for mark in marks][:2]
    ticks = [
        (float(t.get("x") or re.search(r"translate\((\S+)", t.get("transform", "(0"))[1]), t.text)
        for t in ET.fromstring(svg).iter(f"{SVG}text")
    ]
    at = {text: x for x, text in ticks if text in {"0", "100"}}
    assert [(x - at["0"]) / (at["100"] - at["0"]) for x in places] == pytest.approx([1, 0.25], abs=0.01)
    assert {"wave", "clap", "never", "main", "random encoder"} <= set(text_of(svg))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("a b", "a b"), ("x" * 40, "x" * 9 + "…"), ("two  words and more", "two words…"), ("", "")],
)
def test_long_names_are_cut_even_within_a_word(name, wanted):
    assert canvas.short(name, 10) == wanted
