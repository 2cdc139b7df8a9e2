"""Expected samples of a synthetic folder."""

from __future__ import annotations

from pathlib import Path

from c2vl_manifests.recipe import PipelineConfig
from support.indexing import refused


def test_a_synthetic_folder_without_its_description_names_the_command(
    raw: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    path = root / "synthetic.toml"
    assert (
        refused("synthetic", root, config)
        == f"{path} does not exist; make the folder with `c2vl-pipeline synth --out {root}`"
    )
    path.write_text("subjects = 3\n")
    assert (
        refused("synthetic", root, config) == f"{path}: not a description by `synth` ('classes'); make the folder again"
    )
