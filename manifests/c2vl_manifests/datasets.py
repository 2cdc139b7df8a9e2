"""Datasets as data: ids and their fields, classes, benchmarks and splits, and the expected number of samples.

Each built-in dataset is one TOML file under `data/datasets`; custom datasets use `generic` with a table of samples.
A benchmark is one rule about one field of the id, so splits are computed. Lists of ids exist only where no rule does:
for missing skeletons, for samples that published work drops and for sets whose subjects repeat at will.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import ConfigError, DataError
from c2vl_manifests.reading import from_toml

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Benchmark(_Table):
    """One rule that splits samples: a sample trains if its `field` is in `train`, or is not in `test`.

    Ids on the list `drops` are in neither split, so that one packed set serves two readings of one rule.
    """

    field: Literal["subject", "view", "setup", "video"]
    train: tuple[int, ...] | None = None
    test: tuple[int, ...] | None = None
    range: bool = False
    """If true, `test` is (first, last), both included, instead of a list."""
    drops: str | None = None
    """File in `data/datasets` listing the samples that published work leaves out of this benchmark."""

    @field_validator("drops")
    @classmethod
    def _known_list(cls, drops: str | None) -> str | None:
        return _known_list(drops)

    def dropped(self) -> frozenset[str]:
        """Return the ids that are in neither split."""
        return frozenset() if self.drops is None else _ids_of_list(self.drops)

    def split(self, fields: Mapping[str, int]) -> Split:
        """Return the split of a sample with these id fields."""
        value = fields[self.field]
        if self.train is not None:
            return "train" if value in self.train else "test"
        assert self.test is not None
        tests = range(self.test[0], self.test[1] + 1) if self.range else self.test
        return "test" if value in tests else "train"


class Expected(_Table):
    """Published numbers of samples, for the check before work."""

    samples: int
    usable: int | None = None
    """Samples whose skeleton is not on the list of missing skeletons."""
    videos: int | None = None
    splits: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """benchmark -> (train, test) among the usable samples."""


class Sessions(_Table):
    """Subjects recorded in each setup, each with all repeats, views and actions."""

    repeats: tuple[int, ...]
    views: tuple[int, ...]
    actions: tuple[int, int]
    later_setups: int | None = None
    """First setup that recorded `later_actions` instead of `actions`."""
    later_actions: tuple[int, int] | None = None
    subjects: dict[int, tuple[int, ...]]


class Trials(_Table):
    """Every class performed by every subject `repeats` times: ids of the form `form`, without the dataset's `lost`."""

    form: str
    subjects: int
    repeats: int


class Recordings(_Table):
    """Long recordings of every setup and subject from three sides, named `form`, without the dataset's `lost`."""

    form: str
    setups: int
    subjects: int


class Detector(_Table):
    """Person detector without a model that suits this dataset's videos."""

    backend: str
    options: dict[str, Any] = Field(default_factory=dict)


class Dataset(_Table):
    """One dataset, as its TOML file describes it."""

    name: str
    title: str
    reader: str
    """Name in `c2vl_pipeline.readers.READERS`."""
    layout: str
    bodies: int
    fps: int
    id_pattern: str
    """Regular expression of a sample's (PKU-MMD: a recording's) id; its named groups are the fields."""
    video_suffixes: tuple[str, ...]
    skeleton_suffixes: tuple[str, ...]
    default_recipe: str
    detector: Detector
    mirrored: bool = False
    """The videos show the scene as a mirror does, so that a pose estimator takes left for right."""
    detector_in_image: Detector | None = None
    """The one to use instead if all joints turn out to be in the images of the videos."""
    published: str = ""
    """What others report of C²VL on it, with measure and source, in one sentence for the notes of a table."""
    classes: tuple[str, ...] = ()
    actions: tuple[int, ...] = ()
    """Number of each class in the ids; empty: 1, 2, 3, …"""
    ids: str | None = None
    """File in `data/datasets` listing every id, for a dataset that no rule describes."""
    missing_list: str | None = None
    lost: tuple[str, ...] = ()
    expected: Expected | None = None
    benchmarks: dict[str, Benchmark] = Field(default_factory=dict)
    zero_shot: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Zero-shot split, named `seen/unseen` by its numbers of classes -> its unseen classes, counted from 0."""
    sessions: Sessions | None = None
    trials: Trials | None = None
    recordings: Recordings | None = None

    @field_validator("ids", "missing_list")
    @classmethod
    def _known_lists(cls, name: str | None) -> str | None:
        return _known_list(name)

    @field_validator("benchmarks")
    @classmethod
    def _one_rule(cls, benchmarks: dict[str, Benchmark]) -> dict[str, Benchmark]:
        for name, rule in benchmarks.items():
            if (rule.train is None) == (rule.test is None):
                raise ValueError(f"benchmark {name!r} must give exactly one of `train` and `test`")
            if rule.range and (rule.test is None or len(rule.test) != 2):
                raise ValueError(f"benchmark {name!r} is a range; `test` must be its first and its last number")
        return benchmarks

    @model_validator(mode="after")
    def _splits_of_classes(self) -> Dataset:
        for name, unseen in self.zero_shot.items():
            if set(unseen) - set(range(len(self.classes))) or len(set(unseen)) < len(unseen):
                raise ValueError(
                    f"zero-shot split {name!r} = {list(unseen)}; expected each class once, numbered from 0 to {len(self.classes) - 1}"
                )
            if name != (counts := f"{len(self.classes) - len(unseen)}/{len(unseen)}"):
                raise ValueError(f"zero-shot split {name!r} has {counts} seen/unseen classes; name it {counts!r}")
        return self

    @model_validator(mode="after")
    def _rules_use_known_fields(self) -> Dataset:
        try:
            known = set(re.compile(self.id_pattern).groupindex)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"id_pattern is not a regular expression ({error})") from error
        known |= {"view"} if "side" in known else set()
        for name, rule in self.benchmarks.items():
            if rule.field not in known:
                raise ValueError(
                    f"benchmark {name!r} splits by {rule.field!r}, which id_pattern does not name; it names {', '.join(sorted(known)) or 'nothing'}"
                )
        return self

    def parse_id(self, sample_id: str) -> dict[str, int]:
        """Return the numeric fields of an id, such as subject, view, setup, repeat, action.

        Raises:
            DataError: the id does not match `id_pattern`.
        """
        match = re.fullmatch(self.id_pattern, sample_id)
        if match is None:
            raise DataError(f"{sample_id!r} is not an id of {self.title}; expected the form {self.id_pattern}")
        fields = {k: int(v) for k, v in match.groupdict().items() if v is not None and v.isdigit()}
        side = match.groupdict().get("side")
        if side is not None:
            fields["view"] = "LMR".index(side) + 1
        return fields

    def label(self, fields: Mapping[str, int]) -> int:
        """Return the index in `classes` of the action of these id fields."""
        return self.actions.index(fields["action"]) if self.actions else fields["action"] - 1

    def splits(self, fields: Mapping[str, int], sample_id: str = "") -> dict[str, Split]:
        """Return benchmark -> split of a sample with these id fields; benchmarks that drop the id are left out."""
        return {name: rule.split(fields) for name, rule in self.benchmarks.items() if sample_id not in rule.dropped()}

    def known_missing(self) -> frozenset[str]:
        """Return the ids whose skeletons the dataset's authors list as missing or incomplete."""
        return frozenset() if self.missing_list is None else _ids_of_list(self.missing_list)

    def expected_ids(self) -> Iterator[str]:
        """Yield every id that `ids`, `sessions` or `trials` give, in order."""
        if self.ids is not None:
            yield from sorted(_ids_of_list(self.ids))
        elif self.sessions is not None:
            s = self.sessions
            for setup, subjects in s.subjects.items():
                later = s.later_setups is not None and setup >= s.later_setups
                first, last = s.later_actions if later and s.later_actions else s.actions
                for view in s.views:
                    for subject in subjects:
                        for repeat in s.repeats:
                            for action in range(first, last + 1):
                                yield f"S{setup:03d}C{view:03d}P{subject:03d}R{repeat:03d}A{action:03d}"
        elif self.trials is not None:
            t = self.trials
            for action in range(1, len(self.classes) + 1):
                for subject in range(1, t.subjects + 1):
                    for repeat in range(1, t.repeats + 1):
                        name = t.form.format(action=action, subject=subject, repeat=repeat)
                        if name not in self.lost:
                            yield name

    def expected_recordings(self) -> Iterator[str]:
        """Yield the name of every long recording that `recordings` gives, in order."""
        if self.recordings is not None:
            r = self.recordings
            for setup in range(1, r.setups + 1):
                for subject in range(1, r.subjects + 1):
                    for side in "LMR":
                        name = r.form.format(setup=setup, subject=subject, side=side)
                        if name not in self.lost:
                            yield name


_FOLDER = resources.files("c2vl_manifests") / "data" / "datasets"


def _files(suffix: str) -> list[str]:
    return sorted(f.name for f in _FOLDER.iterdir() if f.name.endswith(suffix))


def _known_list(name: str | None) -> str | None:
    """Return the name of a list in `data/datasets` or None; raise ValueError for another name."""
    lists = _files(".txt")
    if name is not None and name not in lists:
        raise ValueError(f"{name[:60]!r} is not a list of samples; use one of {', '.join(lists)}")
    return name


@lru_cache
def _ids_of_list(name: str) -> frozenset[str]:
    """Return the ids of a list in `data/datasets`."""
    return frozenset((_FOLDER / name).read_text("ascii").split())


def dataset_names() -> list[str]:
    """Return the names of the built-in datasets."""
    return [name.removesuffix(".toml") for name in _files(".toml")]


@lru_cache
def load_dataset(name: str) -> Dataset:
    """Return a built-in dataset by name.

    Raises:
        ConfigError: the name is unknown; similar names are given.
    """
    names = dataset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown dataset {name!r}; use one of {', '.join(names)}{hint}")
    return parse_dataset((_FOLDER / f"{name}.toml").read_text("utf-8"), f"{name}.toml")


def parse_dataset(text: str, source: str) -> Dataset:
    """Return the dataset that a TOML text describes; error messages name it `source`.

    Raises:
        ConfigError: the text does not describe a dataset, or its rules contradict each other.
    """
    try:
        return Dataset.model_validate(from_toml(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    raise ConfigError(f"{source}: not a description of a dataset ({reason[:300]})")


def resolve_detector(spec: EngineSpec, dataset: Dataset, joints_in_image: bool = False) -> EngineSpec:
    """Replace the backend `dataset` by the detector that suits the dataset's videos."""
    if spec.backend != "dataset":
        return spec
    chosen = (dataset.detector_in_image if joints_in_image else None) or dataset.detector
    return spec.model_copy(update={"backend": chosen.backend, "options": {**chosen.options, **spec.options}})
