"""Tracking: people found in single frames become tracks over time, of which a given number is kept.

A person of one frame continues the track that is nearest by the overlap of their boxes (IoU) and the distance of their
joints; pairs are chosen together, by the Hungarian algorithm. Of all tracks those of large, sure people who are long in
view are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from c2vl_pipeline.readers.base import Array

_SURE = 0.1
"""Score from which a joint counts here."""

_SAME = 0.1
"""Mean distance of joints, in diagonals of the larger box, below which two poses of one frame are one person."""

_FAR = 1.3
"""Cost from which on a person is another one: boxes that do not overlap, and joints 0.3 diagonals away."""

_BRIEF = 10
"""A track with less than this part of the longest one's frames is taken for a mistake of the detector."""

PATIENCE = 15
"""Frames for which somebody may be out of view and still continue the track."""


@dataclass(frozen=True, slots=True)
class Box:
    """One person: pixels (x0, y0, x1, y1) and a score in [0, 1]."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """The joints of one person in one frame, in the order of the estimator's layout."""

    pixels: Array
    """(V, 3): x and y in pixels of the frame, and a score in [0, 1]."""
    score: float
    """How sure it is that somebody is there, in [0, 1]."""
    world: Array | None = None
    """(V, 3) metres, for estimators of a 3D layout: x to the right of the image, y down, z away from the camera."""


@dataclass(eq=False)
class Track:
    """One person over time: frame number -> the person in it."""

    people: dict[int, Person] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """Number of the last frame."""
        return next(reversed(self.people))

    def weight(self, areas: dict[int, float]) -> float:
        """Return the sum over frames of the share of the image that the box covers, times the score."""
        return sum(_area(p) / areas[n] * p.score for n, p in self.people.items())


def box_of(person: Person) -> Box:
    """Return the box around the joints of a person that are sure, or around all if none is."""
    sure = person.pixels[person.pixels[:, 2] >= _SURE] if (person.pixels[:, 2] >= _SURE).any() else person.pixels
    (x0, y0), (x1, y1) = sure[:, :2].min(axis=0), sure[:, :2].max(axis=0)
    return Box(float(x0), float(y0), float(x1), float(y1), person.score)


def _area(person: Person) -> float:
    box = box_of(person)
    return (box.x1 - box.x0) * (box.y1 - box.y0)


def _diagonal(one: Person, other: Person) -> float:
    sizes = [np.hypot(b.x1 - b.x0, b.y1 - b.y0) for b in (box_of(one), box_of(other))]
    return max(float(max(sizes)), 1e-6)


def _apart(one: Person, other: Person) -> float:
    """Return the mean distance of the joints that both have, in diagonals of the larger box."""
    both = (one.pixels[:, 2] >= _SURE) & (other.pixels[:, 2] >= _SURE)
    both = both if both.any() else np.ones_like(both)
    distance = np.linalg.norm(one.pixels[both, :2] - other.pixels[both, :2], axis=1).mean()
    return float(distance) / _diagonal(one, other)


def overlap(a: Box, b: Box) -> float:
    """Return the intersection of two boxes over their union."""
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - both)


def distinct(people: Sequence[Person]) -> list[Person]:
    """Return the people of one frame without those that are another, surer one: two boxes may hold one person."""
    kept: list[Person] = []
    for person in sorted(people, key=lambda p: -p.score):
        if all(_apart(person, other) >= _SAME for other in kept):
            kept.append(person)
    return kept


def cost(one: Person, other: Person) -> float:
    """Return how unlike two people of different frames are: 1 - IoU of their boxes, plus the distance of their joints."""
    return 1 - overlap(box_of(one), box_of(other)) + _apart(one, other)


def track(frames: Iterable[tuple[int, Sequence[Person]]]) -> list[Track]:
    """Join the people of frames, given in order of time, to tracks."""
    from scipy.optimize import linear_sum_assignment

    tracks: list[Track] = []
    alive: list[Track] = []
    for number, found in frames:
        people = distinct(found)
        alive = [one for one in alive if number - one.last <= PATIENCE]
        free = set(range(len(people)))
        if alive and people:
            costs: npt.NDArray[np.float64] = np.array(
                [[cost(one.people[one.last], person) for person in people] for one in alive]
            )
            for row, column in zip(*linear_sum_assignment(np.minimum(costs, _FAR)), strict=True):
                if costs[row, column] < _FAR:
                    alive[row].people[number] = people[column]
                    free.discard(int(column))
        new = [Track({number: people[n]}) for n in sorted(free)]
        tracks += new
        alive += new
    return tracks


def chosen(tracks: Sequence[Track], areas: dict[int, float], bodies: int) -> list[dict[int, Person]]:
    """Return the people to keep, at most `bodies`, each as frame number -> person; the main one first.

    Brief tracks are dropped; the others are taken in order of their weight (`Track.weight`). A track joins the first person
    with whom it shares no frame; one that shares frames with all of them is a further person, or dropped if they are enough.

    *Reading:* as in published loaders of NTU RGB+D, a body that comes after another has gone continues it.

    Args:
        tracks: of one sample.
        areas: frame number -> pixels of the frame.
        bodies: most people.
    """
    slots: list[dict[int, Person]] = []
    least = max((len(one.people) for one in tracks), default=0) / _BRIEF
    lasting = [one for one in tracks if len(one.people) >= least]
    for one in sorted(lasting, key=lambda each: -each.weight(areas)):
        place = next((slot for slot in slots if slot.keys().isdisjoint(one.people)), None)
        if place is not None:
            place.update(one.people)
        elif len(slots) < bodies:
            slots.append(dict(one.people))
    return slots
