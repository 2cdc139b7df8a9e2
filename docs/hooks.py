"""MkDocs hook: one API page per module of the four packages, so that the reference cannot miss a module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "manifests": "c2vl_manifests",
    "pipeline": "c2vl_pipeline",
    "training": "c2vl_training",
    "evaluation": "c2vl_evaluation",
}


def modules(folder: str, package: str) -> list[str]:
    """Return the dotted names of all modules, without private ones and command-line modules."""
    names = []
    for path in sorted((ROOT / folder / package).rglob("*.py")):
        parts = path.relative_to(ROOT / folder).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not any(part.startswith(("_", "cli")) for part in parts[1:]):
            names.append(".".join(parts))
    return sorted(names)


def page(name: str) -> str:
    """Return the path of a module's page within the documentation."""
    return f"reference/api/{name}.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the API pages to the navigation."""
    api: list[Any] = [
        {package: [{name.removeprefix(f"{package}."): page(name)} for name in modules(folder, package)]}
        for folder, package in PACKAGES.items()
    ]
    assert config.nav is not None
    config.nav.append({"API": api})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Generate the API pages."""
    for folder, package in PACKAGES.items():
        for name in modules(folder, package):
            files.append(File.generated(config, page(name), content=f"# {name}\n\n::: {name}\n"))
    return files
