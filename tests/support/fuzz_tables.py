"""Random mutations of label files, own tables, files of other tools, layouts and rules: a value or one C2VLError, always.

`python tests/support/fuzz_tables.py --inputs 100000 --seed 0` runs so many inputs of every kind and prints what became of them;
`test_readers_fuzz.py` runs a few of each. Memory is bounded for the whole run, time for every input.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
import scipy.optimize  # noqa: F401, readers load both when they first need them

from c2vl_manifests.datasets import Dataset, load_dataset, parse_dataset
from c2vl_manifests.errors import C2VLError
from c2vl_manifests.layouts import KINECT_V1, Layout, load_layout, parse_layout
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_manifests.schema import SAMPLES
from c2vl_manifests.vectors import read_vectors
from c2vl_pipeline.readers import drive
from c2vl_pipeline.readers.arrays import read_array
from c2vl_pipeline.readers.base import Scan
from c2vl_pipeline.readers.captions import read_captions
from c2vl_pipeline.readers.files import pyskl
from c2vl_pipeline.readers.pku import parse_labels
from c2vl_pipeline.readers.sample_table import parse_table
from support import other_tools

SOURCE = "some/file"
_TOKENS = (
    b"nan", b"inf", b"-1", b"1e400", b"9" * 400, b"9" * 5000, b"1_0", b"0x10", b"\0", b"\n", b"\r", b"\r\n", b",", b'"',
    b"'", b"[", b"]", b"{", b"}", b"=", b"[" * 300, b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xd9\xa1", b"true",
    b"2024-01-01T00:00:00", b"split_", b"sample_id", b'"""', b"#", b" ", b"\x1c", b"\x0b", b"32768", b"-2147483649",
)  # fmt: skip
_MOST_SECONDS = 2.0
_MOST_BYTES = 4 << 30


def _data(*parts: str) -> bytes:
    return resources.files("c2vl_manifests").joinpath("data", *parts).read_bytes()


_ENTRIES = [
    {"sample_id": "b", "video": "v.avi", "start_frame": 10, "end_frame": 20, "label": "wave", "split_mine": "test"},
    {"sample_id": "a", "video": "v.avi", "start_frame": 0, "end_frame": 10, "label": "3", "split_mine": "train"},
    {"sample_id": "c", "video": None, "start_frame": None, "end_frame": None, "label": None, "split_mine": None},
]  # fmt: skip


def _parquet(entries: list[dict[str, object]], **options: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(entries), out, **options)
    return out.getvalue()


def _written(write: Callable[[Path], object], name: str = "") -> bytes:
    """Return the content of the file that a writer makes in a folder, or at a name in it."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return next(path for path in sorted(Path(folder).rglob("*")) if path.is_file()).read_bytes()


def _tool(tool: str, layout: str = "coco_17") -> bytes:
    pixels = other_tools.walkers(load_layout(layout), 0, frames=8)
    return _written(lambda folder: other_tools.IN_PIXELS[tool][1](folder, "a", pixels))


def _pickle(protocol: int) -> bytes:
    clips = [
        other_tools.annotation(f"clip{n}", other_tools.walkers(load_layout("coco_17"), n, 8)[:, :, :]) for n in range(2)
    ]
    return _written(lambda path: other_tools.pyskl(path, clips, protocol), "a.pkl")


def _landmarks(write: Callable[[Path, str, np.ndarray], str]) -> bytes:
    return _written(lambda folder: write(folder, "a", other_tools.world(0, 2)))


_VECTORS = {"a": np.ones(3, np.float32), "b": np.eye(3, dtype=np.float16)[:2]}


SEEDS: dict[str, list[bytes]] = {
    "labels": [b"3,1,30,2\n5,40,20,1\n\n51,31.0,60,2\n", b"1,0,9,2\r\n2,10,50,2", b""],
    "csv": [
        b"sample_id,video,start_frame,end_frame,skeleton,label,subject,view,split_mine\n"
        b'b,v.avi,10,20,b.npy,10,3,2,test\n"a, b",v.avi,0,10,,9,,2,train\nc,,,,b.npy,,1,,\n',
        b"sample_id\r\na\r\n",
        b"\xef\xbb\xbfsample_id,label\na,x\n",
    ],
    "parquet": [
        _parquet(_ENTRIES),
        _parquet(_ENTRIES, compression="none", use_dictionary=False),
        _parquet(
            [{"sample_id": 1, "view": 1.0, "label": True}, {"sample_id": 2, "view": float("nan"), "label": False}]
        ),
    ],
    "chunks": [
        b"participant_id,file_id,annotation_id,frame_start,frame_end,activity,chunk_id\n"
        b"1,vp1/run1b_2018-05-29-14-02-47.ids_1,0,0,90,drinking,0\n"
        b"1,vp1/run1b_2018-05-29-14-02-47.ids_1,12,90,97,looking_or_moving_around (e.g. searching),1\n"
    ],
    "layout": [
        _data("layouts", "coco_17.toml"),
        _data("layouts", "kinect_v1.toml"),
        b'names = ["hip", "knee"]\nparents = ["hip", "hip"]\ndims = 2\norigin = "knee"\n',
    ],
    "pickle": [_pickle(2), _pickle(4)],
    "alphapose": [_tool("AlphaPose")],
    "openpose": [_tool("OpenPose", "body_25")],
    "mmpose": [_tool("MMPose")],
    "mediapipe": [_tool("MediaPipe", "mediapipe_33_2d")],
    "landmarks": [_landmarks(other_tools.world_long), _landmarks(other_tools.world_wide)],
    "matlab": [_tool("MATLAB")],
    "captions": [b'sample_id,slot,caption\na,0,"a man, who"\na,1,waves\nb,,sits\n', b"caption,sample_id\nx,a\ny,b\n"],
    "vectors": [
        _written(lambda path: np.savez(path, **_VECTORS), "a.npz"),
        _written(lambda path: np.savez(path, sample_id=np.array(["a", "b"]), vector=np.eye(2)), "a.npz"),
    ],
    "rules": [_data("datasets", name) for name in ("utd-mhad.toml", "pku-mmd-1.toml", "pku-mmd-2.toml")],
}

if find_spec("c3d") is not None:  # an extra
    _MARKERS = np.random.default_rng(0).uniform(-900, 900, (4, 20, 3)).round()
    SEEDS["c3d"] = [
        _written(partial(other_tools.mocap, labels=[*KINECT_V1.names], places=_MARKERS, scale=scale), "a.c3d")
        for scale in (-1.0, 0.5)
    ]


def _labels(content: bytes) -> None:
    rows = parse_labels(content.decode("utf-8", "replace"), "0043-L", load_dataset("pku-mmd-1"), SOURCE)
    pa.Table.from_pylist(rows, schema=SAMPLES)


def _chunks(content: bytes) -> None:
    rows = drive.parse_labels(content.decode("utf-8", "replace"), "0", "val", load_dataset("drive-act"), SOURCE)
    pa.Table.from_pylist(rows, schema=SAMPLES)


def _table(suffix: str) -> Callable[[bytes], None]:
    def parse(content: bytes) -> None:
        classes, rows = parse_table(content, suffix, SOURCE)
        pa.Table.from_pylist(rows, schema=SAMPLES)
        assert all(-1 <= row["label"] < len(classes) for row in rows)

    return parse


def _layout(content: bytes) -> None:
    layout = parse_layout(content.decode("utf-8", "replace"), "own", SOURCE)
    assert len(layout.bones) == layout.joints - 1
    assert Layout.from_dict(json.loads(json.dumps(layout.as_dict()))) == layout


def _rules(content: bytes) -> None:
    dataset = parse_dataset(content.decode("utf-8", "replace"), SOURCE)
    assert isinstance(dataset, Dataset)
    fields = dict.fromkeys(("subject", "view", "setup", "video"), 3)
    assert set(dataset.splits(fields).values()) <= {"train", "test"}


def _file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    """Give the content to a reader as a file of this name."""

    def parse(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            try:
                read(path)
            except C2VLError as error:
                text = str(error)
                assert folder in text, f"a message without its file: {text!r}"
                raise type(error)(f"{SOURCE}: {text.replace(folder, '')}") from error

    return parse


def _joints(path: Path, layout: str, folder: bool = False) -> None:
    config = SkeletonsConfig(image_size=(other_tools.WIDTH, other_tools.HEIGHT))
    made = read_array(path.parent if folder else path, load_layout(layout), 2, {"sample_id": "clip1"}, config)
    assert np.isfinite(made.joints).all()
    assert made.joints.shape[2:] == (load_layout(layout).joints, load_layout(layout).dims)


def _annotations(path: Path) -> None:
    made = pyskl.expected_rows(path, Scan())
    pa.Table.from_pylist(made.rows, schema=SAMPLES)
    _joints(path, "coco_17")


FILES: dict[str, Callable[[bytes], None]] = {
    "pickle": _file("samples.pkl", _annotations),
    "alphapose": _file("a.json", partial(_joints, layout="coco_17")),
    "openpose": _file("clip/a_000000000002_keypoints.json", partial(_joints, layout="body_25", folder=True)),
    "mmpose": _file("a.json", partial(_joints, layout="coco_17")),
    "mediapipe": _file("a.json", partial(_joints, layout="mediapipe_33_2d")),
    "landmarks": _file("a.csv", partial(_joints, layout="mediapipe_33")),
    "matlab": _file("a.mat", partial(_joints, layout="coco_17")),
    "captions": _file("a.csv", read_captions),
    "vectors": _file("a.npz", read_vectors),
}
"""Readers of files, which are given a path."""
if "c3d" in SEEDS:
    FILES["c3d"] = _file("a.c3d", partial(_joints, layout="kinect_v1"))

TARGETS: dict[str, Callable[[bytes], None]] = {
    **FILES,
    "labels": _labels,
    "chunks": _chunks,
    "csv": _table(".csv"),
    "parquet": _table(".parquet"),
    "layout": _layout,
    "rules": _rules,
}


def mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Return a seed after one to eight random changes: bits, cuts, insertions, repeats, splices."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randint(0, len(data))
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 16, 64)))
        match rng.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = rng.choice(_TOKENS)
            case 3:
                data[at:end] = rng.choice(_TOKENS)
            case 4:
                data[at:at] = data[at:end] * rng.choice((1, 2, 30))
            case 5:
                other = rng.choice(seeds)
                data[at:] = other[rng.randint(0, len(other)) :]
            case _:
                data[at:end] = rng.randbytes(end - at)
    return bytes(data[: 1 << 16])


def outcome(target: str, content: bytes) -> str:
    """Feed one input: `value` or `refused`; anything else is a failure that names the input."""
    began = time.perf_counter()
    try:
        TARGETS[target](content)
        became = "value"
    except C2VLError as error:
        text = str(error)
        assert "\n" not in text, f"{target}: a message of two lines for {content!r}: {text!r}"
        assert text.startswith(SOURCE), f"{target}: a message without its file for {content!r}: {text!r}"
        assert len(text) < 1000, f"{target}: a message of {len(text)} letters for {content!r}"
        became = "refused"
    except BaseException as error:
        raise AssertionError(f"{target}: {type(error).__name__}: {error} for {content!r}") from error
    seconds = time.perf_counter() - began
    assert seconds < _MOST_SECONDS, f"{target}: {seconds:.1f} s for {content!r}"
    return became


def run(target: str, inputs: int, seed: int) -> Counter[str]:
    """Feed so many mutations of a target's seeds."""
    rng = random.Random(f"{target}-{seed}")
    return Counter(outcome(target, mutate(rng, SEEDS[target])) for _ in range(inputs))


def main() -> None:
    """Run every target and print what became of its inputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="of every target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(TARGETS))
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    for target in [asked.only] if asked.only else TARGETS:
        began = time.perf_counter()
        counts = run(target, asked.inputs, asked.seed)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{target}: {dict(counts)} in {time.perf_counter() - began:.0f} s, at most {most} MiB", flush=True)


if __name__ == "__main__":
    main()
