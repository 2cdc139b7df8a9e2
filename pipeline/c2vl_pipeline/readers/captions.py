"""Caption files in the authors' form: {sample id: [caption of each frame, in order]}, as JSON or a .zip of one."""

from __future__ import annotations

import zipfile
from pathlib import Path

from c2vl_manifests.errors import EngineError, one_line
from c2vl_manifests.reading import MOST_UNPACKED, from_json, read_bytes, unzip
from c2vl_pipeline.readers.base import is_system_file


def caption_json(path: Path) -> bytes:
    """Return the JSON of a caption file, unpacked if it is a .zip."""
    try:
        if path.suffix.lower() != ".zip":
            return read_bytes(path, MOST_UNPACKED)
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.lower().endswith(".json") and not is_system_file(n)]
            if len(names) != 1:
                raise EngineError(
                    f"caption file {path} holds {len(names)} JSON files, expected one; unpack it and name the right "
                    "one in pipeline.caption.engine.options.path"
                )
            return unzip(archive, names[0])
    except EngineError:
        raise
    except Exception as error:  # zip, zlib and lzma raise a dozen kinds on damaged files
        raise EngineError(
            f"caption file {path} cannot be read ({one_line(error)}); give the path of a .json or .zip file in "
            "pipeline.caption.engine.options.path"
        ) from error


def read_captions(path: Path) -> dict[str, list[str]]:
    """Return the captions of each sample, in order of time; samples may have different numbers of them, or none.

    Raises:
        EngineError: One line, for a file that cannot be read or has another form.
    """
    expected = "expected {sample id: [caption of each frame]}, as the authors released"
    try:
        table = from_json(caption_json(path))
    except ValueError as error:
        raise EngineError(f"caption file {path} is not JSON ({error}); {expected}") from error
    if not isinstance(table, dict) or not table:
        raise EngineError(f"caption file {path} holds no table of samples; {expected}")
    for sample_id, captions in table.items():
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise EngineError(f"caption file {path}: {sample_id!r} has no list of texts; {expected}")
    if not any(table.values()):
        raise EngineError(f"caption file {path} has no caption of any of its {len(table):,} samples; {expected}")
    return table
