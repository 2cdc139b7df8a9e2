"""Datasets and joint layouts: golden counts, official lists and splits, and the messages of mistakes."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

from c2vl_manifests.datasets import Benchmark, dataset_names, load_dataset, resolve_detector
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import ConfigError, DataError


@lru_cache
def usable_splits(name: str) -> tuple[int, int, dict[str, tuple[int, int]]]:
    """Promised samples, usable ones, and (train, test) of each benchmark among the usable."""
    dataset = load_dataset(name)
    missing = dataset.known_missing()
    promised = list(dataset.expected_ids())
    assert len(set(promised)) == len(promised)
    usable = [i for i in promised if i not in missing]
    counts: Counter[tuple[str, str]] = Counter()
    for sample in usable:
        counts.update(dataset.splits(dataset.parse_id(sample)).items())
    return (len(promised), len(usable), {b: (counts[b, "train"], counts[b, "test"]) for b in dataset.benchmarks})


# --------------------------------------------------------------------------------------- golden counts


@pytest.mark.slow
def test_ntu60_has_the_published_counts() -> None:
    expected = {"xsub": (40_091, 16_487), "xview": (37_646, 18_932)}
    assert usable_splits("ntu60") == (56_880, 56_578, expected)


@pytest.mark.slow
def test_ntu120_has_the_published_counts() -> None:
    expected = {"xsub": (63_026, 50_919), "xset": (54_468, 59_477)}
    assert usable_splits("ntu120") == (114_480, 113_945, expected)


def test_utd_mhad_has_the_published_counts() -> None:
    assert usable_splits("utd-mhad") == (861, 861, {"xsub": (431, 430)})


def test_nw_ucla_has_the_published_counts() -> None:
    assert usable_splits("nw-ucla") == (1_484, 1_484, {"xsub": (754, 730), "xview": (1_020, 464)})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ntu60", "ntu120", "utd-mhad", "nw-ucla"])
def test_what_the_description_expects_is_what_its_rules_give(name: str) -> None:
    expected = load_dataset(name).expected
    assert expected is not None
    assert (expected.samples, expected.usable, expected.splits) == usable_splits(name)


def test_pku_promises_are_the_published_ones() -> None:
    second, first = load_dataset("pku-mmd-2").expected, load_dataset("pku-mmd-1").expected
    assert second is not None
    assert first is not None
    assert (second.samples, second.videos, second.splits["xsub"]) == (6_952, 1_009, (5_339, 1_613))
    assert (first.samples, first.videos) == (21_545, 1_076)
    assert first.splits == {"xsub": (18_841, 2_704), "xview": (14_372, 7_173)}


def test_the_whole_of_ntu60_is_the_beginning_of_ntu120() -> None:
    sixty = list(load_dataset("ntu60").expected_ids())
    assert set(sixty) <= set(load_dataset("ntu120").expected_ids())
    lists = load_dataset("ntu60").known_missing(), load_dataset("ntu120").known_missing()
    assert len(lists[1]) == 535
    assert len(lists[0] & set(sixty)) == 302


@pytest.mark.parametrize(
    ("name", "classes"),
    [("ntu60", 60), ("ntu120", 120), ("pku-mmd-1", 51), ("pku-mmd-2", 51), ("utd-mhad", 27), ("nw-ucla", 10)],
)
def test_every_class_has_one_name(name: str, classes: int) -> None:
    assert len(set(load_dataset(name).classes)) == classes


def test_pku_1_tests_on_recordings_291_to_334() -> None:
    rule = load_dataset("pku-mmd-1").benchmarks["xsub"]
    tests = [v for v in range(2, 365) if rule.split({"video": v}) == "test"]
    assert tests == list(range(291, 335))


def test_pku_2_reads_setup_subject_and_camera_from_a_recording() -> None:
    fields = load_dataset("pku-mmd-2").parse_id("A03N12-M")
    assert fields == {"setup": 3, "subject": 12, "view": 2}


# ---------------------------------------------------------------------------- against the official lists


def official(path: Path) -> set[str]:
    return set(re.findall(r"S\d{3}C\d{3}P\d{3}R\d{3}A\d{3}", path.read_text()))


def test_promised_less_missing_is_exactly_the_list_of_available_ntu_names(shared: Path) -> None:
    with gzip.open(shared / "ntu" / "available_names_120.txt.gz", "rt") as handle:
        available = handle.read().split()
    for name, names in (("ntu120", available), ("ntu60", available[:56_578])):
        dataset = load_dataset(name)
        missing = dataset.known_missing()
        ours = [i for i in dataset.expected_ids() if i not in missing]
        assert len(ours) == len(names)
        assert set(ours) == set(names)


def test_missing_skeletons_are_the_official_ones(shared: Path) -> None:
    big = official(shared / "ntu" / "NTU_RGBD120_samples_with_missing_skeletons.txt")
    small = official(shared / "ntu" / "NTU_RGBD_samples_with_missing_skeletons.txt")
    assert load_dataset("ntu120").known_missing() == big
    sixty = load_dataset("ntu60")
    assert sixty.known_missing() & set(sixty.expected_ids()) == small


def test_class_names_are_the_official_ones(shared: Path) -> None:
    names = [n.strip() for n in (shared / "ntu" / "class_names_120.txt").read_text().splitlines() if n.strip()]
    assert list(load_dataset("ntu120").classes) == names
    assert list(load_dataset("ntu60").classes) == names[:60]
    pku = [n.strip() for n in (shared / "pku" / "class_names_51.txt").read_text().splitlines() if n.strip()]
    assert list(load_dataset("pku-mmd-1").classes) == pku
    assert list(load_dataset("pku-mmd-2").classes) == pku


@pytest.mark.parametrize("benchmark", ["xsub", "xview"])
def test_pku_2_splits_are_the_official_files(shared: Path, benchmark: str) -> None:
    file = shared / "pku" / {"xsub": "pku_cross_subject_v2.txt", "xview": "pku_cross_view_v2.txt"}[benchmark]
    lines = file.read_text().splitlines()
    names = [re.findall(r"A\d\dN\d\d-[LMR]", line) for line in (lines[1], lines[3])]
    assert all(names)
    dataset = load_dataset("pku-mmd-2")
    for split, videos in zip(("train", "test"), names, strict=True):
        given = {v: dataset.splits(dataset.parse_id(v))[benchmark] for v in videos}
        assert set(given.values()) == {split}, {v for v, s in given.items() if s != split}
    if benchmark == "xsub":
        assert (len(set(names[0])), len(set(names[1]))) == (775, 234)


# --------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("ntu60", "a1_s1_t1"),
        ("ntu60", "S001C001P001R001A001_rgb"),
        ("ntu60", "S1C1P1R1A1"),
        ("utd-mhad", "S001C001P001R001A001"),
        ("pku-mmd-2", "A01N01-X"),
    ],
)
def test_a_foreign_id_is_refused_with_the_expected_form(dataset: str, name: str) -> None:
    spec = load_dataset(dataset)
    with pytest.raises(DataError) as caught:
        spec.parse_id(name)
    assert str(caught.value) == f"{name!r} is not an id of {spec.title}; expected the form {spec.id_pattern}"


def test_an_unknown_dataset_names_all_and_the_near_one() -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset("ntu-60")
    assert (
        str(caught.value) == f"unknown dataset 'ntu-60'; use one of {', '.join(dataset_names())}; did you mean 'ntu60'?"
    )
    with pytest.raises(ConfigError, match=r"^unknown dataset 'qqqq'; use one of [^;]*$"):
        load_dataset("qqqq")


def test_a_benchmark_with_both_rules_or_none_is_refused() -> None:
    table = load_dataset("pku-mmd-2").model_dump()
    for rule in ({"field": "view"}, {"field": "view", "train": [1], "test": [2]}):
        with pytest.raises(ValueError, match="benchmark 'xsub' must give exactly one of `train` and `test`"):
            type(load_dataset("pku-mmd-2")).model_validate(table | {"benchmarks": {"xsub": rule}})


def test_every_sample_is_in_exactly_one_split_of_a_rule() -> None:
    ranged = Benchmark(field="video", test=(3, 5), range=True)
    assert [ranged.split({"video": v}) for v in range(2, 7)] == ["train", "test", "test", "test", "train"]
    listed = Benchmark(field="video", test=(3, 5))
    assert [listed.split({"video": v}) for v in (3, 4, 5)] == ["test", "train", "test"]


def test_the_detector_is_the_one_that_suits_the_dataset() -> None:
    asked = EngineSpec(role="detector", backend="dataset", options={"threshold": 40})
    resolved = resolve_detector(asked, load_dataset("utd-mhad"))
    assert (resolved.backend, resolved.options) == ("motion", {"background": "black", "threshold": 40})
    named = EngineSpec(role="detector", backend="motion")
    assert resolve_detector(named, load_dataset("ntu60")) is named
