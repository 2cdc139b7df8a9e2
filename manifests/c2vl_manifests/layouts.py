"""Joint layouts: one table of joints and parents from which bones, graphs and poses derive.

A layout is written once, as names and the parent of each joint. The 25-joint table reproduces the published
bone pairs of NTU RGB+D (1-based: (1,2) (2,21) (3,21) (4,3) (5,21) ... (25,12)); joint 21, the middle of the
shoulders, is its own parent and the graph's centre. Own layouts come as TOML: `c2vl_manifests.datasets`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from c2vl_manifests.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """Joints of one skeleton: `names[j]`, `parents[j]` (an index; the centre is its own parent).

    `dims` is 2 or 3 coordinates a joint; the vertical coordinate is the second and points up.
    """

    name: str
    names: tuple[str, ...]
    parents: tuple[int, ...]
    dims: int = 3

    def __post_init__(self) -> None:
        if len(self.names) != len(self.parents):
            raise ConfigError(
                f"layout {self.name!r} names {len(self.names)} joints but gives {len(self.parents)} parents; "
                "give one parent a joint"
            )
        if len(set(self.names)) != len(self.names):
            twice = sorted({n for n in self.names if self.names.count(n) > 1})
            raise ConfigError(
                f"layout {self.name!r} names {', '.join(twice)} twice; joint names must be unique"
            )
        if self.dims not in {2, 3}:
            raise ConfigError(f"layout {self.name!r} has dims = {self.dims}; 2 or 3 coordinates are possible")
        centres = [j for j, p in enumerate(self.parents) if p == j]
        if len(centres) != 1:
            raise ConfigError(
                f"layout {self.name!r} has {len(centres)} joints that are their own parent; "
                "exactly one, the centre, must be"
            )
        for joint in range(len(self.names)):
            seen, at = set(), joint
            while at != centres[0]:
                if at in seen:
                    raise ConfigError(
                        f"layout {self.name!r}: the parents of joint {self.names[joint]!r} form a ring; "
                        f"every chain of parents must end at the centre {self.names[centres[0]]!r}"
                    )
                seen.add(at)
                at = self.parents[at]

    @cached_property
    def centre(self) -> int:
        """Index of the joint that is its own parent."""
        return next(j for j, p in enumerate(self.parents) if p == j)

    @cached_property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(child, parent) of every bone, without the centre's bone to itself."""
        return tuple((j, p) for j, p in enumerate(self.parents) if j != p)

    @property
    def joints(self) -> int:
        """Number of joints V."""
        return len(self.names)

    def index(self, *candidates: str) -> int | None:
        """Index of the first of `candidates` that this layout has, or None."""
        return next((self.names.index(c) for c in candidates if c in self.names), None)


def _layout(name: str, table: str) -> Layout:
    """Build a layout from lines `joint parent`."""
    rows = [line.split() for line in table.strip().splitlines()]
    names = tuple(row[0] for row in rows)
    return Layout(name, names, tuple(names.index(row[1]) for row in rows))


KINECT_V2 = _layout(
    "kinect_v2",
    """
    spine_base      spine_mid
    spine_mid       spine_shoulder
    neck            spine_shoulder
    head            neck
    shoulder_left   spine_shoulder
    elbow_left      shoulder_left
    wrist_left      elbow_left
    hand_left       wrist_left
    shoulder_right  spine_shoulder
    elbow_right     shoulder_right
    wrist_right     elbow_right
    hand_right      wrist_right
    hip_left        spine_base
    knee_left       hip_left
    ankle_left      knee_left
    foot_left       ankle_left
    hip_right       spine_base
    knee_right      hip_right
    ankle_right     knee_right
    foot_right      ankle_right
    spine_shoulder  spine_shoulder
    hand_tip_left   thumb_left
    thumb_left      hand_left
    hand_tip_right  thumb_right
    thumb_right     hand_right
    """,
)
"""The 25 joints of NTU RGB+D and PKU-MMD, in file order."""

KINECT_V1 = _layout(
    "kinect_v1",
    """
    hip_centre       spine
    spine            shoulder_centre
    shoulder_centre  shoulder_centre
    head             shoulder_centre
    shoulder_left    shoulder_centre
    elbow_left       shoulder_left
    wrist_left       elbow_left
    hand_left        wrist_left
    shoulder_right   shoulder_centre
    elbow_right      shoulder_right
    wrist_right      elbow_right
    hand_right       wrist_right
    hip_left         hip_centre
    knee_left        hip_left
    ankle_left       knee_left
    foot_left        ankle_left
    hip_right        hip_centre
    knee_right       hip_right
    ankle_right      knee_right
    foot_right       ankle_right
    """,
)
"""The 20 joints of the first Kinect: UTD-MHAD and MSRAction3D after reordering."""

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (KINECT_V2, KINECT_V1)}


def load_layout(name: str, folder: Path | None = None) -> Layout:
    """Return a built-in layout by name, or read a TOML file (`names`, `parents` by name, optional `dims`).

    Raises ConfigError for an unknown name or a file that does not describe a tree.
    """
    if name in LAYOUTS:
        return LAYOUTS[name]
    path = Path(name) if folder is None else folder / name
    if not name.endswith(".toml") or not path.is_file():
        raise ConfigError(
            f"unknown joint layout {name!r}; use one of {', '.join(LAYOUTS)} or the path of a TOML file"
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        names = tuple(str(n) for n in table["names"])
        if strangers := [str(p) for p in table["parents"] if str(p) not in names]:
            raise ValueError(f"the parent {strangers[0]!r} is not one of the names")
        parents = tuple(names.index(str(p)) for p in table["parents"])
        dims = int(table.get("dims", 3))
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not a joint layout ({error}); give `names` and `parents`, by joint name"
        ) from error
    return Layout(path.stem, names, parents, dims)
