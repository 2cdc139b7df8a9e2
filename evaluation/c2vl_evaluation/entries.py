"""Lines of a table before they are run: pre-trained encoders and their controls, each with its own folder of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from c2vl_evaluation.results import Role
from c2vl_manifests.errors import ConfigError
from c2vl_manifests.packed import PackedManifest, resolve_recipe
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.targets import targets_name
from c2vl_training import checkpoint
from c2vl_training.dataset import PackedDataset
from c2vl_training.run_folder import EXCLUDED, Kind, Run, settings


@dataclass(frozen=True)
class Entry:
    """One line of a table before it is run."""

    name: str
    role: Role
    kind: Kind
    recipe: Recipe
    control_of: str = ""
    """Name of the line that shuffled pairs are the control of."""

    def folder(self, runs: Path, seed: int, excluded: Sequence[str] = ()) -> Path:
        """Return the folder of a seed's run; another one if it holds the control of another line already.

        Args:
            runs: folder of the runs.
            seed: of the run.
            excluded: classes that its pre-training leaves out.
        """
        plain = runs / f"{_slug(self.name)}-seed{seed}"
        if self.role != "shuffled" or (saved := saved_run(plain)) is None:
            return plain
        there, own = {EXCLUDED: [], **saved[1]}, settings(self.kind, self.recipe) | {EXCLUDED: list(excluded)}
        same = {name: there.get(name) for name in own} == own
        return plain if same else runs / f"{_slug(f'{self.name} {self.control_of}')}-seed{seed}"

    def run(self, packed: PackedDataset, benchmark: str, seed: int, out: Path) -> Run:
        """Return the training of a seed; `out` is the folder of the table."""
        run = Run(self.kind, packed, self.recipe, benchmark, seed, out)
        excluded = [packed.manifest.classes[number] for number in run.excluded_classes()]
        return replace(run, out=self.folder(out / "runs", seed, excluded))


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def saved_run(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the file that a folder's run is saved in, and its facts; None if there is no run."""
    for name in (checkpoint.ENCODER, checkpoint.CHECKPOINT):
        if (path := folder / name).is_file():
            return path, checkpoint.load(path)[1]
    return None


def entries(
    manifest: PackedManifest,
    recipe: str | None,
    overrides: Sequence[str],
    targets: Sequence[str],
    variants: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Entry]:
    """Return the lines of a table: each `targets` value, each variant (by default the recipe as it is), three controls.

    Args:
        manifest: of the packed data.
        recipe: see `resolve_recipe`.
        overrides: see `resolve_recipe`.
        targets: values of `training.pretrain.targets`.
        variants: name -> further overrides.

    Raises:
        ConfigError: a variant has the name or the settings of another line, or a name without letters and digits.
    """
    base = resolve_recipe(manifest, recipe, overrides)
    chosen = targets or ([] if variants else [targets_name(base.training.pretrain.targets)])
    lines: list[Entry] = []
    for name in chosen:
        # the recipe's own value keeps the recipe's other settings (beta, temperature of the targets, ...)
        same = name == targets_name(base.training.pretrain.targets)
        one = base if same else resolve_recipe(manifest, recipe, [*overrides, f"training.pretrain.targets={name}"])
        if any(entry.recipe == one for entry in lines):
            continue  # equal settings under another name would share a folder
        # a number keeps partition(0.3) and partition(0.7) apart
        label = name if any(c.isdigit() for c in name) else targets_name(one.training.pretrain.targets)
        lines.append(Entry(label, "pretrained", "pretrain", one))
    for name, further in variants.items():
        one = resolve_recipe(manifest, recipe, [*overrides, *further])
        if twin := next((entry.name for entry in lines if entry.recipe == one), None):
            raise ConfigError(f"the variant {name!r} has the settings of {twin!r}; change or remove one of them")
        lines.append(Entry(name, "pretrained", "pretrain", one))
    control = lines[0].recipe
    pretrain = control.training.pretrain.model_copy(update={"pairs": "shuffled"})
    shuffled = control.model_copy(update={"training": control.training.model_copy(update={"pretrain": pretrain})})
    lines += [
        Entry("random encoder", "floor", "random", base),
        Entry("supervised", "ceiling", "supervised", base),
        Entry("shuffled pairs", "shuffled", "pretrain", shuffled, lines[0].name),
    ]
    folders: dict[str, str] = {}
    for line in lines:
        if not _slug(line.name):
            raise ConfigError(f"{line.name!r} names no folder of runs; give the variant a name with letters or digits")
        if other := folders.get(_slug(line.name)):
            raise ConfigError(f"the lines {other!r} and {line.name!r} would share a folder of runs; rename a variant")
        folders[_slug(line.name)] = line.name
    return lines
