"""Reader of the synthetic dataset: files as NTU RGB+D's, samples as its own description states them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

from c2vl_manifests.datasets import Dataset
from c2vl_manifests.errors import DataError
from c2vl_manifests.reading import from_toml, read_text
from c2vl_pipeline.readers import ntu
from c2vl_pipeline.readers.base import Expected, Scan, rows_of_ids


def expected_rows(dataset: Dataset, root: Path, scan: Scan) -> Expected:
    """Expect the samples that `synthetic.toml`, written by `c2vl-pipeline synth`, describes."""
    path = root / "synthetic.toml"
    if not path.is_file():
        raise DataError(f"{path} does not exist; make the folder with `c2vl-pipeline synth --out {root}`")
    try:
        made = from_toml(read_text(path))
        classes, subjects = tuple(map(str, made["classes"])), int(made["subjects"])
        views, repeats = int(made["views"]), int(made["repeats"])
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a description by `synth` ({error}); make the folder again") from error
    numbers = product(*(range(1, count + 1) for count in (views, subjects, repeats, len(classes))))
    ids = (f"S001C{c:03d}P{p:03d}R{r:03d}A{a:03d}" for c, p, r, a in numbers)
    return Expected(classes, rows_of_ids(dataset, ids))


READER = replace(ntu.READER, expected_rows=expected_rows, clip_files={})
