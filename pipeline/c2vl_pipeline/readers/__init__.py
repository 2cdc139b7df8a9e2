"""Raw data: one module per kind, each with a `READER`; `READERS` names them for the `reader` field of a dataset.

`video` decodes the videos of every dataset.
"""

from __future__ import annotations

from pathlib import Path

from c2vl_manifests.datasets import Dataset
from c2vl_manifests.errors import ConfigError, DataError
from c2vl_manifests.layouts import KINECT_V2, Layout, load_layout
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers import arrays, drive, msr, ntu, pku, synthetic, sysu, ucla, utd
from c2vl_pipeline.readers.base import Assembled, Reader

READERS: dict[str, Reader] = {
    "ntu": ntu.READER,
    "pku": pku.READER,
    "utd": utd.READER,
    "msr": msr.READER,
    "ucla": ucla.READER,
    "sysu": sysu.READER,
    "drive": drive.READER,
    "synthetic": synthetic.READER,
    "generic": arrays.READER,
}


def reader_of(dataset: Dataset) -> Reader:
    """Return the reader of a dataset.

    Raises:
        ConfigError: no reader of that name is registered.
    """
    if dataset.reader not in READERS:
        raise ConfigError(f"{dataset.name}: unknown reader {dataset.reader!r}; use one of {', '.join(READERS)}")
    return READERS[dataset.reader]


def read_skeleton(
    path: Path | str, layout: Layout = KINECT_V2, bodies: int = 2, config: SkeletonsConfig | None = None, own: str = ""
) -> tuple[Assembled, Layout]:
    """Read a file that holds one clip, in the format that its suffix names: the own one's first, then any tool's.

    Args:
        path: the file.
        layout: joint layout of plain arrays.
        bodies: bodies to read from plain arrays.
        config: how bodies are assembled; None: as by default.
        own: reader of the dataset that the file may be of.

    Returns:
        The joints and their layout.

    Raises:
        DataError: the suffix is unknown, or the file is malformed.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    readers = [READERS[name] for name in sorted(READERS, key=lambda name: (name != own, name != "generic"))]
    for reader in readers:
        if suffix in reader.clip_files:
            layout = load_layout(reader.clip_layout) if reader.clip_layout else layout
            return reader.read_joints(path, {}, layout, bodies, config or SkeletonsConfig()), layout
    known: dict[str, str] = {}
    for reader in readers:
        known |= {s: name for s, name in reader.clip_files.items() if s not in known}  # the first one reads it
    listed = ", ".join(f"{suffix} ({name})" for suffix, name in known.items())
    raise DataError(f"{path}: {suffix or 'no suffix'} is not a skeleton file; give {listed}")
