"""Recipe loading: TOML files, `extends`, engine presets and `--set` overrides.

Errors are one line: the key as `--set` takes it, its value, what is expected, and the nearest known name.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import ConfigError
from c2vl_manifests.reading import from_toml, read_text, shallow
from c2vl_manifests.recipe import ENGINE_STAGES, Recipe
from c2vl_manifests.targets import targets_from_name


def _names(folder: str) -> list[str]:
    files = (resources.files("c2vl_manifests") / "data" / folder).iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def recipe_names() -> list[str]:
    """Return the names of the built-in recipes."""
    return _names("recipes")


def engine_names() -> list[str]:
    """Return the names of the built-in engine presets."""
    return _names("engines")


_SLIP = 0.75
"""Likeness from which a word is another one of its table with a slip."""
_SLIP_ELSEWHERE = 0.85
"""The same among the keys of all tables, where more words are alike."""


def _near(word: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def _read_toml(text: str, source: str) -> dict[str, Any]:
    try:
        return from_toml(text)
    except ValueError as error:
        raise ConfigError(f"{source}: not TOML ({error})") from error


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two tables, `over` first; a table of another `kind`, `schedule` or `backend` replaces the old one."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            tags = ("kind", "schedule", "backend")
            if all(old.get(tag) == value.get(tag, old.get(tag)) for tag in tags):
                merged[key] = _merge(old, value)
                continue
        merged[key] = value
    return merged


def engine_preset(name: str) -> dict[str, Any]:
    """Return the table of a built-in engine preset (`data/engines/<name>.toml`)."""
    if name not in engine_names():
        raise ConfigError(
            f"unknown engine {name!r}; use one of {', '.join(engine_names())}{_near(name, engine_names())}"
        )
    path = resources.files("c2vl_manifests") / "data" / "engines" / f"{name}.toml"
    table = _read_toml(path.read_text("utf-8"), name)
    if isinstance(table.get("detector"), str):
        table["detector"] = engine_preset(table["detector"])
    return table


def _raw_recipe(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a recipe by name or path, resolving `extends` and engine presets."""
    if name in above:
        raise ConfigError(f"recipe {above[0]}: extends itself ({' -> '.join((*above, name))})")
    if name in recipe_names():
        text = (resources.files("c2vl_manifests") / "data" / "recipes" / f"{name}.toml").read_text("utf-8")
        table = _read_toml(text, f"recipe {name}")
    elif name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(
                f"recipe file {name} does not exist; give the path of a TOML file or one of {', '.join(recipe_names())}"
            )
        try:
            text = read_text(path)
        except ValueError as error:
            raise ConfigError(f"{name}: not TOML ({error})") from error
        table = {"name": path.stem} | _read_toml(text, name)
    else:
        raise ConfigError(
            f"unknown recipe {name!r}; use one of {', '.join(recipe_names())} or the path of a TOML file{_near(name, recipe_names())}"
        )
    parent = table.pop("extends", None)
    stages = table.get("pipeline")
    for stage in ENGINE_STAGES:
        part = stages.get(stage) if isinstance(stages, dict) else None
        if isinstance(part, dict) and isinstance(part.get("engine"), str):
            part["engine"] = engine_preset(part["engine"])
    if parent is None:
        return table
    if not isinstance(parent, str):
        raise ConfigError(f"recipe {name}: extends = {parent!r}; give the name of a recipe or the path of a TOML file")
    relative = Path(name).parent / parent
    if parent.endswith(".toml") and relative.is_file():
        parent = str(relative)
    return _merge(_raw_recipe(parent, (*above, name)), table)


def _parse_value(text: str) -> Any:
    try:
        return from_toml(f"value = {text}")["value"]
    except ValueError:
        return text


_ROLES = {"detector": "crop", "captioner": "caption", "encoder": "embed", "pose": "pose"}


def _in_full(key: str) -> str:
    """Expand a short key: `captioner.base_url` becomes `pipeline.caption.engine.options.base_url`."""
    role, *rest = key.split(".")
    if role not in _ROLES:
        return key
    own = rest and rest[0] not in EngineSpec.model_fields
    return ".".join([f"pipeline.{_ROLES[role]}.engine", *(["options"] if own else []), *rest])


def _override(table: dict[str, Any], assignment: str) -> None:
    key, equals, value = assignment.partition("=")
    key = _in_full(key.strip())
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {assignment!r} is not of the form section.key=value, e.g. training.pretrain.epochs=30"
        )
    *sections, last = key.strip().split(".")
    at = table
    for section in sections:
        inner = at.get(section)
        if isinstance(inner, str) and section == "targets":
            inner = targets_from_name(inner)
        at[section] = dict(inner) if isinstance(inner, Mapping) else {}
        at = at[section]
    parsed = _parse_value(value.strip())
    if last in {"engine", "detector"} and isinstance(parsed, str):
        parsed = engine_preset(parsed)
    at[last] = parsed


def _members(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation accepts (through Optional, unions and Annotated)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in {Union, types.UnionType, Annotated}:
        return [model for inner in get_args(annotation) for model in _members(inner)]
    return []


def _walk(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        place = f"{above}{name}"
        if model is EngineSpec and name == "detector":
            if place.startswith("pipeline.pose."):
                yield place
            continue
        yield place
        for inner in _members(field.annotation):
            yield from _walk(inner, f"{place}.")


def keys_called(name: str, beside: str = "") -> list[str]:
    """Return the keys of recipes, in full, whose last part is `name` or, where none is, the name most like it.

    Args:
        name: of a value or a table.
        beside: only those below this table, if there are any.
    """
    called: dict[str, list[str]] = {}
    for key in dict.fromkeys(_walk(Recipe)):
        called.setdefault(key.rpartition(".")[2], []).append(key)
    found = [
        key for near in difflib.get_close_matches(name, called, n=1, cutoff=_SLIP_ELSEWHERE) for key in called[near]
    ]
    return [key for key in found if beside and key.startswith(f"{beside}.")] or found


def suggestion(keys: Sequence[str]) -> str:
    """Return a question that ends a message and names some keys; empty if there are none."""
    if not keys:
        return ""
    *others, last = map(repr, keys)
    return f"; did you mean {', '.join(others)}{' or ' if others else ''}{last}?"


def _place(location: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """Return the key of a validation error, as `--set` takes it, and the keys allowed in its table."""
    models: list[type[BaseModel]] = [Recipe]
    steps: list[str] = []
    for number, step in enumerate(location):
        last = number == len(location) - 1
        tagged = [
            m
            for m in models
            if any(m.model_fields[t].default == step for t in ("kind", "schedule") if t in m.model_fields)
        ]
        if tagged and len(models) > 1 and not last:  # the tag of a union is a step of the location but not a key
            models = tagged
            continue
        steps.append(str(step))
        if not last:
            models = [
                m
                for model in models
                if step in model.model_fields
                for m in _members(model.model_fields[str(step)].annotation)
            ] or models
    return ".".join(steps), sorted({name for model in models for name in model.model_fields})


def _explain(error: ValidationError, source: str) -> str:
    """Describe the first validation error in one line: key, value, expectation, nearest name."""
    first = error.errors()[0]
    location = tuple(first["loc"])
    place, allowed = _place(location)
    if first["type"] == "extra_forbidden":
        key = str(location[-1])
        elsewhere = [one for one in keys_called(key, place.rpartition(".")[0]) if one != place]
        of_engine = set(allowed) == set(EngineSpec.model_fields)
        if of_engine:  # where a word that is like a key may be an option
            elsewhere = [one for one in elsewhere if one.endswith(f".{key}")]
        # a slip of a key of the same table first, then the same word elsewhere
        hint = _near(key, allowed, _SLIP) or suggestion(elsewhere)
        if of_engine and not hint:
            hint = f"; an engine's own options are set as '{place.removesuffix(key)}options.{key}'"
        hint = hint or _near(key, allowed)
        return f"recipe {source}: unknown key {place!r}{hint or '; known here: ' + ', '.join(allowed)}"
    if first["type"] == "missing":
        return f"recipe {source}: {place} is missing; set it in the recipe or by --set {place}=…"
    message = str(first["msg"]).removeprefix("Value error, ")
    if not location:
        return f"recipe {source}: {message}"
    if isinstance(first["input"], Mapping):  # the message names the values that do not agree
        return f"recipe {source}: {place}: {message}"
    return f"recipe {source}: {place} = {repr(first['input'])[:200]}: {message}"


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        name: a built-in recipe or the path of a TOML file (which may contain `extends = "paper"`).
        overrides: assignments `section.key=value`; values are TOML, or bare strings.

    Raises:
        ConfigError: the file, an override or a value is invalid.
    """
    table = _raw_recipe(name)
    for assignment in overrides:
        _override(table, assignment)
    try:
        shallow(table)
    except ValueError as error:
        raise ConfigError(f"recipe {name}: {error}; write it flatter") from error
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise ConfigError(_explain(error, name)) from error


def load_variants(path: Path) -> dict[str, tuple[str, ...]]:
    """Read the variants of a study: TOML lines `"name" = ["section.key=value", …]`, in their order.

    Raises:
        ConfigError: the file is absent, not TOML, empty, or of another form.
    """
    if not path.is_file():
        fault = "is no file" if path.exists() else "does not exist"
        raise ConfigError(f'{path} {fault}; give a TOML file with lines "name" = ["section.key=value", …]')
    try:
        text = read_text(path)
    except ValueError as error:
        raise ConfigError(f"{path}: not TOML ({error})") from error
    table = _read_toml(text, str(path))
    for name, overrides in table.items():
        if not (isinstance(overrides, list) and all(isinstance(one, str) for one in overrides)):
            raise ConfigError(f'{path}: {name!r} is not of the form "name" = ["section.key=value", …]')
    if not table:
        raise ConfigError(f'{path}: no variant; write a line "name" = ["section.key=value", …] for each')
    return {name: tuple(overrides) for name, overrides in table.items()}
