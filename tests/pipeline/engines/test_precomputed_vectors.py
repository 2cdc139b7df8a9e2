"""The `precomputed-vectors` encoder: files answer by sample and slot, and say clearly what they cannot answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.recipe_loading import engine_preset, load_recipe
from c2vl_pipeline import engines, workspace
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import caption, crop, embed, index, pack, skeletons

SLOTS = 4


def spec(**options: str) -> EngineSpec:
    return EngineSpec(role="encoder", backend="precomputed-vectors", options=options)


def saved(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_a_slot_has_its_vector_or_that_of_all_at_unit_length(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(SLOTS, 6))
    engine = engines.load(spec(images=saved(tmp_path / "a.npz", many=rows, one=rows[2], two=rows[:2])))
    assert (engine.image_dim, engine.given) == (6, {"vision"})
    for name, expected in {"many": [0, 1, 2, 3], "one": [2] * 4}.items():
        for slot, row in enumerate(expected):
            unit = (rows[row] / np.linalg.norm(rows[row])).astype(np.float32)
            np.testing.assert_array_equal(engine.lookup("vision", name, slot, SLOTS), unit)
    assert "a.npz has 2 vectors of this sample; expected 4, or one" in str(engine.lookup("vision", "two", 1, SLOTS))
    assert "a.npz has no vector of this sample (it has 3 samples)" in str(engine.lookup("vision", "x", 0, SLOTS))
    with pytest.raises(EngineError, match=r"up to 4 vectors per sample, this run 16 frames; set pipeline\.frames=4"):
        engine.lookup("vision", "many", 0, 16)


def test_the_content_of_the_files_is_their_identity(tmp_path: Path) -> None:
    one, same = (saved(tmp_path / f"{n}.npz", a=np.ones(3)) for n in "ab")
    other = saved(tmp_path / "c.npz", a=np.array([1.0, 2, 3]))
    facts = [engines.key_facts(spec(images=path)) for path in (one, same, other)]
    assert facts[0]["options"] == {}
    assert facts[0] == facts[1] != facts[2]
    assert engines.key_facts(spec(texts=one)) != facts[0]


def test_files_that_are_not_named_or_not_there_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"images and \.texts are missing; .* `--set encoder\.images=FILE`"):
        engines.load(spec())
    with pytest.raises(EngineError, match=r"options\.texts = '.*none\.npz' does not exist; name a file"):
        engines.load(spec(texts=str(tmp_path / "none.npz")))
    engine = engines.load(spec(texts=saved(tmp_path / "a.npz", a=np.ones(3))))
    with pytest.raises(EngineError, match=r"zeroshot takes the vectors of its classes by --class-vectors"):
        engine.encode_texts(["a man"])


def test_the_preset_names_it() -> None:
    preset = engine_preset("precomputed-vectors")
    assert (preset["role"], preset["backend"]) == ("encoder", "precomputed-vectors")


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("images",), ("texts",), ("images", "texts")])
def test_given_vectors_are_packed_in_the_order_of_the_samples(
    raw: Path, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    from c2vl_manifests.datasets import load_dataset

    work, rng = tmp_path / "work", np.random.default_rng(1)
    base = load_recipe("debug", [f"pipeline.frames={SLOTS}"])
    index.build(
        load_dataset("synthetic"), raw, work, base.pipeline, recipe="debug", overrides=[f"pipeline.frames={SLOTS}"]
    )
    names = workspace.load(work).table.column("sample_id").to_pylist()
    held = {name: rng.normal(size=(SLOTS, 7)).astype(np.float16) for name in rng.permutation(names[1:])}
    path = saved(tmp_path / "v.npz", **held)
    settings = ["pipeline.embed.engine=precomputed-vectors", *(f"encoder.{kind}={path}" for kind in kinds)]
    recipe = load_recipe("debug", [f"pipeline.frames={SLOTS}", *settings])
    for stage in (skeletons.STAGE, crop.STAGE, caption.STAGE, embed.STAGE):
        runner.run_stage(stage, work, recipe, max_failures=0.5)
    packed = pack.run(work, recipe)
    for kind, files, width in (("vision", "images", packed.vision_dim), ("language", "texts", packed.language_dim)):
        vectors, ok = np.load(work / "packed" / f"{kind}.npy"), np.load(work / "packed" / f"{kind}_ok.npy")
        if files not in kinds:
            assert width != 7
            continue
        assert width == 7
        assert not ok[0].any()
        assert ok[1:].all()
        for name, rows in zip(names[1:], vectors[1:], strict=True):
            wide = held[name].astype(np.float64)
            np.testing.assert_allclose(rows, wide / np.linalg.norm(wide, axis=1, keepdims=True), atol=1e-3)
    assert packed.derived_from_joints("language") == ("texts" not in kinds)  # the captions are rules over the joints
    assert "v.npz" in str(packed.engines["embeddings"])
    assert str(tmp_path) not in str(packed.engines["embeddings"])
