"""A published folder opens with the library of a hub, holds what was asked for alone, and is resumed like a stage."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import RepoCard

from c2vl_manifests import manifest
from c2vl_manifests.errors import DataError, StageError
from c2vl_manifests.events import Note
from c2vl_manifests.layouts import LAYOUTS
from c2vl_manifests.manifest import read_shard, read_shard_manifest
from c2vl_manifests.schema import CAPTIONS
from c2vl_pipeline.publishing import publish as sharing
from c2vl_pipeline.publishing.card import card
from c2vl_pipeline.publishing.publish import Part, Published, publish
from c2vl_pipeline.workspace import load, shard_path
from support.cli import Cli, refused
from support.factory import rows
from support.pages import rewrite
from support.sharing import library


def table(out: Path, name: str) -> list[dict[str, Any]]:
    return [row for path in sorted((out / name).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def times(out: Path) -> dict[str, int]:
    return {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in out.rglob("shard-*.[pt]*")}


@pytest.mark.slow
def test_every_table_opens_with_the_library_of_the_hub(work, tmp_path, monkeypatch):
    out, index = tmp_path / "out", load(work)
    publish(work, out, crops=True, skeletons=True)
    datasets = library(monkeypatch, tmp_path)
    said = index.table.to_pylist()
    for name in ("samples", "captions", "embeddings", "crops", "skeletons"):
        found = datasets.load_dataset(str(out), name, split="full")
        made = said if name == "samples" else rows(work, name)
        assert [row["sample_id"] for row in found.select_columns(["sample_id"])] == [row["sample_id"] for row in made]
        classes = {row["sample_id"]: index.classes[row["label"]] for row in said}
        splits = {row["sample_id"]: dict(row["splits"]) for row in said}
        for row in found.select_columns(["sample_id", "class", "split_xsub", "split_xview"]):
            assert row["class"] == classes[row["sample_id"]]
            mine = splits[row["sample_id"]]
            assert (row["split_xsub"], row["split_xview"]) == (mine.get("xsub"), mine.get("xview"))
    vectors = datasets.load_dataset(str(out), "embeddings", split="full").with_format("numpy")
    for row, made in zip(vectors.select(range(9)), rows(work, "embeddings"), strict=False):
        np.testing.assert_array_equal(row["language"], np.array(made["language"], np.float32))
    crops = datasets.load_dataset(str(out), "crops", split="full").cast_column("jpeg", datasets.Image())
    assert next(row["jpeg"].size[0] for row in crops if row["status"] == "ok") > 8
    skeleton = next(r for r in datasets.load_dataset(str(out), "skeletons", split="full") if r["frames"])
    joints = np.frombuffer(skeleton["joints"], "float32").reshape(skeleton["frames"], -1, 25, 3)
    assert joints.any(axis=(0, 2, 3))[0]


def test_errors_name_no_folder_of_the_data_though_it_holds_spaces(work, tmp_path):
    mine, root = tmp_path / "w", tmp_path / "jane doe"
    shutil.copytree(work, mine)
    (root / "raw").mkdir(parents=True)
    path = mine / "samples.parquet"
    held = read_shard_manifest(path)
    assert held is not None
    manifest.commit_table(
        path, read_shard(path), key=held.key, extra=held.extra | {"root": str(root / "raw")}, row_group=99
    )
    error = {
        "status": "failed",
        "error_class": "X",
        "error": f"{root}/raw/a b/c0.npy: not joints of jane:8000/v1",
        "caption": None,
    }
    rewrite(mine, "captions", CAPTIONS, lambda found: found[3].update(error))
    publish(mine, tmp_path / "out")
    assert any("c0.npy: not joints" in str(row["error"]) for row in table(tmp_path / "out", "captions"))
    assert not any("jane" in str(row["error"]) for row in table(tmp_path / "out", "captions"))


@pytest.mark.parametrize(("layout", "unit"), [("coco_17", "image heights"), ("kinect_v2", "metres")])
def test_the_card_names_the_unit_of_the_layout(layout: str, unit: str) -> None:
    facts = Published(
        complete=True, dataset="a", title="A", samples=1, classes=1, splits={}, layout=LAYOUTS[layout].as_dict(),
        parts={"skeletons": Part(rows=1, statuses={"ok": 1})}, webdataset=False, engines={}, configs={}, recipe="debug",
        overrides=(),
    )  # fmt: skip
    assert f"joints of its valid frames, float32 in {unit} |" in card(facts)


def test_pictures_and_joints_are_published_on_request_and_taken_back_without(work, tmp_path):
    out = tmp_path / "out"
    publish(work, out)
    assert {name.split("/")[0] for name in files(out)} == {
        "README.md", "published.json", "samples", "captions", "embeddings"
    }  # fmt: skip
    plain = files(out)
    publish(work, out, crops=True, skeletons=True, webdataset=True)
    assert {"crops", "skeletons", "webdataset"} <= {path.name for path in out.iterdir()}
    (out / "captions" / "shard-00099.parquet").write_bytes(b"of a larger set")
    publish(work, out)
    assert files(out) == plain
    assert not (out / "crops").exists()


def test_a_second_call_writes_no_shard_again_and_a_damaged_or_changed_one_alone(work, tmp_path):
    mine, out = Path(shutil.copytree(work, tmp_path / "work")), tmp_path / "out"
    publish(mine, out, webdataset=True)
    before = times(out)
    publish(mine, out, webdataset=True)
    assert times(out) == before
    path = out / "captions" / "shard-00000.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    tar = out / "webdataset" / "shard-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-9])
    publish(mine, out, webdataset=True)
    assert {name for name, time in times(out).items() if time != before[name]} == {
        "captions/shard-00000.parquet", "webdataset/shard-00000.tar"
    }  # fmt: skip
    before = times(out)
    rewrite(mine, "captions", CAPTIONS, lambda found: found[0].update(caption="another"))
    publish(mine, out)
    changed = {name for name, time in times(out).items() if time != before.get(name)}
    assert changed == {"captions/shard-00000.parquet"}
    assert table(out, "captions")[0]["caption"] == "another"


def test_a_call_that_ended_early_is_gone_on_with(work, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", []

    def full(path, *args, **more):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(path))
        return real(path, *args, **more)

    real = manifest.commit_table
    monkeypatch.setattr(sharing, "commit_table", full)
    with pytest.raises(OSError, match="No space"):
        publish(work, out)
    assert not Published.model_validate_json((out / "published.json").read_text()).complete
    monkeypatch.setattr(sharing, "commit_table", real)
    before = times(out)
    assert publish(work, out).complete
    assert all(times(out)[name] == time for name, time in before.items())


def test_a_folder_of_somebody_else_is_refused_and_left_alone(work, tmp_path):
    for name, content in (("notes.txt", "mine"), ("published.json", "{"), ("published.json", '{"format": 1}')):
        out = tmp_path / f"{name}{len(content)}"
        out.mkdir()
        (out / name).write_text(content)
        with pytest.raises(DataError, match=r"holds '.*' and no published\.json of this command; name a new folder"):
            publish(work, out)
        assert files(out) == {name}
    clone = tmp_path / "clone"
    (clone / ".git").mkdir(parents=True)
    (clone / ".gitattributes").write_text("*.parquet filter=lfs")
    assert publish(work, clone).complete
    path = clone / "published.json"
    path.write_text(path.read_text().replace('"dataset": "synthetic"', '"dataset": "another"'))
    before = times(clone)
    with pytest.raises(DataError, match=r"holds the dataset 'another', expected 'synthetic'; name a new folder"):
        publish(work, clone)
    assert times(clone) == before


def test_a_work_folder_that_is_not_done_names_the_command(work, tmp_path, cli: Cli):
    mine = Path(shutil.copytree(work, tmp_path / "work", ignore=shutil.ignore_patterns("embeddings")))
    with pytest.raises(StageError, match=r"publish needs the embeddings .* do not exist; run `c2vl-pipeline embed"):
        publish(mine, tmp_path / "out")
    refused(cli("c2vl-pipeline", "publish", "--work", tmp_path / "none", "--out", tmp_path / "out"), "holds no index")
    assert not (tmp_path / "out").exists()


def test_the_card_says_what_is_there_and_an_edited_one_stays(odd, tmp_path):
    out, notes = tmp_path / "out", list[Note]()
    made = publish(odd, out, webdataset=True)
    text = (out / "README.md").read_text()
    front = RepoCard.load(out / "README.md").data.to_dict()
    assert front["license"] == "unknown"
    assert [one["config_name"] for one in front["configs"]] == ["samples", "captions", "embeddings"]
    captions = rows(odd, "captions")
    failed = sum(row["status"] == "failed" for row in captions)
    assert made.parts["captions"].rows == len(captions)
    assert failed
    for said in ("## Licence", "posecode", "classical", "they are no evidence for language", "webdataset/\\*.tar"):
        assert said.replace("\\", "") in text
    assert "split\\_xsub" in text
    (out / "README.md").write_text(text.replace('license: "unknown"', "license: cc-by-4.0"))
    publish(odd, out, emit=lambda event: notes.append(event) if isinstance(event, Note) else None)
    assert "cc-by-4.0" in (out / "README.md").read_text()
    assert len(notes) == 1
    assert "was edited and stays" in notes[0].text
    (out / "README.md").unlink()
    publish(odd, out)
    assert 'license: "unknown"' in (out / "README.md").read_text()


def test_errors_name_no_folder_of_this_machine_and_rows_stay_as_they_are(work, tmp_path):
    mine, out = Path(shutil.copytree(work, tmp_path / "work")), tmp_path / "out"
    error = {
        "status": "failed",
        "error_class": "OSError",
        "error": "/home/someone/weights/a.bin: gone",
        "caption": None,
    }
    rewrite(mine, "captions", CAPTIONS, lambda found: found[3].update(error))
    publish(mine, out)
    found, made = table(out, "captions"), rows(mine, "captions")
    assert found[3]["error"] == "…/a.bin: gone"
    own = [name for name in made[0] if name != "error"]
    assert [[row[name] for name in own] for row in found] == [[row[name] for name in own] for row in made]
    path = out / "captions" / "shard-00000.parquet"
    committed = read_shard_manifest(path)
    assert committed is not None
    assert committed.statuses["failed"] == 1
    assert read_shard(path).num_rows == committed.rows
    assert b"someone" not in b"".join(one.read_bytes() for one in out.rglob("*.json"))


def test_the_command_says_what_to_read_before_anything_is_given_away(work, tmp_path, cli: Cli):
    said = cli("c2vl-pipeline", "publish", "--work", work, "--out", tmp_path / "out", "--webdataset")
    assert said.code == 0
    assert "read the section Licence" in said.told[1][-1]
    shards = len(load(work).shard_ranges)
    assert len(list((tmp_path / "out" / "webdataset").glob("*.tar"))) == shards
    assert os.path.samefile(shard_path(tmp_path / "out", "captions", 0).parent, tmp_path / "out" / "captions")
