"""The `released` captioner: a caption file answers by sample and slot, and says clearly what it cannot answer."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.recipe_loading import engine_preset, load_recipe
from c2vl_pipeline import engines, workspace
from c2vl_pipeline.engines import Caption, Crop
from c2vl_pipeline.execution import runner
from c2vl_pipeline.readers.captions import read_captions
from c2vl_pipeline.stages import caption, crop, embed, index, skeletons

NAME = "A001N002V003C004L005"
TABLE = {NAME: ["He is standing.", " She sits "], "A001N002V003C004L006": ["a", "b"]}


def write(path: Path, table: Any = TABLE) -> Path:
    text = table if isinstance(table, str) else json.dumps(table)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("text/captions.json", text)
            archive.writestr("__MACOSX/._captions.json", "not JSON")
            archive.writestr("README.md", "hello")
    else:
        path.write_text(text)
    return path


def spec(path: Path | str) -> EngineSpec:
    return EngineSpec(role="captioner", backend="precomputed", options={"path": str(path)})


def ask(path: Path, *where: tuple[str, int], frames: int | None = 2) -> Any:
    nothing = np.zeros((0, 0, 3), np.uint8)
    return engines.load(spec(path)).caption([Crop(nothing, name, slot, None, frames) for name, slot in where], "?")


@pytest.mark.parametrize("name", ["captions.json", "captions.zip"])
def test_each_crop_gets_the_caption_of_its_sample_and_slot(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    answers = ask(path, (NAME, 1), ("A001N002V003C004L006", 0), (NAME, 0))
    assert answers == [Caption("She sits", 2), Caption("a", 1), Caption("He is standing.", 3)]


def test_a_sample_the_file_lacks_costs_its_row(tmp_path: Path) -> None:
    first, second = ask(write(tmp_path / "c.json"), ("A009N002V003C004L005", 0), (NAME, 0))
    assert isinstance(first, LookupError)
    assert str(first) == "the caption file c.json has no captions of this sample (it has 2 samples)"
    assert second.text == "He is standing."


@pytest.mark.parametrize("frames", [1, 3, 16])
def test_another_number_of_frames_stops_the_stage(tmp_path: Path, frames: int) -> None:
    with pytest.raises(EngineError, match=rf"2 captions per sample, this run {frames} frames; set pipeline.frames=2"):
        ask(write(tmp_path / "c.json"), (NAME, 0), frames=frames)


def test_samples_may_have_unequal_numbers_of_captions_and_none_is_lost(tmp_path: Path) -> None:
    """A frame has the caption of the segment that its middle lies in, as a naive search over segments finds it."""
    names = [f"A001N002V003C004L{n:03d}" for n in range(17)]
    table = {name: [f"{i} of {n}" for i in range(n)] for n, name in enumerate(names)}
    path = write(tmp_path / "c.json", table)
    for n, name in enumerate(names):
        answers = ask(path, *((name, slot) for slot in range(16)), frames=16)
        if n == 0:
            assert {type(answer) for answer in answers} == {LookupError}
            continue
        middles = [(slot + 0.5) / 16 for slot in range(16)]
        naive = [next(i for i in range(n) if i / n <= middle < (i + 1) / n) for middle in middles]
        assert [answer.text for answer in answers] == [f"{i} of {n}" for i in naive]
        assert set(naive) == set(range(n))
    with pytest.raises(EngineError, match=r"0 to 16 captions per sample, this run 12 frames; set pipeline\.frames=16"):
        ask(path, (names[16], 0), frames=12)


def test_another_dataset_stops_the_stage(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"another dataset.*'A001N002V003C004L005'.*'S001C001P001R001A001'"):
        ask(write(tmp_path / "c.json"), ("S001C001P001R001A001", 0))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("{nope", "is not JSON"),
        ([1], "holds no table of samples"),
        ({}, "holds no table of samples"),
        ({"a": 3}, "'a' has no list of texts"),
        ({"a": ["x", 3]}, "'a' has no list of texts"),
        ({"a": [], "b": []}, "has no caption of any of its 2 samples"),
    ],
)
@pytest.mark.parametrize("name", ["c.json", "c.zip"])
def test_a_file_of_another_form_is_refused_in_one_line(tmp_path: Path, name: str, table: Any, says: str) -> None:
    path = write(tmp_path / name, table)
    with pytest.raises(EngineError) as caught:
        engines.load(spec(path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


FORMS = {
    "json": lambda path: path.write_text(json.dumps(TABLE)),
    "csv": lambda path: path.write_text(
        "caption,slot,sample_id\n"
        + "".join(f'"{text}",{n},{name}\n' for name, said in TABLE.items() for n, text in reversed([*enumerate(said)]))
    ),
    "parquet": lambda path: pq.write_table(
        pa.Table.from_pylist(
            [
                {"sample_id": name, "slot": n, "caption": text}
                for name, said in TABLE.items()
                for n, text in enumerate(said)
            ]
        ),
        path,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_of_captions_says_what_json_says(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / f"c.{form}")
    answers = ask(tmp_path / f"c.{form}", (NAME, 1), ("A001N002V003C004L006", 0), (NAME, 0))
    assert answers == [Caption("She sits", 2), Caption("a", 1), Caption("He is standing.", 3)]


@pytest.mark.parametrize("content", [{NAME: "a man"}, {NAME: ["a man"]}, f"sample_id,caption\n{NAME},a man\n"])
def test_one_caption_of_a_sample_is_that_of_all_slots(tmp_path: Path, content: Any) -> None:
    path = write(tmp_path / ("c.csv" if isinstance(content, str) else "c.json"), content)
    assert [answer.text for answer in ask(path, (NAME, 0), (NAME, 7), frames=8)] == ["a man"] * 2


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("a,b\n1,2\n", "the columns are a, b; expected sample_id, caption and perhaps slot"),
        ("sample_id,caption\n", "the columns are none"),
        ("sample_id,caption\nx,a\nx,b\n", "row 2: sample 'x' has slot all twice"),
        ("sample_id,slot,caption\nx,0,a\nx,,b\n", "row 2: sample 'x' has slot all twice"),
        ("sample_id,slot,caption\nx,1,a\nx,1,b\n", "row 2: sample 'x' has slot 1 twice"),
        ("sample_id,slot,caption\nx,-1,a\n", "row 1 has the sample_id 'x' and the slot '-1'"),
        ("sample_id,slot,caption\n,1,a\n", "row 1 has the sample_id ''"),
        ("sample_id,caption\nx,\n", "has no caption of any of its 1 samples"),
    ],
)
def test_a_wrong_table_of_captions_is_one_line(tmp_path: Path, table: str, says: str) -> None:
    with pytest.raises(EngineError) as caught:
        engines.load(spec(write(tmp_path / "c.csv", table)))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_slot_without_a_caption_costs_its_row(tmp_path: Path) -> None:
    first, second = ask(write(tmp_path / "c.csv", f"sample_id,slot,caption\n{NAME},1,a man\n"), (NAME, 0), (NAME, 1))
    assert isinstance(first, LookupError)
    assert second.text == "a man"


def nowhere(path: Path) -> None: ...


def no_zip(path: Path) -> None:
    path.write_bytes(b"PK but not really")


def two(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.json", "{}")
        archive.writestr("b.json", "{}")


@pytest.mark.parametrize(
    ("make", "says"), [(nowhere, "cannot be read"), (no_zip, "cannot be read"), (two, "holds 2 JSON files")]
)
def test_a_file_that_cannot_be_read_is_refused_before_any_row(
    tmp_path: Path, make: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / "c.zip"
    make(path)
    with pytest.raises(EngineError, match=says):
        engines.key_facts(spec(path))


def test_rows_outlive_moving_and_packing_the_file_but_not_another_text(tmp_path: Path) -> None:
    plain = engines.key_facts(spec(write(tmp_path / "a.json")))
    assert engines.key_facts(spec(write(tmp_path / "b.json"))) == plain
    assert engines.key_facts(spec(write(tmp_path / "b.zip"))) == plain
    assert engines.key_facts(spec(write(tmp_path / "c.json", TABLE | {NAME: ["He is standing!", "x"]}))) != plain


def test_the_preset_lacks_only_the_path(tmp_path: Path) -> None:
    preset = engine_preset("precomputed")
    with pytest.raises(EngineError, match=r"options\.path is missing.*--set pipeline\.caption\.engine\.options\.path="):
        engines.load(EngineSpec.model_validate(preset))
    whole = EngineSpec.model_validate(preset | {"options": {"path": str(write(tmp_path / "c.json"))}})
    assert engines.load(whole).describe()["samples"] == 2


def test_language_prompts_need_no_videos(raw: Path, tmp_path: Path) -> None:
    """The stage takes captions where there is no crop, and embeds them; only a sample the file lacks fails."""
    bare = tmp_path / "raw"
    bare.mkdir()
    for path in raw.iterdir():
        if path.suffix != ".avi" and path.is_file():
            (bare / path.name).symlink_to(path)
        elif path.is_dir():
            (bare / path.name).mkdir()
            for inner in path.iterdir():
                if inner.suffix != ".avi":
                    (bare / path.name / inner.name).symlink_to(inner)
    work = tmp_path / "w"
    index.build(
        load_dataset("synthetic"), bare, work, load_recipe("debug").pipeline, recipe="debug", allow_missing=True
    )
    names = workspace.load(work).table.column("sample_id").to_pylist()
    answers = {n: [f"{n} at {slot}" for slot in range(4)] for n in names[1:]}
    longer = {n: [*texts, "one more"] for n, texts in answers.items()}

    def with_file(name: str, table: Any) -> Any:
        where = f"pipeline.caption.engine.options={{path='{write(tmp_path / name, table)}'}}"
        return load_recipe("debug", ["pipeline.caption.engine=precomputed", where])

    recipe = with_file("captions.json", answers)
    for stage in (skeletons.STAGE, crop.STAGE):
        runner.run_stage(stage, work, recipe)
    with pytest.raises(EngineError, match=r"5 captions per sample, this run 4 frames"):
        runner.run_stage(caption.STAGE, work, with_file("longer.json", longer))
    captions = runner.run_stage(caption.STAGE, work, recipe)
    assert captions.complete
    assert dict(captions.statuses) == {"failed": 4, "ok": 4 * (len(names) - 1)}
    for shard in sorted((work / "captions").glob("shard-*.parquet")):
        for row in pq.read_table(shard).to_pylist():
            expected = None if row["sample_id"] == names[0] else f"{row['sample_id']} at {row['slot']}"
            assert row["caption"] == expected
    runner.run_stage(embed.STAGE, work, recipe)
    vectors = [r for p in sorted((work / "embeddings").glob("shard-*.parquet")) for r in pq.read_table(p).to_pylist()]
    assert {r["vision_status"] for r in vectors} == {"missing_video"}
    assert sum(r["language_status"] == "ok" for r in vectors) == 4 * (len(names) - 1)


def test_the_authors_file_holds_what_they_say(shared: Path) -> None:
    path = shared / "captions" / "pkuv2_language.zip"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    captions = read_captions(path)
    texts = [text for of_sample in captions.values() for text in of_sample]
    assert len(captions) == 6952
    assert {len(of_sample) for of_sample in captions.values()} == {16}
    assert len(texts) == 111_232
    assert len(set(texts)) == 47_529  # 57 % are repeats
    assert all(text.strip() for text in texts)


def test_the_authors_keys_are_our_sample_ids(shared: Path, tmp_path: Path) -> None:
    """Label files made from the keys themselves give an index with exactly these samples, and the file answers all."""
    path = shared / "captions" / "pkuv2_language.zip"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    captions = read_captions(path)
    rows: dict[str, dict[int, int]] = {}
    for key in captions:
        setup, subject, view, label, row = (int(key[a:b]) for a, b in ((1, 4), (5, 8), (9, 12), (13, 16), (17, 20)))
        rows.setdefault(f"A{setup:02d}N{subject:02d}-{'LMR'[view - 1]}", {})[row] = label
    labels = tmp_path / "raw" / "Label"
    labels.mkdir(parents=True)
    for video, of_video in rows.items():
        lines = [f"{of_video[n]},1,2,1" if n in of_video else "" for n in range(1, max(of_video) + 1)]
        (labels / f"{video}.txt").write_text("\n".join(lines) + "\n")
    index.build(
        load_dataset("pku-mmd-2"),
        tmp_path / "raw",
        tmp_path / "w",
        load_recipe("debug").pipeline,
        recipe="debug",
        allow_missing=True,
    )
    ours = workspace.load(tmp_path / "w").table.column("sample_id").to_pylist()
    assert len(rows) == 1009
    assert sorted(ours) == sorted(captions)
    answers = ask(path, *((name, 15) for name in ours), frames=16)
    assert [a.text for a in answers] == [captions[name][15].strip() for name in ours]
