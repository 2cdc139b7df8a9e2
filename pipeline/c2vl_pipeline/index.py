"""`c2vl-pipeline index`: what the dataset promises against what lies in the raw folder, one row a sample.

The promise comes from the dataset's own rules (NTU's sessions, PKU's label files, a table for own data), never
from the files found, so a damaged download is seen before work begins. Labels are written here and read again
only by evaluation.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from c2vl_manifests.config import PipelineConfig
from c2vl_manifests.datasets import SPLITS, Dataset, load_dataset
from c2vl_manifests.errors import ConfigError, DataError, StageError
from c2vl_manifests.layouts import Layout, load_layout
from c2vl_manifests.manifest import (
    ShardManifest,
    commit_table,
    digest,
    fingerprint,
    finished_shard,
    read_shard_manifest,
)
from c2vl_manifests.schema import SAMPLES, SCHEMA_VERSION

_SKELETON = ("skeleton", "skeleton_bytes", "start_frame", "end_frame", "known_missing", "problem")
READS: dict[str, tuple[str, ...]] = {
    "skeletons": ("sample_id", *_SKELETON),
    "crops": ("sample_id", "camera", "video", "video_bytes", *_SKELETON),
    "captions": ("sample_id",),
    "embeddings": ("sample_id",),
}
"""What of a sample each stage's rows depend on; never labels or splits. Later stages read the rows of earlier ones."""

_INT16, _INT32 = 1 << 15, 1 << 31


@dataclass(frozen=True)
class Index:
    """The samples of one work folder and what all stages need to know of them."""

    work: Path
    table: pa.Table
    manifest: ShardManifest
    dataset: Dataset
    root: Path
    layout: Layout
    classes: tuple[str, ...]
    bodies: int
    plan: tuple[tuple[int, int], ...]
    """Rows [start, stop) of each shard; samples of one video are never split."""
    _keys: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def recipe(self) -> str:
        """Recipe that `index` was called with: the default of the later stages."""
        return str(self.manifest.extra["recipe"])

    @property
    def overrides(self) -> list[str]:
        """The `--set` assignments of that call."""
        return [str(assignment) for assignment in self.manifest.extra.get("overrides", ())]

    def shard_keys(self, stage: str) -> tuple[str, ...]:
        """For each shard, a fingerprint of what a stage reads of its samples (see `READS`)."""
        if stage not in self._keys:
            rows = self.table.select(list(READS[stage]))
            self._keys[stage] = tuple(digest(rows.slice(start, stop - start)) for start, stop in self.plan)
        return self._keys[stage]

    def reads(self, stage: str, number: int) -> list[dict[str, Any]]:
        """Return of each sample of a shard what a stage reads of it."""
        start, stop = self.plan[number]
        table = self.table.select(list(READS[stage])).slice(start, stop - start)
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    @cached_property
    def cameras(self) -> dict[str, list[dict[str, Any]]]:
        """Samples with a video by camera: what each camera's empty scene is made from."""
        found: dict[str, list[dict[str, Any]]] = {}
        columns = ["sample_id", "video", "video_bytes", "start_frame", "end_frame", "camera", "problem"]
        for sample in self.table.select(columns).to_pylist():
            if sample["video"] is not None and not sample["problem"]:
                found.setdefault(sample["camera"], []).append(sample)
        return found

    def shard(self, number: int) -> list[dict[str, Any]]:
        """Return the samples of one shard as dictionaries."""
        start, stop = self.plan[number]
        rows: list[dict[str, Any]] = self.table.slice(start, stop - start).to_pylist()
        return rows


@dataclass
class Findings:
    """What is there against what was promised; empty lists mean no doubt."""

    promised: int = 0
    with_video: int = 0
    with_skeleton: int = 0
    known_missing: int = 0
    missing_videos: list[str] = field(default_factory=list)
    missing_skeletons: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def doubts(self) -> list[str]:
        """Say each kind of doubt in a few words, with the first name."""
        kinds = (
            ("videos missing", self.missing_videos),
            ("skeletons missing", self.missing_skeletons),
            ("unexpected files", self.unexpected),
            ("empty files", self.empty),
            ("impossible samples", self.problems),
        )
        return [
            f"{len(names):,} {what} ({names[0]}{', …' if len(names) > 1 else ''})"
            for what, names in kinds
            if names
        ]


def _files(root: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str, int, str]]:
    """Yield (stem, suffix, bytes, relative path) of every file below `root` that ends with a suffix."""
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.is_dir():
                    pending.append(Path(entry.path))
                    continue
                suffix = next((s for s in suffixes if entry.name.endswith(s)), None)
                if suffix is not None:
                    yield (
                        entry.name[: -len(suffix)],
                        suffix,
                        entry.stat().st_size,
                        os.path.relpath(entry.path, root),
                    )


def _row(sample_id: str, **known: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SAMPLES.names)
    row.update(sample_id=sample_id, label=-1, camera="", known_missing=False, splits=[])
    row.update(known)
    return row


def _named_rows(dataset: Dataset, ids: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Rows of a dataset whose ids say everything (NTU, UTD, synthetic)."""
    missing = dataset.known_missing()
    for sample_id in ids:
        fields = dataset.parse_id(sample_id)
        yield _row(
            sample_id,
            label=fields["action"] - 1,
            subject=fields.get("subject"),
            view=fields.get("view"),
            setup=fields.get("setup"),
            repeat=fields.get("repeat"),
            camera=f"S{fields['setup']:03d}C{fields['view']:03d}" if "setup" in fields else "C001",
            known_missing=sample_id in missing,
            splits=list(dataset.splits(fields).items()),
        )


def _synthetic_ids(root: Path) -> tuple[tuple[str, ...], Iterator[str]]:
    """Classes and promised ids of a folder made by `synth`, from its own description."""
    path = root / "synthetic.toml"
    if not path.is_file():
        raise DataError(f"{path} does not exist; make the folder with `c2vl-pipeline synth --out {root}`")
    try:
        made = tomllib.loads(path.read_text("utf-8"))
        classes, subjects = tuple(map(str, made["classes"])), int(made["subjects"])
        views, repeats = int(made["views"]), int(made["repeats"])
    except (tomllib.TOMLDecodeError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a description by `synth` ({error}); make the folder again") from error
    ids = (
        f"S001C{c:03d}P{p:03d}R{r:03d}A{a:03d}"
        for c in range(1, views + 1)
        for p in range(1, subjects + 1)
        for r in range(1, repeats + 1)
        for a in range(1, len(classes) + 1)
    )
    return classes, ids


def _pku_rows(dataset: Dataset, root: Path) -> Iterator[dict[str, Any]]:
    """Rows of PKU-MMD: one a line `class,start,end,confidence` of each recording's label file."""
    labels = {
        stem: rel for stem, _, _, rel in _files(root, (".txt",)) if "label" in str(Path(rel).parent).lower()
    }
    if not labels:
        raise DataError(
            f"{root} holds no label files; expected *.txt below a folder whose name contains 'label'"
        )
    for video in sorted(labels):
        fields = dataset.parse_id(video)
        for number, line in enumerate((root / labels[video]).read_text("utf-8", "replace").splitlines(), 1):
            if not line.strip():
                continue
            try:
                label, start, end = (int(float(v)) for v in line.split(",")[:3])
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"{root / labels[video]}:{number}: expected `class,start,end,confidence`, found {line!r}"
                ) from error
            if not 1 <= label <= len(dataset.classes):
                raise DataError(
                    f"{root / labels[video]}:{number}: class {label}; expected 1 to {len(dataset.classes)}"
                )
            head = (
                f"A{fields['setup']:03d}N{fields['subject']:03d}"
                if "setup" in fields
                else f"A{fields['video']:04d}"
            )
            problem = None
            if start > end:
                problem = f"label row {number}: start {start} is after end {end}"
            elif start < 1:
                problem = f"label row {number}: start {start} is before the first frame, 1"
            yield _row(
                f"{head}V{fields['view']:03d}C{label:03d}L{number:03d}",
                label=label - 1,
                subject=fields.get("subject"),
                view=fields["view"],
                setup=fields.get("setup"),
                repeat=number,
                camera=f"V{fields['view']:03d}",
                video=video,
                skeleton=video,
                start_frame=start - 1,
                end_frame=end,
                problem=problem,
                splits=list(dataset.splits(fields).items()),
            )


_COLUMNS = (
    "sample_id", "video", "start_frame", "end_frame", "skeleton", "label", "subject", "view", "camera",
)  # fmt: skip


def _generic_rows(root: Path) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Classes and rows of a table of own samples: samples.csv or samples.parquet."""
    path = next((root / n for n in ("samples.parquet", "samples.csv") if (root / n).is_file()), None)
    if path is None:
        raise DataError(
            f"{root} holds neither samples.csv nor samples.parquet; write a table with the columns sample_id, video, "
            "start_frame, end_frame, skeleton, label, subject, view and split_<benchmark> (only sample_id is required)"
        )
    try:
        if path.suffix == ".parquet":
            numbered = list(enumerate(pq.read_table(path).to_pylist(), 1))
        else:
            with path.open(
                newline="", encoding="utf-8-sig"
            ) as handle:  # spreadsheets write a byte order mark
                reader = csv.DictReader(handle)
                numbered = [(reader.line_num, entry) for entry in reader]
    except (OSError, pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table of samples ({error})") from error
    for column in numbered[0][1] if numbered else ():
        if column not in _COLUMNS and not str(column).startswith("split_"):
            near = difflib.get_close_matches(str(column), _COLUMNS, n=1)
            hint = (
                f"; did you mean {near[0]!r}?"
                if near
                else f"; known: {', '.join(_COLUMNS)}, split_<benchmark>"
            )
            raise DataError(f"{path}:1: unknown column {column!r}{hint}")
    labels = {label for _, entry in numbered if (label := _label(entry))}
    ordered = sorted(labels, key=lambda v: (not v.isdigit(), int(v) if v.isdigit() else 0, v))
    rows = [_generic_row(path, number, entry, ordered) for number, entry in numbered]
    seen: dict[str, int] = {}
    for (number, _), row in zip(numbered, rows, strict=True):
        if (first := seen.setdefault(row["sample_id"], number)) != number:
            raise DataError(
                f"{path}:{number}: sample_id {row['sample_id']!r} stands in {first} already; ids must be unique"
            )
    return tuple(ordered), sorted(
        rows, key=lambda r: (r["video"] or "", r["start_frame"] or 0, r["sample_id"])
    )


def _label(entry: dict[str, Any]) -> str:
    """Return a label as text, empty where there is none; pandas writes whole numbers beside gaps as 3.0."""
    value = entry.get("label")
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return "" if value is None else str(value).strip()


def _generic_row(path: Path, number: int, entry: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    def whole(column: str) -> int | None:
        value = entry.get(column)
        if value in (None, ""):
            return None
        try:
            found = int(value) if isinstance(value, float) and value.is_integer() else int(str(value))
        except ValueError as error:
            raise DataError(f"{path}:{number}: {column} = {value!r} is not a whole number") from error
        most = _INT32 if column.endswith("_frame") else _INT16
        if not -most <= found < most:
            raise DataError(f"{path}:{number}: {column} = {found} is out of range; expected less than {most}")
        return found

    sample_id = str(entry.get("sample_id") or "").strip()
    if not sample_id:
        raise DataError(f"{path}:{number}: no sample_id; every row needs one")
    splits = []
    for column, value in entry.items():
        if column and column.startswith("split_") and value not in (None, ""):
            if value not in SPLITS:
                raise DataError(f"{path}:{number}: {column} = {value!r}; use train, test or leave it empty")
            splits.append((column.removeprefix("split_"), str(value)))
    start, end = whole("start_frame"), whole("end_frame")
    problem = None
    if end is not None and (start or 0) >= end:
        problem = f"start_frame {start or 0} is not before end_frame {end}"
    elif start is not None and start < 0:
        problem = f"start_frame {start} is negative; the first frame is 0"
    label = _label(entry)
    view = whole("view")
    return _row(
        sample_id,
        label=labels.index(label) if label else -1,
        subject=whole("subject"),
        view=view,
        camera=str(entry.get("camera") or (f"view{view}" if view is not None else entry.get("video") or "")),
        video=str(entry["video"]) if entry.get("video") else None,
        skeleton=str(entry["skeleton"]) if entry.get("skeleton") else None,
        start_frame=start,
        end_frame=end,
        problem=problem,
        splits=splits,
    )


def _locate(dataset: Dataset, root: Path, rows: list[dict[str, Any]], findings: Findings) -> None:
    """Fill in where each sample's files are, and note what is missing, empty or unexpected."""
    if dataset.reader == "generic":
        for row in rows:
            for what, missing in (
                ("video", findings.missing_videos),
                ("skeleton", findings.missing_skeletons),
            ):
                if row[what] is None:
                    continue
                path = root / row[what]
                if not path.is_file():
                    missing.append(row["sample_id"])
                    row[what] = None
                    continue
                row[f"{what}_bytes"] = path.stat().st_size
                if row[f"{what}_bytes"] == 0:
                    findings.empty.append(row[what])
        return
    found: dict[str, dict[str, tuple[int, str]]] = {"video": {}, "skeleton": {}}
    order = {s: i for i, s in enumerate((*dataset.video_suffixes, *dataset.skeleton_suffixes))}
    best: dict[tuple[str, str], int] = {}
    for stem, suffix, size, relative in _files(root, tuple(order)):
        if dataset.reader == "pku" and suffix == ".txt" and "label" in str(Path(relative).parent).lower():
            continue
        kind = "video" if suffix in dataset.video_suffixes else "skeleton"
        if order[suffix] < best.get((kind, stem), len(order)):
            best[kind, stem] = order[suffix]
            found[kind][stem] = (size, relative)
    wanted: dict[str, set[str]] = {"video": set(), "skeleton": set()}
    for row in rows:
        for kind, missing in (("video", findings.missing_videos), ("skeleton", findings.missing_skeletons)):
            stem = row[kind] or row["sample_id"]
            wanted[kind].add(stem)
            size, relative = found[kind].get(stem, (-1, ""))
            row[kind] = relative or None
            row[f"{kind}_bytes"] = size if size >= 0 else None
            if size < 0 and not (kind == "skeleton" and row["known_missing"]):
                missing.append(row["sample_id"])
            elif size == 0:
                findings.empty.append(relative)
    for kind, files in found.items():
        findings.unexpected.extend(
            relative for stem, (_, relative) in files.items() if stem not in wanted[kind]
        )


def _plan(rows: list[dict[str, Any]], size: int) -> list[list[int]]:
    """Cut rows into shards of about `size` samples without splitting the samples of one video."""
    plan: list[list[int]] = []
    start = 0
    for at in range(1, len(rows) + 1):
        full = at - start >= size
        same_video = (
            at < len(rows) and rows[at]["video"] is not None and rows[at]["video"] == rows[at - 1]["video"]
        )
        if at == len(rows) or (full and not same_video):
            plan.append([start, at])
            start = at
    return plan


def build(
    dataset: Dataset,
    root: Path,
    work: Path,
    config: PipelineConfig,
    *,
    recipe: str,
    overrides: Sequence[str] = (),
    layout: str | None = None,
    allow_missing: bool = False,
    only_present: bool = False,
    limit: int | None = None,
) -> tuple[Index, Findings]:
    """Write `samples.parquet` of a work folder.

    Args:
        dataset: what was promised.
        root: the raw folder.
        work: where the stages write.
        config: for the size of a shard.
        recipe: name that later stages default to.
        overrides: `--set` assignments that later stages default to.
        layout: joint layout of own data, by name or TOML file; the dataset's where not given.
        allow_missing: go on where files are missing; their rows will say so.
        only_present: promise only what is there, for a part of a dataset.
        limit: keep the first so many samples.

    Raises:
        DataError: no such folder, or a malformed label file or table (file and line).
        StageError: something is missing and neither permission was given.
    """
    if not root.is_dir():
        raise DataError(f"raw folder {root} does not exist; give the folder of {dataset.title} with --data")
    root = root.resolve()
    classes: tuple[str, ...] = dataset.classes
    if dataset.reader == "synthetic":
        classes, ids = _synthetic_ids(root)
        rows = list(_named_rows(dataset, ids))
    elif dataset.reader == "pku":
        rows = list(_pku_rows(dataset, root))
    elif dataset.reader == "generic":
        classes, rows = _generic_rows(root)
    else:
        rows = list(_named_rows(dataset, dataset.promised_ids()))
    findings = Findings()
    _locate(dataset, root, rows, findings)
    findings.problems = [r["sample_id"] for r in rows if r["problem"]]
    if only_present:
        rows = [r for r in rows if r["video"] or r["skeleton"]]
        findings.missing_videos, findings.missing_skeletons = [], []
    if limit is not None:
        rows = rows[:limit]
        kept, files = (
            {r["sample_id"] for r in rows},
            {r[what] for r in rows for what in ("video", "skeleton")},
        )
        findings.missing_videos = [s for s in findings.missing_videos if s in kept]
        findings.missing_skeletons = [s for s in findings.missing_skeletons if s in kept]
        findings.problems = [s for s in findings.problems if s in kept]
        findings.empty = [f for f in findings.empty if f in files]
    if not rows:
        raise DataError(
            f"{root} holds no sample of {dataset.title}; expected files ending in {', '.join((*dataset.video_suffixes, *dataset.skeleton_suffixes))} somewhere below it"
        )
    findings.promised = len(rows)
    findings.with_video = sum(r["video"] is not None for r in rows)
    findings.with_skeleton = sum(r["skeleton"] is not None for r in rows)
    findings.known_missing = sum(r["known_missing"] for r in rows)
    blocking = findings.missing_videos or findings.missing_skeletons or findings.empty
    if blocking and not (allow_missing or only_present):
        raise StageError(
            f"{root}: {'; '.join(findings.doubts())}; of {len(rows):,} promised samples of {dataset.title}. Complete the download, "
            "or go on with --allow-missing (rows will say what is missing) or --only-present (promise only what is there)"
        )
    table = pa.Table.from_pylist(rows, schema=SAMPLES)
    found_layout = load_layout(layout or dataset.layout, root)
    extra = {
        "dataset": dataset.name,
        "root": str(root),
        "recipe": recipe,
        "overrides": list(overrides),
        "layout": {
            "name": found_layout.name,
            "names": found_layout.names,
            "parents": found_layout.parents,
            "dims": found_layout.dims,
        },
        "classes": classes,
        "bodies": dataset.bodies,
        "plan": _plan(rows, config.shard_samples),
    }
    key = fingerprint({"schema": SCHEMA_VERSION, "rows": rows, "extra": extra})
    work.mkdir(parents=True, exist_ok=True)
    if finished_shard(work / "samples.parquet", key) is None:
        commit_table(work / "samples.parquet", table, key=key, row_group=65536, extra=extra)
    return load(work), findings


def load(work: Path) -> Index:
    """Read the index of a work folder.

    Raises:
        StageError: there is none yet.
        ConfigError: it names a dataset or layout that does not exist any more.
    """
    path = work / "samples.parquet"
    manifest = read_shard_manifest(path)
    if manifest is None or not path.is_file():
        raise StageError(
            f"{work} holds no index; run `c2vl-pipeline index --dataset NAME --data DIR --work {work}` first"
        )
    extra = manifest.extra
    try:
        lay = extra["layout"]
        layout = Layout(lay["name"], tuple(lay["names"]), tuple(lay["parents"]), int(lay["dims"]))
        plan = tuple((int(a), int(b)) for a, b in extra["plan"])
        return Index(
            work=work,
            table=pq.read_table(path),
            manifest=manifest,
            dataset=load_dataset(extra["dataset"]),
            root=Path(extra["root"]),
            layout=layout,
            classes=tuple(extra["classes"]),
            bodies=int(extra["bodies"]),
            plan=plan,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: its manifest lacks {error}; run `c2vl-pipeline index` again") from error


def split_counts(index: Index) -> dict[str, dict[str, int]]:
    """Count usable samples a split: benchmark -> {train, test}."""
    counts: dict[str, dict[str, int]] = {}
    usable = index.table.filter(pc.invert(index.table.column("known_missing")))
    for pairs in usable.column("splits").to_pylist():
        for benchmark, split in pairs:
            counts.setdefault(benchmark, dict.fromkeys(SPLITS, 0))[split] += 1
    return counts
