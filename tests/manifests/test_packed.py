"""Packed data: which recipe applies to them."""

from __future__ import annotations

import pytest

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.packed import PackedManifest, resolve_recipe


def made_with(recipe: str, *overrides: str) -> PackedManifest:
    return PackedManifest.model_construct(dataset="synthetic", recipe=recipe, overrides=overrides)


def test_the_recipe_of_the_work_folder_applies_with_its_overrides_before_the_given_ones():
    manifest = made_with("debug", "training.pretrain.epochs=7", "training.pretrain.batch_size=9")
    found = resolve_recipe(manifest, None, ["training.pretrain.epochs=8"])
    assert found.name == "debug"
    assert (found.training.pretrain.epochs, found.training.pretrain.batch_size) == (8, 9)


def test_a_given_recipe_applies_without_those_overrides():
    manifest = made_with("debug", "training.pretrain.epochs=7")
    found = resolve_recipe(manifest, "paper", ["training.pretrain.batch_size=9"])
    assert (found.name, found.training.pretrain.batch_size) == ("paper", 9)
    assert found.training.pretrain.epochs != 7


def test_an_unknown_key_is_an_error():
    with pytest.raises(ConfigError):
        resolve_recipe(made_with("debug"), None, ["training.pretrain.epoch=8"])
