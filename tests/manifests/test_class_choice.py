"""Classes named by a zero-shot split, by name or by number, and the splits themselves."""

from __future__ import annotations

import re

import pytest

from c2vl_manifests.class_choice import chosen_classes, zero_shot_splits
from c2vl_manifests.datasets import dataset_names, load_dataset, parse_dataset
from c2vl_manifests.errors import ConfigError

OWN = ("wave", "sit down", "7", "wave twice", "clap", "clap")


def choose(*words: str | int) -> tuple[int, ...]:
    return chosen_classes(words, "own data", OWN, "--split")


@pytest.mark.parametrize(
    ("dataset", "split", "names"),
    [  # as the authors of the splits print them
        ("ntu60", "55/5", {"reading", "writing", "put on a hat/cap", "jump up", "touch pocket"}),
        ("ntu60", "48/12", {"brush hair", "pick up", "clapping", "tear up paper", "put on a shoe", "sneeze/cough",
                            "falling down", "nausea/vomiting", "pushing", "touch pocket", "walking towards", "walking apart"}),
        ("ntu120", "110/10", {"drop", "put on jacket", "salute", "headache", "punch/slap", "juggle table tennis ball",
                              "put object into bag", "cross arms", "butt kicks", "wield knife"}),
    ],
)  # fmt: skip
def test_splits_hold_the_classes_that_their_authors_name(dataset: str, split: str, names: set[str]) -> None:
    classes = load_dataset(dataset).classes
    assert {classes[number] for number in chosen_classes([split], dataset, classes, "--split")} == names


def test_the_numbers_in_the_name_of_a_split_are_those_of_its_classes() -> None:
    splits = {name: list(zero_shot_splits(name)) for name in dataset_names() if zero_shot_splits(name)}
    assert splits == {"ntu60": ["55/5", "48/12"], "ntu120": ["110/10", "96/24"], "pku-mmd-1": ["46/5", "39/12"]}
    for dataset, names in splits.items():
        for name in names:
            unseen, count = zero_shot_splits(dataset)[name], len(load_dataset(dataset).classes)
            assert name == f"{count - len(set(unseen))}/{len(set(unseen))}"
            assert set(unseen) < set(range(count))


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ('"2/1" = [3]', "expected each class once, numbered from 0 to 2"),
        ('"1/2" = [0, 0]', "expected each class once"),
        ('"2/1" = [0, 1]', "has 1/2 seen/unseen classes; name it '1/2'"),
    ],
)
def test_a_split_that_contradicts_its_dataset_is_refused(split: str, said: str) -> None:
    text = 'name="x"\ntitle="X"\nreader="generic"\nlayout="l"\nbodies=1\nfps=1\nid_pattern="a"\nvideo_suffixes=[]\n'
    text += 'skeleton_suffixes=[]\ndefault_recipe="paper"\ndetector={backend="m"}\nclasses=["a","b","c"]\n[zero_shot]\n'
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_dataset(text + split, "x.toml")


def test_classes_are_named_by_name_or_number_and_come_sorted() -> None:
    assert choose("wave twice", "wave", 1) == (0, 1, 3)
    assert choose("5", 4) == (4, 5)
    assert choose("7") == (2,)  # a name, though it looks like a number
    assert choose() == ()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wafe"], "'wafe' is no class of own data and no zero-shot split of it; did you mean 'wave'?"),
        (["55/5"], "(it is one of NTU RGB+D 60); it has no splits, and classes are given by name or by number from 0"),
        (["wave", 0], "class 0 ('wave') is named twice"),
        (["wave", "wave"], "class 0 ('wave') is named twice"),
        (["clap"], "'clap' is the name of the classes 4 and 5; give their numbers"),
        ([6], "class 6 does not exist; classes are numbered from 0 to 5"),
        ([-1], "class -1 does not exist"),
        (["-1"], "'-1' is no class"),
        (["²"], "'²' is no class"),
        ([""], "'' is no class"),
        (["9" * 5000], f"'{'9' * 80}' is no class"),
    ],
)  # fmt: skip
def test_words_that_name_no_class_are_refused(words: list[str | int], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        choose(*words)


def test_a_split_of_another_dataset_is_refused_with_those_of_this_one() -> None:
    with pytest.raises(ConfigError) as caught:
        chosen_classes(["46/5"], "ntu60", load_dataset("ntu60").classes, "--split")
    assert "(it is one of PKU-MMD I); its splits are 55/5, 48/12" in str(caught.value)
    with pytest.raises(ConfigError, match="the data name no classes"):
        chosen_classes(["0"], "own data", (), "--split")
