"""The packed sets that the tables are made from: which are there, and under which name each stands."""

from __future__ import annotations

from pathlib import Path

from c2vl_manifests.errors import C2VLError, ConfigError, StageError
from c2vl_manifests.events import Emit, Note, silent
from c2vl_manifests.packed import FILE as PACKED
from c2vl_training.dataset import Packed


def find_sets(root: Path, emit: Emit = silent) -> dict[str, Packed]:
    """Return the packed sets below a folder by name: the dataset's, or `dataset (folder)` where two hold the same.

    A folder's name never stands for a dataset, so made-up samples in a folder `ntu60` are not taken for NTU's. A folder
    that cannot be read is noted and left out.

    Raises:
        StageError: there is none, or the only one is of an old format.
        DataError: the only one is damaged.
        ConfigError: two would have the same name.
    """
    places = [root, *sorted(p for p in root.iterdir() if p.is_dir())] if root.is_dir() else []
    homes = [p for p in places if (p / "packed" / PACKED).is_file() or (p / PACKED).is_file()]
    homes = [p for p in homes if p.name != "packed" or p.parent not in homes]
    if not homes:
        raise StageError(
            f"no packed dataset below {root}; make one by `c2vl-pipeline prompts --work {root}/<dataset>`"
        )
    packs: list[tuple[str, Packed]] = []
    for home in homes:
        try:
            packs.append((home.resolve().name, Packed(home)))
        except C2VLError as error:
            if len(homes) == 1:
                raise
            emit(Note(f"{home} is left out: {error}", "warning"))
    if not packs:
        raise StageError(
            f"none of the {len(homes)} packed datasets below {root} can be read; pack them again"
        )
    names = [packed.manifest.dataset for _, packed in packs]
    found: dict[str, Packed] = {}
    for folder, packed in packs:
        own = packed.manifest.dataset
        name = own if folder == own or names.count(own) == 1 else f"{own} ({folder})"
        if name in found:
            raise ConfigError(
                f"{found[name].folder} and {packed.folder} would both be named {name!r}; rename one of their folders"
            )
        found[name] = packed
    return found
