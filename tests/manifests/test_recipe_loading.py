"""Loading of recipes: TOML files, `extends`, overrides and their error messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import ConfigError
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import _walk, engine_names, keys_called, load_recipe, suggestion
from c2vl_manifests.targets import TABLE_VII, Blend, Cosine, targets_name

TARGETS = "training.pretrain.targets"


def complaint(name: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(name, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own.toml"


# -------------------------------------------------------------------------------------------- overrides


def test_an_override_changes_its_value_and_nothing_else() -> None:
    plain = load_recipe("debug").model_dump()
    changed = load_recipe("debug", ["training.pretrain.optimiser.lr=0.25"]).model_dump()
    assert changed["training"]["pretrain"]["optimiser"].pop("lr") == 0.25
    plain["training"]["pretrain"]["optimiser"].pop("lr")
    assert changed == plain


def test_values_are_toml_or_bare_strings_and_the_last_assignment_holds() -> None:
    recipe = load_recipe(
        "debug",
        [
            "training.pretrain.epochs=3",
            "training.pretrain.epochs = 9",
            "training.pretrain.standardise=false",
            "training.pretrain.optimiser.milestones=[4, 5]",
            "training.pretrain.knowledge=vision",
            'training.pretrain.pooling="mean"',
            "pipeline.caption.question=a = b?",
        ],
    )
    pretrain = recipe.training.pretrain
    assert (pretrain.epochs, pretrain.standardise, pretrain.optimiser.milestones) == (9, False, (4, 5))
    assert (pretrain.knowledge, pretrain.pooling) == ("vision", "mean")
    assert recipe.pipeline.caption.question == "a = b?"


def test_an_engine_override_takes_the_whole_preset_and_then_single_values() -> None:
    recipe = load_recipe("debug", ["pipeline.embed.engine=hf-clip-vit-b-32", "pipeline.embed.engine.batch_size=3"])
    assert recipe.pipeline.embed.engine.model == "openai/clip-vit-base-patch32"
    assert recipe.pipeline.embed.engine.batch_size == 3


@pytest.mark.parametrize("text", ["training.pretrain.epochs", "=3", " =3"])
def test_an_assignment_without_key_or_value_shows_the_form(text: str) -> None:
    assert (
        complaint("debug", text)
        == f"--set {text!r} is not of the form section.key=value, e.g. training.pretrain.epochs=30"
    )


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.pretrain.epoch=3", "unknown key 'training.pretrain.epoch'; did you mean 'epochs'?"),
        ("trainin.pretrain.epochs=3", "unknown key 'trainin'; did you mean 'training'?"),
        ("pipeline.crop.engine.backnd=x", "unknown key 'pipeline.crop.engine.backnd'; did you mean 'backend'?"),
        (
            "training.pretrain.targets.betta=1",
            "unknown key 'training.pretrain.targets.betta'; did you mean 'beta'?",
        ),
        (
            "training.pretrain.targets.alpha.strt=1",
            "unknown key 'training.pretrain.targets.alpha.strt'; did you mean 'start'?",
        ),
        (
            "a..b=3",
            "unknown key 'a'; known here: evaluation, name, pipeline, title, training",
        ),
    ],
)  # fmt: skip
def test_an_unknown_key_names_the_nearest_or_all(assignment: str, expected: str) -> None:
    assert complaint("debug", assignment) == f"recipe debug: {expected}"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("pipeline.pose.detector.threshold=0.4", "'pipeline.pose.detector'; did you mean 'pipeline.pose.engine.detector'?"),
        (
            "pose.detector.threshold=0.4",
            "'pipeline.pose.engine.detector.threshold'; an engine's own options are set as "
            "'pipeline.pose.engine.detector.options.threshold'",
        ),
        ("crop.margin=0.2", "'crop'; did you mean 'pipeline.crop'?"),
        ("margin=0.2", "'margin'; did you mean 'pipeline.crop.margin'?"),
        ("query=cup", "'query'; did you mean 'pipeline.pose.query' or 'pipeline.crop.query'?"),
        (
            "training.pretrain.lr=1",  # not those of the protocols
            "'training.pretrain.lr'; did you mean 'training.pretrain.temperature.lr' or 'training.pretrain.optimiser.lr'?",
        ),
        (
            "epochs=3",
            "'epochs'; did you mean 'training.pretrain.epochs', 'training.supervised.epochs', 'evaluation.linear.epochs', "
            "'evaluation.finetune.epochs', 'evaluation.semi.tune.epochs' or 'evaluation.transfer.tune.epochs'?",
        ),
        (
            "pipeline.embed.engine.images=x",  # like image_size, a key
            "'pipeline.embed.engine.images'; an engine's own options are set as 'pipeline.embed.engine.options.images'",
        ),
        ("margn=0.2", "'margn'; did you mean 'pipeline.crop.margin'?"),
        (
            "training.epoch=3",
            "'training.epoch'; did you mean 'training.pretrain.epochs' or 'training.supervised.epochs'?",
        ),
    ],
)  # fmt: skip
def test_a_short_key_names_the_keys_that_end_with_it(assignment: str, expected: str) -> None:
    assert complaint("video-only", assignment) == f"recipe video-only: unknown key {expected}"


def test_a_key_of_another_kind_of_target_is_not_offered_to_itself() -> None:
    text = complaint("debug", f"{TARGETS}.kind=intra")
    assert text == f"recipe debug: unknown key '{TARGETS}.alpha'; known here: beta, kind, temperature"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.pretrain.epochs=x", "training.pretrain.epochs = 'x': Input should be a valid integer"),
        ("training.pretrain.epochs=0", "training.pretrain.epochs = 0: Input should be greater than or equal to 1"),
        ("training.precision=half", "training.precision = 'half': Input should be 'float32', 'bfloat16' or 'float64'"),
        ("pipeline.crop.engine.batch_size=true", "pipeline.crop.engine.batch_size = True: Input should be a valid integer"),
        (
            "training.pretrain.targets=blend(7)",
            "training.pretrain.targets.alpha.value = 7.0: Input should be less than or equal to 1",
        ),
    ],
)  # fmt: skip
def test_an_impossible_value_is_shown_with_its_place_and_expectation(assignment: str, expected: str) -> None:
    assert complaint("debug", assignment).startswith(f"recipe debug: {expected}")


@pytest.mark.parametrize("window", ["[0.9, 0.5]", "[0.0, 0.5]", "[0.5, 1.5]"])
def test_an_impossible_window_is_refused(window: str) -> None:
    text = complaint("debug", f"training.input.augmentation.window={window}")
    assert "expected two shares, 0 < first <= second <= 1" in text


def test_a_number_in_brackets_is_a_constant_alpha() -> None:
    for text in ("blend(0.3)", "blend(alpha=0.3)", "blend(.3)"):
        targets = load_recipe("debug", [f"{TARGETS}={text}"]).training.pretrain.targets
        assert isinstance(targets, Blend)
        assert targets.alpha.model_dump() == {"schedule": "constant", "value": 0.3}


def test_a_value_within_named_targets_can_be_overridden() -> None:
    targets = load_recipe(
        "debug", [f"{TARGETS}=blend(cosine)", f"{TARGETS}.alpha.start=0.7", f"{TARGETS}.beta=0.4"]
    ).training.pretrain.targets
    assert targets == Blend(beta=0.4, alpha=Cosine(start=0.7))


@pytest.mark.parametrize(
    "text", ["blendd", "hard(cosine)", "blend(1.2.3)", "partition()", "inter(0.3)", "sigmoid(0.3)"]
)
def test_unknown_targets_list_all_rows(text: str) -> None:
    assert (
        complaint("debug", f"{TARGETS}={text}")
        == f"recipe debug: {TARGETS} = {text!r}: {text!r} is not one of {', '.join(TABLE_VII)}, sigmoid"
    )


# ------------------------------------------------------------------------------------------ wrong names


def test_every_setting_is_found_by_its_last_word() -> None:
    for key in _walk(Recipe):
        assert repr(key) in suggestion(keys_called(key.rpartition(".")[2]))


def test_an_unknown_recipe_names_all_and_the_nearest() -> None:
    expected = "use one of c2vl-plus, debug, demo, heuristic, light, modern, paper, small, video-only or the path of a TOML file"
    assert complaint("papr") == f"unknown recipe 'papr'; {expected}; did you mean 'paper'?"
    assert complaint("zzz") == f"unknown recipe 'zzz'; {expected}"


def test_an_unknown_engine_names_all_and_the_nearest() -> None:
    text = complaint("debug", "pipeline.crop.engine=skelton")
    assert text.startswith(f"unknown engine 'skelton'; use one of {', '.join(engine_names()[:5])}, ")
    assert text.endswith("; did you mean 'skeleton'?")


def test_an_engine_of_another_role_is_refused() -> None:
    assert (
        complaint("debug", "pipeline.crop.engine=classical")
        == "recipe debug: pipeline.crop.engine has the role 'encoder'; this stage needs a detector"
    )


# ---------------------------------------------------------------------------------------------- files


def test_a_file_extends_a_recipe_and_takes_its_own_name(own: Path) -> None:
    own.write_text('extends = "debug"\n[training.pretrain]\nepochs = 7\n')
    made = load_recipe(str(own))
    expected = load_recipe("debug", ["training.pretrain.epochs=7", "name=own"])
    assert made == expected


def test_a_file_extends_a_file_beside_it_wherever_it_is_called_from(own: Path) -> None:
    (own.parent / "base.toml").write_text('extends = "debug"\npipeline.frames = 5\n')
    own.write_text('extends = "base.toml"\npipeline.shard_samples = 3\n')
    made = load_recipe(str(own))
    assert (made.pipeline.frames, made.pipeline.shard_samples, made.training.pretrain.epochs) == (5, 3, 3)


def test_targets_of_another_kind_replace_the_parents_table(own: Path) -> None:
    own.write_text(f'extends = "paper"\n{TARGETS} = {{ kind = "hard" }}\n')
    assert targets_name(load_recipe(str(own)).training.pretrain.targets) == "hard"


def test_an_engine_of_another_backend_replaces_the_parents_table(own: Path) -> None:
    own.write_text('extends = "paper"\npipeline.crop.engine = "motion"\n')
    spec = load_recipe(str(own)).pipeline.crop.engine
    assert spec == EngineSpec(role="detector", backend="motion")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('extends = "debug"\n[training\n', "{path}: not TOML (Expected ']' at the end of a table declaration (at line 2, column 10))"),
        ("extends = 3\n", "recipe {path}: extends = 3; give the name of a recipe or the path of a TOML file"),
        ('extends = "own.toml"\n', "recipe {path}: extends itself ({path} -> {path})"),
        ("", "recipe {path}: pipeline is missing; set it in the recipe or by --set pipeline=…"),
        ("pipeline = 3\n", "recipe {path}: pipeline = 3: Input should be a valid dictionary or instance of PipelineConfig"),
        ("[pipeline]\ncrop = 3\n", "recipe {path}: pipeline.crop = 3: Input should be a valid dictionary or instance of CropConfig"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line_with_its_path(own: Path, text: str, expected: str) -> None:
    own.write_text(text)
    assert complaint(str(own)) == expected.format(path=own)


def test_a_binary_file_is_one_line_with_its_path(own: Path) -> None:
    own.write_bytes(b"\xff\xfe\x00")
    assert complaint(str(own)).startswith(f"{own}: not TOML ('utf-8' codec")


def test_an_absent_file_is_named() -> None:
    assert complaint("no.toml").startswith("recipe file no.toml does not exist; give the path of a TOML file or")
