"""The reference pages name every command and every recipe setting, and nothing that does not exist."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.layouts import LAYOUTS
from c2vl_manifests.recipe import Recipe

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
PROGRAMS = {"c2vl-pipeline": "c2vl_pipeline", "c2vl-train": "c2vl_training", "c2vl-eval": "c2vl_evaluation"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(program: str) -> set[str]:
    app = importlib.import_module(f"{PROGRAMS[program]}.cli").app
    return set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models(inner)


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every value; an optimiser is one value, and so is a `tune`, like `finetune`."""
    for name, field in model.model_fields.items():
        inner = [] if name in {"optimiser", "tune", "engine"} else list(models(field.annotation))
        for one in inner:
            yield from settings(one, f"{prefix}{name}.")
        if not inner:
            yield prefix + name


def documented_settings() -> set[str]:
    text = (REFERENCE / "recipes.md").read_text("utf-8")
    cells = (line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    return {name for cell in cells for name in re.findall(r"`([a-z_.0-9]+)`", cell)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_documented_command_exists(program: str) -> None:
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    named = set(re.findall(rf"{program} ([a-z]+)", text))
    assert named <= commands(program)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_is_documented(program: str) -> None:
    text = (REFERENCE / "commands.md").read_text("utf-8")
    assert commands(program) == set(re.findall(rf"^\| `{program} ([a-z]+)[ `]", text, re.MULTILINE))


def test_every_setting_is_documented_and_exists() -> None:
    exist = {f"pipeline.{name}" for name in settings(Recipe.model_fields["pipeline"].annotation)}
    for part in ("training", "evaluation"):
        exist |= {f"{part}.{name}" for name in settings(Recipe.model_fields[part].annotation)}
    optimiser = next(models(Recipe.model_fields["training"].annotation)).model_fields["supervised"].annotation
    assert optimiser is not None
    exist |= {f"optimiser.{name}" for name in settings(optimiser.model_fields["optimiser"].annotation)}
    exist -= {"training.pretrain.targets.kind"}  # written as `targets = "hard"`
    assert documented_settings() - {"training.pretrain.targets"} == exist


def test_settings_named_in_the_guides_exist() -> None:
    known = documented_settings() | {f"pipeline.{stage}.engine" for stage in ("crop", "caption", "embed")}
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    for name in set(re.findall(r"\b((?:pipeline|training|evaluation)\.[a-z_]+\.[a-z_.]*[a-z_])\s*=", text)):
        assert name in known or any(name.startswith(f"{one}.") for one in known), name


def test_an_engine_has_the_fields_that_the_page_lists() -> None:
    text = (REFERENCE / "recipes.md").read_text("utf-8")
    listed = re.search(r"a table with (.*?)\n\n|a table with ([^.]*)\.", text, re.DOTALL)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[0])) == set(EngineSpec.model_fields) - {"role"}


def test_the_joints_of_every_layout_stand_in_their_order() -> None:
    text = (REFERENCE / "layouts.md").read_text("utf-8")
    sections = dict(section.split("\n", 1) for section in text.split("\n## ")[1:])
    for name, layout in LAYOUTS.items():
        assert re.findall(r"(\d+)\s`([a-z_]+)`", sections[name]) == [(str(n), j) for n, j in enumerate(layout.names)]
        assert f"{layout.joints} joints, {layout.dims}D; origin `{layout.names[layout.anchor]}`" in sections[name]
    assert set(sections) == {"A joint that is missing", *LAYOUTS}
