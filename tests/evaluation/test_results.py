"""Stored results: absent, damaged, averaged."""

from __future__ import annotations

import json

import pytest

from c2vl_evaluation.results import load, mean_std
from c2vl_manifests.errors import DataError
from support.report import table


def test_results_that_are_absent_or_damaged_say_what_to_run(tmp_path):
    with pytest.raises(DataError, match=r"results\.json does not exist; run `c2vl-eval benchmark` first"):
        load(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"dataset": 1}))
    with pytest.raises(
        DataError, match=r"damaged .*; run `c2vl-eval benchmark` again, finished runs are kept"
    ) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_mean_and_deviation_are_percent_over_seeds():
    assert mean_std([0.6123]) == "61.2"
    assert mean_std([0.5, 0.7]) == "60.0 ± 14.1"


@pytest.mark.parametrize("path", ["/etc", "../other", "runs/../../other"])
@pytest.mark.parametrize("field", ["run", "key", "benchmark"])
def test_results_of_others_name_nothing_outside_their_folder(tmp_path, field, path):
    facts = json.loads(table().model_dump_json())
    save = (tmp_path / "results.json").write_text
    save(json.dumps(facts))
    assert load(tmp_path) == table()
    row = facts["rows"][0]
    {"run": row, "key": row["results"][0], "benchmark": facts}[field][field] = path
    save(json.dumps(facts))
    with pytest.raises(DataError, match=rf"damaged \(.*{field}: .*{path!r} leads out of the folder it belongs to"):
        load(tmp_path)
