"""`packed.json`: facts about a packed dataset, written last by `c2vl-pipeline pack`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from c2vl_manifests.errors import ConfigError, DataError, StageError, passing
from c2vl_manifests.files import Inside
from c2vl_manifests.layouts import Layout
from c2vl_manifests.manifest import first_error, read_shard_manifest
from c2vl_manifests.reading import read_json
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe

FILE = "packed.json"
FORMAT = 3
"""Version of the files: 2 stores joints as (frames, C, M, V), 3 has hashes of each row in its index."""


class PackedManifest(BaseModel):
    """Facts about one packed dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    dataset: Inside
    title: str
    fingerprint: str
    """Hash of the content: equal for equal samples, joints and vectors."""
    layout: dict[str, Any]
    classes: tuple[str, ...]
    samples: int
    frames: int
    bodies: int
    slots: int
    vision_dim: int
    language_dim: int
    engines: dict[str, dict[str, Any]]
    """Engine of crops, captions and embeddings, and of skeletons from videos, as in their stage manifests."""
    second_body: str
    gaps: bool
    """True if single joints of bodies may be missing somewhere (`missing_joints`)."""
    recipe: str
    """Recipe of the work folder: the default of training and evaluation. Of a file its name; the path, where it is read
    beside the index."""
    overrides: tuple[str, ...]
    """`--set` assignments of the work folder, without those that name a path or host: packed data are given away."""

    def joint_layout(self) -> Layout:
        """Return the joint layout."""
        return Layout.from_dict(self.layout)

    def derived_from_joints(self, kind: str) -> bool:
        """True if a kind of knowledge (`vision`, `language`) was computed from the joints, the encoder's own input.

        Crops placed by joints are still pixels; captions derived from joints are joints in words. Vectors of files are
        the user's own: they are not of these captions.
        """
        return (
            kind == "language"
            and self.engines["captions"].get("derived_from") == "joints"
            and "texts" not in self.engines["embeddings"].get("files", {})
        )


def read_packed_manifest(folder: Path) -> PackedManifest:
    """Read `packed.json`.

    Raises:
        StageError: the file does not exist (the pack stage has not finished) or has another format.
        DataError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise StageError(f"{folder} holds no packed data; run `c2vl-pipeline pack --work {folder.parent}` first")
    try:
        content = read_json(path)
        if isinstance(content, dict) and (found := content.get("format", 1)) != FORMAT:
            raise StageError(
                f"{path}: packed in format {found}, expected {FORMAT}; run `c2vl-pipeline pack --work {folder.parent}` again"
            )
        manifest = PackedManifest.model_validate(content)
        manifest.joint_layout()
    except (ValueError, OSError) as error:
        if passing(error):
            raise
        raise DataError(
            f"{path}: damaged ({first_error(error)}); delete it and run `c2vl-pipeline pack` again"
        ) from error
    if manifest.recipe.endswith(".toml") and (index := read_shard_manifest(folder.parent / "samples.parquet")):
        recipe = str(index.extra.get("recipe"))
        if Path(recipe).name == Path(manifest.recipe).name:
            return manifest.model_copy(update={"recipe": recipe})
    return manifest


def resolve_recipe(manifest: PackedManifest, recipe: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe that applies to packed data.

    Args:
        manifest: of the data.
        recipe: name or TOML file; without one, what the work folder was made with, its overrides first.
        overrides: assignments `section.key=value`.

    Raises:
        ConfigError: an unknown recipe, key or value, or a recipe file that is elsewhere.
    """
    if recipe is not None:
        return load_recipe(recipe, overrides)
    if manifest.recipe.endswith(".toml") and not Path(manifest.recipe).is_file():
        raise ConfigError(
            f"the data were packed with the recipe file {manifest.recipe}, which is not here; give it by --recipe"
        )
    return load_recipe(manifest.recipe, [*manifest.overrides, *overrides])
