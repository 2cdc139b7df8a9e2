"""Files of joints that other tools write: one module per format, each with a `FORMAT`; `FORMATS` lists them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from c2vl_manifests.errors import DataError, one_line
from c2vl_manifests.reading import TooLargeError, read_json
from c2vl_pipeline.readers.files import c3d, coco_results, matlab, mediapipe, mmpose, numpy_arrays, openpose, pyskl
from c2vl_pipeline.readers.files.base import DamagedError, Format, Recording, Source

FORMATS: tuple[Format, ...] = (
    numpy_arrays.FORMAT,
    matlab.FORMAT,
    c3d.FORMAT,
    pyskl.FORMAT,
    openpose.FORMAT,
    coco_results.FORMAT,
    mmpose.FORMAT,
    mediapipe.FORMAT,
    mediapipe.TABLE_FORMAT,
)

SUFFIXES = tuple(dict.fromkeys(suffix for format in FORMATS for suffix in format.suffixes))


def clip_suffixes() -> dict[str, str]:
    """Return the suffixes of files that hold one clip, and the names of their formats."""
    clips = [format for format in FORMATS if format.clip]
    suffixes = dict.fromkeys(suffix for format in clips for suffix in format.suffixes)
    return {suffix: ", ".join(f.name for f in clips if suffix in f.suffixes) for suffix in suffixes}


def is_read(path: Path) -> bool:
    """True for a file with the suffix of a format, and for a folder of JSON files."""
    return path.suffix.lower() in SUFFIXES or is_folder_of_frames(path)


def is_folder_of_frames(path: Path) -> bool:
    """True for a folder that holds JSON files, one for each frame."""
    return path.is_dir() and any(inner.suffix.lower() == ".json" for inner in path.iterdir())


def read_recording(source: Source) -> Recording:
    """Return the joints of a file, by the format that its suffix or its content tells.

    Raises:
        DataError: no format fits, or the file is malformed.
        OSError: the file cannot be opened.
    """
    path, suffix = source.path, source.path.suffix.lower()
    folder = path.is_dir()
    fitting = [format for format in FORMATS if (not format.suffixes if folder else suffix in format.suffixes)]
    if not fitting:
        raise DataError(f"{path}: {what_is_read(path)}")
    if folder or fitting[0].fits is None:
        return fitting[0].read(source)
    try:
        value = read_json(path)
    except TooLargeError as error:
        raise DataError(f"{path}: {error}") from error
    except ValueError as error:
        raise DamagedError(f"{path}: not JSON ({one_line(error)}); write it again") from error
    if value == []:  # of any of them, with nobody in view
        return Recording(np.zeros((0, 1, source.layout.joints, source.layout.dims), np.float32), sparse=True)
    for format in fitting:
        if format.fits is not None and format.fits(value):
            made = format.read(replace(source, value=value))
            return made if len(made.joints) else replace(made, sparse=True)
    names = ", ".join(format.name for format in fitting)
    raise DataError(f"{path}: JSON of no known form; expected that of {names} (docs/guides/other-tools.md shows them)")


def what_is_read(path: Path) -> str:
    """Say why a file of another kind is not read."""
    kind = "a folder without JSON files" if path.is_dir() else path.suffix or "a file without suffix"
    return (
        f"{kind} is not read; give .npy or .npz, an array (frames, joints, coordinates), a Kinect v2's .skeleton, or one of "
        f"{', '.join(SUFFIXES[2:])}; docs/guides/other-tools.md lists the tools"
    )
