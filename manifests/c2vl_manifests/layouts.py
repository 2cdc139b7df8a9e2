"""Joint layouts: one table of joints and parents from which bones, graphs, poses and mappings derive.

A layout is written once, as names and the parent of each joint: built-in layouts are the TOML files under
`data/layouts`, custom layouts are files of the same form. The 25-joint table reproduces the published bone pairs of NTU
RGB+D (1-based: (1,2) (2,21) (3,21) (4,3) (5,21) ... (25,12)); joint 21, the middle of the shoulders, is its own
parent and the graph's centre.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from c2vl_manifests.errors import ConfigError, one_line
from c2vl_manifests.reading import from_toml, read_text

_MOST_JOINTS = 1000
_MOST_BYTES = 1 << 20
_CHAIN = 70
"""Letters after which a line of a drawing is long enough."""

Sources = tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]


@dataclass(frozen=True)
class Layout:
    """Joints of one skeleton: `names[j]`, `parents[j]` (an index; the centre is its own parent).

    `dims` is the number of coordinates per joint, 2 or 3; the second points up.
    """

    name: str
    names: tuple[str, ...]
    parents: tuple[int, ...]
    dims: int = 3
    origin: int | None = None
    """Joint of the first body that is the origin in a clip's first frame; None: the centre."""
    sources: Sources = field(default=(), compare=False, repr=False)
    """(joint, ways): joints of other layouts whose mean `Layout.mapping_to` takes if no joint has this name."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.parents):
            raise ConfigError(
                f"layout {self.name!r} names {len(self.names)} joints but gives {len(self.parents)} parents; "
                "give one parent per joint"
            )
        if len(set(self.names)) != len(self.names):
            twice = sorted({n for n in self.names if self.names.count(n) > 1})
            raise ConfigError(f"layout {self.name!r} names {', '.join(twice)} twice; joint names must be unique")
        if self.dims not in {2, 3}:
            raise ConfigError(f"layout {self.name!r} has dims = {self.dims}; 2 or 3 coordinates are possible")
        if self.origin is not None and not 0 <= self.origin < len(self.names):
            raise ConfigError(f"layout {self.name!r} has the origin {self.origin}; expected one of its joints")
        centres = [j for j, p in enumerate(self.parents) if p == j]
        if len(centres) != 1:
            raise ConfigError(
                f"layout {self.name!r} has {len(centres)} joints that are their own parent; "
                "exactly one, the centre, must be"
            )
        reached = set(centres)  # joints whose chain of parents ends at the centre
        while more := {j for j, p in enumerate(self.parents) if p in reached} - reached:
            reached |= more
        if rings := [name for j, name in enumerate(self.names) if j not in reached]:
            raise ConfigError(
                f"layout {self.name!r}: the parents of joint {rings[0]!r} form a ring; "
                f"every chain of parents must end at the centre {self.names[centres[0]]!r}"
            )

    @cached_property
    def centre(self) -> int:
        """Index of the joint that is its own parent."""
        return next(j for j, p in enumerate(self.parents) if p == j)

    @property
    def anchor(self) -> int:
        """Index of the joint that is the origin in a clip's first frame."""
        return self.centre if self.origin is None else self.origin

    @cached_property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(child, parent) of every bone, without the centre's bone to itself."""
        return tuple((j, p) for j, p in enumerate(self.parents) if j != p)

    @property
    def unit(self) -> str:
        """Unit of the coordinates."""
        return "metres" if self.dims == 3 else "image heights"

    @property
    def joints(self) -> int:
        """Number of joints V."""
        return len(self.names)

    def index(self, *candidates: str) -> int | None:
        """Return the index of the first of `candidates` that this layout has, or None."""
        return next((self.names.index(c) for c in candidates if c in self.names), None)

    def drawing(self) -> list[str]:
        """Return the tree of joints as lines of text, each joint with its number; chains stay in one line."""
        lines: list[str] = []

        def draw(joint: int, before: str, bend: str) -> None:
            text = f"{joint} {self.names[joint]}"
            line, children = before + text, [child for child, parent in self.bones if parent == joint]
            while len(children) == 1 and len(line) < _CHAIN:
                (joint,) = children
                line += f" ── {joint} {self.names[joint]}"
                children = [child for child, parent in self.bones if parent == joint]
            lines.append(line)
            for child in children:
                last = child == children[-1]
                draw(child, bend + ("└─ " if last else "├─ "), bend + ("   " if last else "│  "))

        draw(self.centre, "", "")
        return lines

    def mapping_to(self, other: Layout) -> tuple[tuple[int, ...], ...]:
        """Return, for each joint of `other`, the joints of this layout whose mean it is.

        A joint of the same name is used if there is one, else the first way of `other.sources` of which this layout
        has all joints.

        Raises:
            ConfigError: this layout lacks a joint, or has another number of coordinates.
        """
        if self.dims != other.dims:
            raise ConfigError(
                f"layout {self.name!r} has {self.dims} coordinates per joint, {other.name!r} has {other.dims}; "
                "joints can be mapped only between layouts with the same number"
            )
        ways = dict(other.sources)
        mapping: list[tuple[int, ...]] = []
        for name in other.names:
            way = next((w for w in ((name,), *ways.get(name, ())) if set(w) <= set(self.names)), None)
            mapping.append(tuple(map(self.names.index, way or ())))
        if lacking := [name for name, joints in zip(other.names, mapping, strict=True) if not joints]:
            raise ConfigError(
                f"layout {self.name!r} cannot be mapped to {other.name!r}: it has nothing for {', '.join(lacking[:6])}"
                f"{', …' if len(lacking) > 6 else ''}; choose a layout whose joints it has"
            )
        return tuple(mapping)

    def as_dict(self) -> dict[str, Any]:
        """Return the layout as plain values, for a manifest."""
        values: dict[str, Any] = {"name": self.name, "names": self.names, "parents": self.parents, "dims": self.dims}
        return values if self.origin is None else values | {"origin": self.origin}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layout:
        """Rebuild a layout from `as_dict`.

        Raises:
            ValueError: the values do not describe a layout.
        """
        try:
            name, names, parents = (
                str(values["name"]),
                tuple(map(str, values["names"])),
                tuple(map(int, values["parents"])),
            )
            origin, dims = values.get("origin"), int(values["dims"])
            if len(names) > _MOST_JOINTS:
                raise ValueError(f"{len(names):,} joints; up to {_MOST_JOINTS:,} are possible")
            known = LAYOUTS.get(name.removesuffix("_2d").removesuffix("_3d"))
            sources = known.sources if known and known.names == names else ()
            return cls(name, names, parents, dims, None if origin is None else int(origin), sources)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, ConfigError) as error:
            raise ValueError(f"no joint layout ({one_line(error)})") from error


def parse_layout(text: str, name: str, source: str) -> Layout:
    """Return the layout that a TOML text describes; error messages name it `source`.

    The text holds either a table `[joints]` of `joint = "parent"`, or the lists `names` and `parents`. Optional are
    `dims`, `origin` (a joint) and `[sources]` (joint -> ways to make it from other layouts, `+` for a mean).

    Raises:
        ConfigError: the text does not describe a tree of joints.
    """
    try:
        table = from_toml(text)
        if strange := set(table) - {"joints", "names", "parents", "dims", "origin", "sources"}:
            first = min(strange)
            near = difflib.get_close_matches(first, ("joints", "names", "parents", "dims", "origin", "sources"), 1)
            raise ValueError(f"unknown key {first!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if "joints" in table:
            if not isinstance(table["joints"], dict):
                raise ValueError("`joints` is not a table of joint = parent")
            names, over = list(table["joints"]), list(table["joints"].values())
        else:
            names, over = table["names"], table["parents"]
        if not isinstance(names, list) or not isinstance(over, list):
            raise ValueError("`names` and `parents` are not lists")
        if strangers := [str(n)[:40] for n in (*names, *over) if not isinstance(n, str)]:
            raise ValueError(f"{strangers[0]} is not the name of a joint")
        if not 1 <= len(names) <= _MOST_JOINTS:
            raise ValueError(f"{len(names):,} joints; 1 to {_MOST_JOINTS:,} are possible")
        place = {n: j for j, n in enumerate(names)}
        if outside := [p for p in over if p not in place]:
            raise ValueError(f"the parent {outside[0][:40]!r} is not one of the names")
        dims = table.get("dims", 3)
        if type(dims) is not int:
            raise ValueError(f"dims = {str(dims)[:20]!r} is not a whole number")
        origin = table.get("origin")
        if origin is not None and origin not in names:
            raise ValueError(f"the origin {str(origin)[:40]!r} is not one of the names")
        where = None if origin is None else place[origin]
        sources = _sources(table.get("sources", {}), place)
        parents = tuple(place[p] for p in over)
    except KeyError as error:
        raise ConfigError(f"{source}: not a joint layout ({error}); give a table `joints`") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f'{source}: not a joint layout ({one_line(error)}); give a table `joints` of joint = "parent"'
        ) from error
    try:
        return Layout(name, tuple(names), parents, dims, where, sources)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _sources(table: Any, place: Mapping[str, int]) -> Sources:
    if not isinstance(table, dict):
        raise ValueError("`sources` is not a table of joint = [ways]")
    sources = []
    for joint, ways in table.items():
        if joint not in place:
            raise ValueError(f"sources of {joint[:40]!r}, which is not one of the names")
        if not isinstance(ways, list) or not all(isinstance(way, str) for way in ways):
            raise ValueError(f"the sources of {joint[:40]!r} are not a list of names")
        sources.append((joint, tuple(tuple(part.strip() for part in way.split("+")) for way in ways)))
    return tuple(sources)


def _built_in() -> dict[str, Layout]:
    folder = resources.files("c2vl_manifests") / "data" / "layouts"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    names = [f.name.removesuffix(".toml") for f in files]
    return {n: parse_layout(f.read_text("utf-8"), n, f.name) for n, f in zip(names, files, strict=True)}


LAYOUTS: dict[str, Layout] = _built_in()
KINECT_V1 = LAYOUTS["kinect_v1"]
"""The 20 joints of the first Kinect: NW-UCLA and SYSU 3DHOI, UTD-MHAD and MSRAction3D after reordering."""
KINECT_V2 = LAYOUTS["kinect_v2"]
"""The 25 joints of NTU RGB+D and PKU-MMD, in file order."""


def load_layout(name: str, folder: Path | None = None) -> Layout:
    """Return a built-in layout by name, or read a TOML file (see `parse_layout`).

    `<name>_2d` and `<name>_3d` are the joints of a built-in layout with that many coordinates.

    Raises:
        ConfigError: the name is unknown, or the file does not describe a tree.
    """
    stem, _, dims = name.rpartition("_")
    if name in LAYOUTS:
        return LAYOUTS[name]
    if stem in LAYOUTS and dims in {"2d", "3d"}:
        return replace(LAYOUTS[stem], name=name, dims=int(dims[0]))
    path = Path(name) if folder is None else folder / name
    try:
        if not name.endswith(".toml") or not path.is_file():
            raise ConfigError(
                f"unknown joint layout {name!r}; use one of {', '.join(LAYOUTS)} (with _2d or _3d for that many "
                "coordinates) or the path of a TOML file"
            )
        text = read_text(path, _MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a joint layout ({error}); give a TOML file in UTF-8") from error
    return parse_layout(text, path.stem, str(path))
