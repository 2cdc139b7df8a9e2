"""Recipes: built-in presets, targets and fingerprints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import ConfigError
from c2vl_manifests.recipe import ENGINE_STAGES, Recipe
from c2vl_manifests.recipe_loading import engine_names, engine_preset, load_recipe, recipe_names
from c2vl_manifests.recipe_training import PretrainConfig
from c2vl_manifests.targets import TABLE_VII, Cosine, Partition, targets_name

TARGETS = "training.pretrain.targets"


# ---------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("name", recipe_names())
def test_every_built_in_recipe_loads_and_is_called_by_its_name(name: str) -> None:
    assert load_recipe(name).name == name


def test_the_built_in_recipes_are_those_that_help_names() -> None:
    assert recipe_names() == [
        "c2vl-plus",
        "debug",
        "demo",
        "heuristic",
        "light",
        "modern",
        "paper",
        "small",
        "video-only",
    ]


def test_c2vl_plus_trains_on_what_heuristic_has_packed() -> None:
    assert load_recipe("c2vl-plus").pipeline == load_recipe("heuristic").pipeline


def test_the_paper_recipe_holds_the_published_numbers() -> None:
    recipe = load_recipe("paper")
    pretrain = recipe.training.pretrain
    assert (recipe.pipeline.frames, pretrain.epochs, pretrain.batch_size) == (16, 150, 400)
    assert pretrain.targets == Partition(beta=0.2, alpha=Cosine(start=0.9, end=0.1))
    assert pretrain.optimiser.milestones == (130, 140)
    assert recipe.pipeline.crop.engine.model == "IDEA-Research/grounding-dino-tiny"
    assert recipe.pipeline.caption.engine.model == "llava-hf/llava-1.5-7b-hf"
    assert recipe.pipeline.embed.engine.model == "openai/clip-vit-large-patch14-336"
    assert recipe.pipeline.caption.question.startswith("Is he/she or are they holding anything")


@pytest.mark.parametrize("name", engine_names())
def test_every_engine_preset_is_a_valid_choice_for_its_role(name: str) -> None:
    spec = EngineSpec.model_validate(engine_preset(name))
    stage = {role: stage for stage, role in ENGINE_STAGES.items()}[spec.role]
    recipe = load_recipe("debug", [f"pipeline.{stage}.engine={name}"])
    assert getattr(recipe.pipeline, stage).engine == spec


@pytest.mark.parametrize("option", ["api_key", "apikey", "hub_token", "client_secret", "Password"])
def test_a_key_among_the_options_of_an_engine_is_refused_and_not_printed(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} would be stored in manifests") as refused:
        load_recipe("debug", [f"captioner.{option}=sk-0123456789"])
    assert "sk-0123" not in str(refused.value)
    with pytest.raises(ConfigError, match=rf"pose\.engine\.detector\.options\.{option} would be stored in manifests"):
        load_recipe("video-only", [f"pose.detector.options.{option}=sk-0123456789"])
    assert load_recipe("debug", ["captioner.api_key_env=MY_KEY", "captioner.max_new_tokens=9"])


@pytest.mark.parametrize(
    "option", ["base_url=http://a/v1?key={}", "base_url=http://u:{}@a/v1", "base_url=http://a/v1#{}", "api_key_env={}"]
)
def test_a_key_in_an_address_or_for_a_name_is_refused_before_a_manifest_holds_it(option: str) -> None:
    with pytest.raises(ConfigError, match="manifests would store a key") as refused:
        load_recipe("debug", [f"captioner.{option.format('sk-0123456789')}"])
    assert "sk-0123" not in str(refused.value)


def test_recipes_are_frozen() -> None:
    recipe = load_recipe("debug")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.pipeline.frames = 3


def test_loading_a_recipe_imports_no_torch() -> None:
    code = "import sys; from c2vl_manifests.recipe_loading import load_recipe; load_recipe('paper'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---------------------------------------------------------------------------------------------- targets


def test_table_vii_has_seven_rows() -> None:
    assert len(set(TABLE_VII)) == 7


@pytest.mark.parametrize("name", TABLE_VII)
def test_every_row_of_table_vii_is_chosen_by_its_name(name: str) -> None:
    targets = load_recipe("debug", [f"{TARGETS}={name}"]).training.pretrain.targets
    assert targets_name(targets) == name


# ----------------------------------------------------------------------------------------- fingerprints


def test_fingerprints_are_stable_across_processes() -> None:
    code = "from c2vl_manifests.recipe_loading import load_recipe; print(load_recipe('paper').fingerprint())"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {load_recipe("paper").fingerprint()}


def test_a_fingerprint_changes_with_a_value_and_only_then() -> None:
    plain = load_recipe("debug").fingerprint()
    assert load_recipe("debug", ["training.pretrain.epochs=3"]).fingerprint() == plain
    changed = {
        load_recipe("debug", [text]).fingerprint()
        for text in (
            "training.pretrain.epochs=4",
            f"{TARGETS}=hard",
            f"{TARGETS}.beta=0.21",
            "pipeline.embed.engine.options.seed=1",
            "evaluation.knn.k=3",
        )
    }
    assert len(changed) == 5
    assert plain not in changed


def test_a_pose_estimator_has_a_detector_and_nothing_else_has() -> None:
    with pytest.raises(ConfigError, match=r"the pose engine 'x' needs a detector"):
        load_recipe("debug", ["pipeline.pose.engine.role=pose", "pipeline.pose.engine.backend=x"])
    with pytest.raises(ConfigError, match=r"the detector engine 'motion' takes no detector"):
        load_recipe("debug", ["pipeline.crop.engine=motion", "pipeline.crop.engine.detector=motion"])
    with pytest.raises(ConfigError, match=r"detector has the role 'encoder'; expected a detector"):
        load_recipe("video-only", ["pose.detector=classical"])
    with pytest.raises(
        ConfigError, match=r"pipeline\.pose\.engine has the role 'detector'; this stage needs a pose estimator"
    ):
        load_recipe("debug", ["pipeline.pose.engine=motion"])


def test_what_a_recipe_does_not_use_is_not_in_it() -> None:
    plain, video = load_recipe("heuristic").model_dump(mode="json"), load_recipe("video-only").model_dump(mode="json")
    assert "pose" not in plain["pipeline"]
    assert "detector" not in plain["pipeline"]["crop"]["engine"]
    assert video["pipeline"]["pose"]["engine"]["detector"]["backend"] == "blazepose"
    assert Recipe.model_validate_json(load_recipe("video-only").model_dump_json()) == load_recipe("video-only")


@pytest.mark.parametrize("name", recipe_names())
def test_the_paper_alone_looks_for_the_best_epoch(name: str) -> None:
    e = load_recipe(name).evaluation
    assert {tune.every_epoch for tune in (e.finetune, e.semi.tune, e.transfer.tune)} == {name == "paper"}


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ("training.supervised.optimiser", "lr=0.02"),
        ("evaluation.finetune.optimiser", "momentum=0.8"),
        ("evaluation.semi.tune", "augment=false"),
        ("evaluation.semi.tune.optimiser", "momentum=0.8"),
        ("evaluation.transfer.tune", "layer_decay=0.5"),
    ],
)
def test_a_part_of_a_table_leaves_its_other_settings_alone(place: str, part: str) -> None:
    """Their defaults may be others than those of a table of this form elsewhere."""

    def settings(recipe: Recipe) -> BaseModel:
        at: Any = recipe
        for name in place.split("."):
            at = getattr(at, name)
        assert isinstance(at, BaseModel)
        return at

    name, value = part.split("=")
    plain, changed = (settings(load_recipe("paper", more)) for more in ([], [f"{place}.{part}"]))
    assert changed == plain.model_copy(update={name: json.loads(value)}) != plain
    assert changed != type(plain).model_validate({name: json.loads(value)})  # the class's own defaults


# ------------------------------------------------------------------------------------- readings and ideas


def test_settings_at_the_papers_value_do_not_show_in_keys() -> None:
    """Otherwise each new setting would make a run of every earlier one."""
    for model in (PretrainConfig, Partition):
        dumped = model().model_dump(mode="json")
        assert not {*model.LATER} & {*dumped}
        assert {*model.LATER} | {*dumped} == {*model.model_fields}
        assert model.model_validate(dumped) == model()
    changed = PretrainConfig(views=2, targets=Partition(inter_hard_schedule="linear"))
    assert PretrainConfig.model_validate_json(changed.model_dump_json()) == changed
    assert changed.model_dump()["views"] == 2


@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [
        (("targets=sigmoid", "directions=mean"), "directions = 'mean'", "targets = 'sigmoid'"),
        (("normalise=after_pooling", "pooling=random"), "normalise = 'after_pooling'", "pooling = 'random'"),
        (("view_weight=0.5",), "view_weight = 0.5", "views = 1"),
        (("skeleton_heads=per_kind", "knowledge=vision"), "skeleton_heads = 'per_kind'", "knowledge = 'vision'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_one_line_with_both(
    settings: tuple[str, ...], first: str, second: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_recipe("paper", [f"training.pretrain.{one}" for one in settings])
    text = str(refused.value)
    assert text.startswith("recipe paper: training.pretrain: ")
    assert first in text
    assert second in text
    assert "\n" not in text
    assert len(text) < 160
