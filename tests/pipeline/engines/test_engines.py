"""The registry of engines: identity, revisions, loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import engines
from c2vl_pipeline.engines.groundingdino import GroundingDinoPy
from c2vl_pipeline.engines.heuristic import Classical, MotionDetector, SkeletonDetector
from c2vl_pipeline.engines.hf_encoder import HfEncoder
from c2vl_pipeline.engines.openai_server import Served
from c2vl_pipeline.engines.posecode import PoseCode
from c2vl_pipeline.engines.precomputed import Precomputed
from c2vl_pipeline.maintenance.status import survey

URL = "http://nowhere:1/v1"
SPECS = [
    pytest.param("detector", "skeleton", None, {"grow": 0.1}, SkeletonDetector, id="skeleton"),
    pytest.param("detector", "motion", None, {}, MotionDetector, id="motion"),
    pytest.param("encoder", "classical", None, {}, Classical, id="classical"),
    pytest.param("captioner", "posecode", None, {}, PoseCode, id="posecode"),
    pytest.param("captioner", "precomputed", None, {"path": "captions.json"}, Precomputed, id="precomputed"),
    pytest.param("captioner", "openai", "served", {"base_url": URL}, Served, id="openai"),
    pytest.param("encoder", "hf", "clip", {}, HfEncoder, id="hf"),
    pytest.param("detector", "groundingdino-py", "a.pth", {}, GroundingDinoPy, id="groundingdino-py"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with as much of every engine's weights as its identity needs, as the current one."""
    (tmp_path / "captions.json").write_text(json.dumps({"a": ["He sits."]}))
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "a.pth").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of(role: Any, backend: str, model: str | None, options: dict[str, Any]) -> EngineSpec:
    return EngineSpec(role=role, backend=backend, model=model, options=options)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("role", "backend", "model", "options", "engine"), SPECS)
def test_other_code_makes_other_rows_and_the_first_revision_goes_unsaid(
    role: Any, backend: str, model: str | None, options: Any, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = of(role, backend, model, options)
    monkeypatch.setattr(engine, "REVISION", 1)
    first = engines.key_facts(spec)
    assert "revision_of_code" not in first
    for revision in (2, 3):
        monkeypatch.setattr(engine, "REVISION", revision)
        assert engines.key_facts(spec) == first | {"revision_of_code": revision}


def test_keys_of_committed_rows_stay_as_they_are() -> None:
    spec = EngineSpec(role="detector", backend="skeleton", device="cpu", batch_size=3, options={"grow": 0.1})
    assert engines.key_facts(spec) == {
        "role": "detector",
        "backend": "skeleton",
        "model": None,
        "revision": None,
        "dtype": "float32",
        "options": {"grow": 0.1},
    }


def test_rows_of_former_code_are_stale_and_say_why(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration's captions are made by `posecode`, its crops and embeddings by `heuristic` engines."""
    recipe = load_recipe("debug", [])
    assert {stage.stage: stage.state for stage in survey(work, recipe)}["captions"] == "complete"
    for engine, stale in ((PoseCode, {"captions"}), (SkeletonDetector, {"crops"}), (Classical, {"embeddings"})):
        with monkeypatch.context() as patch:
            patch.setattr(engine, "REVISION", 2)
            found = {stage.stage: (stage.state, stage.why) for stage in survey(work, recipe) if stage.why}
            assert found == {stage: ("stale", {"engine.revision_of_code: null -> 2": 4}) for stage in stale}


def test_where_the_weights_are_absent_the_revision_is_still_said(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = of("encoder", "hf", "/nowhere/clip", {})
    before = engines.declared_facts(spec)
    monkeypatch.setattr(HfEncoder, "REVISION", 2)
    with pytest.raises(EngineError, match="no such folder"):
        engines.key_facts(spec)
    assert engines.declared_facts(spec) == before | {"revision_of_code": 2}


def test_where_the_package_is_absent_a_spec_is_stated_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = of("captioner", "posecode", None, {})
    before = engines.declared_facts(spec)
    monkeypatch.setattr(PoseCode, "REVISION", 2)
    monkeypatch.setitem(engines.BACKENDS, ("captioner", "posecode"), engines.Backend("no_such_package:A"))
    with pytest.raises(EngineError, match="'no_such_package' is not installed"):
        engines.key_facts(spec)
    assert engines.declared_facts(spec) == before


@pytest.mark.parametrize(
    ("role", "setting"),
    [
        ("detector", "pipeline.crop.engine"),
        ("captioner", "pipeline.caption.engine"),
        ("encoder", "pipeline.embed.engine"),
    ],
)
def test_settings_are_named_as_recipes_name_them(role: Any, setting: str) -> None:
    spec = of(role, "hf", "/nowhere", {"x": 1})
    assert engines.setting(spec) == setting
    with pytest.raises(EngineError) as caught:
        engines.load(spec)
    said = str(caught.value)
    assert said.startswith(f"{setting}.options.x is not an option; the options are allow_")


def test_an_engine_is_built_once_a_process() -> None:
    spec = EngineSpec(role="encoder", backend="classical")
    assert engines.load(spec) is engines.load(spec.model_copy())


def test_a_setting_of_the_stage_is_told_apart_from_options_of_its_estimator() -> None:
    detector = EngineSpec(role="detector", backend="motion")
    for name in ("detect_every", "mirrored"):
        spec = EngineSpec(role="pose", backend="blazepose", options={name: 2}, detector=detector)
        with pytest.raises(EngineError) as caught:
            engines.layout_of(spec)
        known = f"pipeline.pose.engine.options.{name} is not an option; the options are dims, threshold, grow, passes"
        assert str(caught.value) == f"{known}; did you mean 'pipeline.pose.{name}'?"


@pytest.mark.parametrize(
    ("role", "backend", "options", "expected"),
    [
        ("detector", "yolo", {}, "no detector engine is called 'yolo'; the detector engines are "),
        ("detector", "posecode", {}, "no detector engine is called 'posecode'; the detector engines are "),
        ("captioner", "gpt", {}, "no captioner engine is called 'gpt'; the captioner engines are "),
        ("detector", "skeleton", {"grwo": 1}, "pipeline.crop.engine.options.grwo is not an option; the options are grow"),
        ("detector", "skeleton", {"grow": "a"}, "pipeline.crop.engine.options.grow = 'a': Input should be a valid number; the options are grow"),
        ("detector", "motion", {"x": 1}, "pipeline.crop.engine.options.x is not an option; the options are background, threshold, min_area"),
        ("detector", "motion", {"background": "white"}, "pipeline.crop.engine.options.background = 'white': Input should be 'camera' or 'black'; the options are background, threshold, min_area"),
        ("detector", "motion", {"margin": 1}, "pipeline.crop.engine.options.margin is not an option; the options are background, threshold, min_area; did you mean 'pipeline.crop.margin'?"),
        ("encoder", "classical", {"dim": 1}, "pipeline.embed.engine.options.dim is not an option; the options are image_dim, text_dim, seed"),
        ("captioner", "posecode", {"style": 1}, "the captioner engine 'posecode' has no option 'style'; it has none"),
    ],
)  # fmt: skip
def test_unknown_engines_and_options_name_the_known_ones(
    role: Any, backend: str, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(EngineError) as caught:
        engines.load(EngineSpec(role=role, backend=backend, options=options))
    known = ", ".join(engines.backends(role)) if expected.endswith(" are ") else ""
    assert str(caught.value) == expected + known
