"""Classes that a user names: by a zero-shot split of the dataset, by name, or by number.

Classes are left out of pre-training (`training.pretrain.exclude_classes`) and evaluated as unseen ones
(`c2vl-eval zeroshot --split`); both take the same words.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from c2vl_manifests.datasets import dataset_names, load_dataset
from c2vl_manifests.errors import ConfigError

_SHOWN = 80
"""Characters of a word that a message repeats."""


def zero_shot_splits(dataset: str) -> Mapping[str, tuple[int, ...]]:
    """Return the zero-shot splits of a dataset, name -> unseen classes; none for data of the user's own."""
    return load_dataset(dataset).zero_shot if dataset in dataset_names() else {}


def chosen_classes(words: Sequence[str | int], dataset: str, classes: Sequence[str], option: str) -> tuple[int, ...]:
    """Return the classes that words name, counted from 0, in ascending order.

    Args:
        words: names of zero-shot splits, names of classes, or their numbers from 0. A word that is a name is never
            taken for a number.
        dataset: name of the dataset.
        classes: names of its classes in the order of their numbers.
        option: what the words were given by, for messages.

    Raises:
        ConfigError: a word names no class or several, or a class is named twice.
    """
    found: set[int] = set()
    for word in words:
        for number in _numbers(word, dataset, classes, option):
            if number in found:
                raise ConfigError(f"{option}: class {number} ({classes[number]!r}) is named twice; name it once")
            found.add(number)
    return tuple(sorted(found))


def _numbers(word: str | int, dataset: str, classes: Sequence[str], option: str) -> Sequence[int]:
    """Return the numbers of the classes that one word names."""
    splits = zero_shot_splits(dataset)
    if isinstance(word, str):
        if word in splits:
            return splits[word]
        if same := [number for number, name in enumerate(classes) if name == word]:
            if len(same) > 1:
                numbers = " and ".join(map(str, same))
                raise ConfigError(f"{option}: {word!r} is the name of the classes {numbers}; give their numbers")
            return same
    if isinstance(word, int) or (word.isascii() and word.isdigit() and len(word) < 10):
        if 0 <= int(word) < len(classes):
            return [int(word)]
        raise ConfigError(
            f"{option}: class {word} does not exist; classes are numbered from 0 to {len(classes) - 1}"
            if classes
            else f"{option}: class {word} does not exist; the data name no classes"
        )
    raise ConfigError(
        f"{option}: {word[:_SHOWN]!r} is no class of {dataset} and no zero-shot split of it{_hint(word, classes, splits)}"
    )


def _hint(word: str, classes: Sequence[str], splits: Mapping[str, tuple[int, ...]]) -> str:
    """Return what could have been meant by a word that names nothing."""
    if near := difflib.get_close_matches(word[:_SHOWN], classes, 1):
        return f"; did you mean {near[0]!r}?"
    owners = [load_dataset(name).title for name in dataset_names() if word in zero_shot_splits(name)]
    said = f" (it is one of {' and '.join(owners)})" if owners else ""
    have = f"; its splits are {', '.join(splits)}" if splits else "; it has no splits"
    return f"{said}{have}, and classes are given by name or by number from 0"
