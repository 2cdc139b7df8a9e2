"""List a raw folder in one walk; check the ends of files and the directories of zips for damage."""

from __future__ import annotations

import os
import re
import shlex
import zipfile
from functools import partial
from io import FileIO
from pathlib import Path

from c2vl_manifests.errors import DataError, disk_error
from c2vl_manifests.files import regular
from c2vl_pipeline.readers.base import USUAL, File, Scan, is_system_file, leads_nowhere

_ARCHIVES = (".rar", ".7z", ".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst")
_FIRST_PART = re.compile(r".*\.(z01|0+1|part0*1(\.rar)?|(zip|7z|rar|tar|tgz|gz|bz2|xz|zst)\.(part)?a+)$", re.IGNORECASE)
_LATER_PART = re.compile(r".*\.part\d+\.rar$", re.IGNORECASE)
"""Parts of an archive that was split; only the first is named."""
_UNPACK = (
    (r"\.z01$", "7z x -o{folder} {whole}.zip"),
    (r"\.(part)?a+$", "cat {whole}.* > {whole}"),
    (r"\.(tar|tgz|tbz2|txz|tar\.\w+)$", "tar -xf {file} -C {folder}"),
    (r"\.zip$", "unzip {file} -d {folder}"),
    (r"\.gz$", "gunzip -k {file}"),
    (r"\.bz2$", "bunzip2 -k {file}"),
    (r"\.xz$", "unxz -k {file}"),
    (r"\.zst$", "unzstd {file}"),
    (r"$", "7z x -o{folder} {file}"),
)
"""End of an archive's name -> the command that unpacks it."""
_NO_VIDEO = "not a video; it begins with"
_MATROSKA = b"\x1aE\xdf\xa3"
_PADDING = 4200
"""Zeros in a row that a writer may leave in a whole video; FFmpeg leaves 4,120 in an AVI file."""
_UNFINISHED = (".part", ".partial", ".crdownload", ".aria2", ".download", ".filepart", ".!qb")


def scan_folder(root: Path, suffixes: tuple[str, ...]) -> Scan:
    """List all files below a folder; links to folders are followed, each once, but none to a folder that holds this one.

    Raises:
        DataError: a folder cannot be read.
    """
    scan = Scan()
    pending, seen, real = [str(root)], set[tuple[int, int]](), os.path.realpath(root)
    while pending:
        folder = pending.pop()
        try:
            at = os.stat(folder)
            if (at.st_dev, at.st_ino) in seen:
                continue
            seen.add((at.st_dev, at.st_ino))
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda e: e.name)
        except OSError as error:
            raise DataError(disk_error(error, folder)) from error
        inside, folders = os.path.relpath(folder, root), []
        for entry in listed:
            relative = entry.name if inside == "." else os.path.join(inside, entry.name)
            try:
                folder_inside = entry.is_dir()
            except OSError:  # a link in a loop
                folder_inside = False
            if is_system_file(f"{relative}/" if folder_inside else relative):
                scan.system.append(relative)
            elif folder_inside and entry.is_symlink() and _holds(os.path.realpath(entry.path), folder, real):
                scan.around.append(relative)
            elif folder_inside:
                folders.append(entry.path)
            else:
                _add(scan, entry, relative, suffixes)
        pending += reversed(folders)
    split = {name.lower() for name in scan.archives}
    scan.zips = [name for name in scan.zips if f"{name[:-4].lower()}.z01" not in split]
    return scan


def _holds(target: str, folder: str, root: str) -> bool:
    """True if the target of a link in a folder holds that folder or the root, and is not below the root itself."""
    above = any(Path(place).is_relative_to(target) for place in (os.path.realpath(folder), root))
    return above and not Path(target).is_relative_to(root)


def _add(scan: Scan, entry: os.DirEntry[str], relative: str, suffixes: tuple[str, ...]) -> None:
    if entry.is_symlink() and leads_nowhere(entry.path):
        scan.links.append(relative)
        return
    lower = entry.name.lower()
    if lower.endswith(".zip"):
        scan.zips.append(relative)
    elif is_archive(lower):
        scan.archives.append(relative)
    elif lower.endswith(_UNFINISHED):
        scan.unfinished.append(relative)
    suffix = next((s for s in suffixes if entry.name.endswith(s)), None)
    if suffix is None:
        scan.others.append(relative)
        return
    try:
        size = entry.stat().st_size
    except OSError:  # a link in a loop, or gone meanwhile
        return
    scan.files.append(File(entry.name[: -len(suffix)], suffix, size, relative))


# ------------------------------------------------------------------------------------------- broken files


_TEXTS = {".skeleton", ".txt", ".csv", ".json"}
_VIDEOS = set(USUAL["video"])
ENDED = {".json": (b"}", b"]")}
"""Last bytes of the formats that show by their end whether they are whole, however small."""
_LOOK = 64
_COPY = "NUL bytes, as after a full disk, a crash or an unfinished copy; copy it again"


def check_ends(path: str, size: int) -> str | None:
    """Return the damage that the first and last bytes of a raw file reveal, or None.

    No format begins with NUL bytes, no text ends with them, and no video ends with a sixteenth of them; arrays may. JSON
    ends with a bracket.
    """
    kind = os.path.splitext(path)[1].lower()
    if os.path.isdir(path):  # of files, one for each frame
        return None
    try:
        with open(path, "rb", buffering=0) as file:
            if not file.read(_LOOK).strip(b"\0"):
                return f"{'not a video; it ' if kind in _VIDEOS else ''}begins with {_COPY}"
            file.seek(0)
            damage = _check_header(file, size) if kind in _VIDEOS else None
            if damage and not (damage.startswith(_NO_VIDEO) and _has_frames(Path(path))):
                return damage
            return _check_tail(file, size, kind)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _check_tail(file: FileIO, size: int, kind: str) -> str | None:
    most = min(_LOOK if kind in _TEXTS else max(size // 16, _LOOK), 1 << 20)
    if kind in _TEXTS | _VIDEOS and all(_is_nul(file, size, length) for length in (1, _LOOK, most)):
        return f"ends with {_COPY}"
    if kind in ENDED:
        file.seek(max(0, size - _LOOK))
        if not file.read(_LOOK).rstrip().endswith(ENDED[kind]):
            return "cut off before its end; copy it again"
    return None


def _has_frames(path: Path) -> bool:
    """Return whether a file under another kind's name is a video nevertheless: a picture has one frame."""
    from c2vl_pipeline.readers.video import Video

    try:
        with Video(path) as video:
            return len(list(video.frames([0, 1]))) == 2
    except (DataError, OSError):
        return False


def missing_bytes(path: Path) -> str | None:
    """Return how a video shows that bytes of it are missing, or None: its frames end early for another reason.

    For videos with fewer frames than their container advertises; it looks closer than `check_ends`.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb", buffering=0) as file:
            step = min(max(_PADDING, size // 40), 4 << 20)
            if any(block.count(0) == step for block in iter(partial(file.read, step), b"")):
                return "space was reserved for a part of it, and never filled"
            file.seek(0)
            head = file.read(4)
            if head[:3] == b"FLV":
                return None if _tag_ends(file, size) else "it ends within a frame"
            if head == _MATROSKA:
                return _segment(file, size)
            file.seek(0)
            damage = _check_header(file, size)
            return None if damage and damage.startswith(_NO_VIDEO) else damage
    except (OSError, IndexError):
        return None


def _tag_ends(file: FileIO, size: int) -> bool:
    """Return whether an FLV file ends with a whole tag: its length stands behind it."""
    file.seek(max(size - 4, 0))
    length = int.from_bytes(file.read(4), "big")
    file.seek(max(size - 4 - length, 0))
    return int.from_bytes(file.read(4)[1:], "big") + 11 == length


def _is_nul(file: FileIO, size: int, length: int) -> bool:
    """True if the last bytes of a file are NUL."""
    file.seek(max(0, size - length))
    return not file.read(length).strip(b"\0")


def _check_header(file: FileIO, size: int) -> str | None:
    head = file.read(16)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _riffs(file, size)
    if head[4:8] in {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"}:
        return _boxes(file, size)
    return None if head[:4] == _MATROSKA else f"{_NO_VIDEO} {head[:12]!r}"


def _riffs(file: FileIO, size: int) -> str | None:
    """Check the length of an AVI file, which above 1 GB has several parts."""
    end = 0
    while True:
        file.seek(end)
        head = file.read(8)
        announced = int.from_bytes(head[4:], "little")
        # an unfinished recording has 0 or all ones here; it may still be readable
        if head[:4] != b"RIFF" or announced in {0, 0xFFFFFFFF}:
            return None
        end += announced + 8
        if end > size + 1:
            return f"{size:,} of {end:,} bytes"
        end += announced & 1


def _segment(file: FileIO, size: int) -> str | None:
    """Check the length of a Matroska or WebM file; recordings of a browser and live ones state none."""
    end = 4
    for kind in (b"", b"\x18\x53\x80\x67"):
        file.seek(end)
        data = file.read(len(kind) + 8)
        width = 9 - data[len(kind)].bit_length() if len(data) == len(kind) + 8 else 9
        most = (1 << 7 * width) - 1
        length = int.from_bytes(data[len(kind) : len(kind) + width], "big") & most
        if not data.startswith(kind) or width > 8 or length == most:
            return None
        end += len(kind) + width + length
    return None if end <= size else f"{size:,} of {end:,} bytes"


def _boxes(file: FileIO, size: int) -> str | None:
    """Check the outermost boxes of an MP4 file: all must end within it, and one must be the table of frames."""
    at, kinds = 0, set[bytes]()
    while at + 8 <= size and len(kinds) < 64:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            length = size - at
        if not kind.isalnum():  # what a camera appended
            break
        kinds.add(kind)
        if length < 8 or at + length > size:
            return f"{size:,} of {at + length:,} bytes"
        if kind == b"moov" and b"mdat" in kinds:
            return None
        at += length
    return None if b"moov" in kinds else "without its table of frames (moov)"


def list_zip(path: Path, deep: bool) -> tuple[list[str], str | None]:
    """Return the names in a zip archive and its damage or None; `deep` verifies all checksums."""
    names: list[str] = []
    try:
        with open(path, "rb", opener=regular) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            bad = archive.testzip() if deep else None
        return names, f"{bad} does not match its checksum" if bad is not None else None
    except Exception as error:  # zipfile, zlib and lzma raise a dozen kinds on damaged files
        return names, " ".join(str(error).split()).removeprefix(f"{path}: ") or type(error).__name__


def is_archive(name: str) -> bool:
    """True if a file name is that of an archive, or of the first part of one."""
    if _FIRST_PART.fullmatch(name):
        return True
    return name.lower().endswith((".zip", *_ARCHIVES)) and not _LATER_PART.fullmatch(name)


def unpack_command(path: Path) -> str:
    """Return the shell command that unpacks an archive into its own folder (of one cut by `split`: joins it)."""
    if (first := path.with_suffix(".z01")).exists():  # of a zip in parts, the last of which is the .zip
        path = first
    command = next(command for end, command in _UNPACK if re.search(end, path.name.lower()))
    names = {"file": path, "folder": path.parent, "whole": path.with_suffix("")}
    return "`" + command.format(**{key: shlex.quote(str(name)) for key, name in names.items()}) + "`"
