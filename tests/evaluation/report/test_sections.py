"""Sections of the report: protocols, failures, settings."""

from __future__ import annotations

import json
import re
from pathlib import Path

from c2vl_evaluation.report import build, sections
from c2vl_evaluation.results import Line, Result, grouped, mean_std
from support.report import both, found, read, table, with_findings


def test_draws_and_seeds_are_one_cell_and_what_is_not_there_says_why(tmp_path: Path) -> None:
    text = read(build.build(with_findings(), tmp_path / "r.html")).text
    four = mean_std([0.4111, 0.4333] * 2)
    for said in (
        "Other protocols",
        four,
        mean_std([0.5111, 0.5333] * 2),
        mean_std([0.3611, 0.3833] * 2),
        mean_std([0.4311, 0.4533] * 2),
        "n/a: 1 % of 431 clips are 4, fewer than the 27 classes",
        "synthetic to other, tuned",
        "Other set, xview",
        "27.1",
        "1,043",
    ):
        assert said in text
    assert text.count(four) == 2 * 5  # a line a name, in the overview and beside top-5


def test_rows_derived_from_joints_are_marked_wherever_they_stand(tmp_path: Path) -> None:
    """In the first table, in the overview's header and in each of its three settings' details, but no other row."""
    html = build.build(with_findings(), tmp_path / "r.html").read_text("utf-8")
    results, overview, details = re.split(r'id="protocols"|<summary>Top-5, balanced', html)
    details = details.split("</details>")[0]
    mark = '<span class="tag derived">derived from joints</span>'
    assert results.count(f"{mark}</span></td>") == 3
    heads = re.findall(r'<th class="n">(.*?)</th>', overview)
    assert [head.split("<")[0] for head in heads if mark in head] == ["partition(cosine)", "hard", "shuffled pairs"]
    cells = re.findall(r'<td class="wrap">(.*?)</td>', details)
    assert {cell.split("<")[0]: mark in cell for cell in cells} == {
        "partition(cosine)": True, "hard": True, "random encoder": False, "supervised": False, "shuffled pairs": True,
    }  # fmt: skip
    assert (
        "derived from joints"
        not in read(
            build.build(
                with_findings().model_copy(
                    update={
                        "rows": tuple(r.model_copy(update={"derived_from_joints": False}) for r in with_findings().rows)
                    }
                ),
                tmp_path / "none.html",
            )
        ).text
    )


def test_an_evaluation_that_failed_is_its_own_lines(tmp_path: Path) -> None:
    results = with_findings()
    bad = Result(protocol="semi", setting="5 % random, tuned", why="the loss became NaN", failed=True)
    first, *others = results.rows
    both = first.model_copy(update={"results": (*first.results, bad, found(0.6, bad.setting))})
    rows = [row.model_copy(update={"results": (*row.results, bad)}) for row in others]
    text = read(build.build(results.model_copy(update={"rows": (both, *rows)}), tmp_path / "r.html")).text
    of_first = sum(row.name == first.name for row in results.rows)
    assert f"and {of_first} failed: the loss became NaN" in text  # beside the run that ended well
    others_named = len({row.name for row in rows} - {first.name})
    assert text.count("n/a: failed: the loss became NaN") == others_named
    alone = results.model_copy(update={"rows": tuple(rows)})
    text = read(build.build(alone, tmp_path / "a.html")).text
    assert text.count("n/a: failed: the loss became NaN") == len({row.name for row in rows})


def test_top5_and_balanced_stand_beside_each_other_in_the_details(tmp_path: Path) -> None:
    text = read(build.build(with_findings(), tmp_path / "r.html")).text
    assert "n/a 58.7 ± 0.0 91.3 ± 0.0 68.7 ± 0.0" in text
    assert "Chance n/a 33.3 n/a 33.3" in text


def test_settings_keep_their_order() -> None:
    results = [found(0.1, "b"), found(0.2, "a"), found(0.3, "b", 1), *both(0.5, 0.5)]
    groups = grouped([Line("one", "pretrained", results)])
    assert [(group.protocol, group.setting) for group in groups] == [
        ("semi", "b"), ("semi", "a"), ("knn", ""), ("linear", ""),
    ]  # fmt: skip
    assert groups[0].cells["one"].top1 == mean_std([0.1, 0.3])


def write_epochs(folder: Path, run: str, seconds: list[float]) -> None:
    (folder / run).mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"epoch": n, "loss": 1.0, "seconds": value}) for n, value in enumerate(seconds)]
    (folder / run / "metrics.jsonl").write_text("\n".join(lines))


def test_a_training_with_uneven_epochs_is_flagged_and_timed_by_its_median_epoch(tmp_path: Path) -> None:
    results = table(seeds=1)
    by_name = {row.name: row for row in results.rows}
    write_epochs(tmp_path, by_name["hard"].run, [2.0, 2.0, 2.0, 7.0])
    write_epochs(tmp_path, by_name["supervised"].run, [90.0, 2.0, 2.5, 3.0])  # a slow start alone is no sign
    cost = {line["name"]: line for line in sections.training(results, tmp_path)}
    assert cost["hard"]["shared"] == (2.0, 7.0)
    assert cost["hard"]["seconds"] == 2.0 * by_name["hard"].epochs
    assert cost["hard"]["measured"] == by_name["hard"].seconds
    assert cost["supervised"]["shared"] is None
    assert cost["shuffled pairs"]["seconds"] == by_name["shuffled pairs"].seconds  # no log
    text = read(build.build(results, tmp_path / "r.html")).text
    assert text.count("machine was shared") == 1
    assert "epochs took 2.0 s to 7.0 s" in text or "epochs took 2 s to 7 s" in text


def test_without_a_best_epoch_its_column_is_not_there(tmp_path):
    results = with_findings()
    rows = tuple(
        row.model_copy(update={"results": (*row.results[:2], *(unsought(r) for r in row.results[2:]))})
        for row in results.rows
    )
    for shown, columns in ((results, 6), (results.model_copy(update={"rows": rows}), 5)):
        html = build.build(shown, tmp_path / "r.html").read_text("utf-8")
        title, table_ = html.split("of every protocol</summary>")
        assert title.endswith(
            f"<summary>Top-5{', ' if columns == 6 else ' and '}balanced accuracy{' and best epoch' * (columns == 6)} "
        )
        for row in table_.split("</table>")[0].split("<tr")[1:]:
            spans = [int(n) for n in re.findall(r'colspan="(\d)"', row)]
            assert len(re.findall("<t[hd]", row)) + sum(spans) - len(spans) == columns
        assert ("oracle" in table_.split("</table>")[0]) == (columns == 6)


def unsought(result):
    return result.model_copy(update={"best": None, "best_epoch": None})
