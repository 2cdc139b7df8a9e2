"""Findings as tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from c2vl_evaluation.results import FAILED, Finding, Results, Role, Score, Target, by_setting, mean_std
from c2vl_manifests.cli_common import say, show_table

if TYPE_CHECKING:
    from c2vl_evaluation.language.retrieval import Recall, Retrieval
    from c2vl_evaluation.language.zeroshot import ZeroShot

_ROLES = {
    "floor": " (floor)",
    "ceiling": " (ceiling)",
    "shuffled": " (control)",
    "baseline": " (baseline)",
}
_COLUMNS = (
    *("knn", "knn_top5", "knn_balanced"),
    *("linear", "linear_top5", "linear_balanced", "linear_best"),
)


@dataclass(frozen=True)
class Line:
    """What was found on the runs of one name."""

    name: str
    role: Role
    findings: Sequence[Finding]
    derived: bool = False
    """Its captions are a function of the encoder's own input."""

    def label(self) -> str:
        """Say what it is, and whether it learned from joints in words."""
        return self.name + _ROLES.get(self.role, "") + (" [derived from joints]" if self.derived else "")


def lines_of(results: Results, protocol: str, target: Target | None = None) -> list[Line]:
    """Return the lines of a table for a protocol (on a target), without those that it was not run on."""
    found = []
    for name in results.names():
        rows = results.of(name)
        of = [f for row in rows for f in row.findings if f.protocol == protocol]
        of = [f for f in of if target is None or target.holds(f)]
        if of:
            found.append(Line(name, rows[0].role, of, rows[0].derived_from_joints))
    return found


def show_results(results: Results) -> None:
    """Print a table: kNN and linear of every line, what answers without an encoder, then a table a protocol."""
    rows = []
    for name in results.names():
        of = results.of(name)
        label = Line(name, of[0].role, (), of[0].derived_from_joints).label()
        cells = []
        for column in _COLUMNS:
            values = [value for r in of if (value := getattr(r, column)) is not None]
            cells.append(mean_std(values) if len(values) == len(of) else "n/a")
        rows.append([label, *cells, str(len(of)), f"{sum(r.seconds for r in of) / len(of):,.0f} s"])
    for name, top1, score in (
        ("majority class", results.majority, results.majority_score),
        ("chance", results.chance, results.chance_score),
    ):
        more = [None, None] if score is None else [score.top5, score.balanced]
        cells = [f"{100 * top1:.1f}", *("n/a" if v is None else f"{100 * v:.1f}" for v in more)]
        rows.append([name, *cells, *cells, "", "", ""])
    show_table(
        f"{results.title}, {results.benchmark}, recipe {results.recipe}: %, {results.train:,} train / {results.test:,} test",
        ["", "kNN", "top-5", "bal.", "linear", "top-5", "bal.", "best epoch", "seeds", "training"],
        rows,
        "kNN and linear: top-1; bal.: balanced. The best epoch is chosen on the test split (an oracle). Derived from joints: captions made by rule from the encoder's own input.",
    )
    if results.majority_score is None or results.chance_score is None:
        return
    own = Target(
        dataset=results.dataset,
        title=results.title,
        benchmark=results.benchmark,
        train=results.train,
        test=results.test,
        majority=results.majority_score,
        chance=results.chance_score,
    )
    for protocol in dict.fromkeys(f.protocol for row in results.rows for f in row.findings):
        for target in results.targets if protocol == "transfer" else (own,):
            of_it = target if protocol == "transfer" else None
            if lines := lines_of(results, protocol, of_it):
                show_findings(protocol, lines, target)


def show_findings(title: str, lines: Sequence[Line], target: Target) -> None:
    """Print a table of findings with what answers without an encoder reach."""
    by_line = [(line.label(), by_setting(line.findings)) for line in lines]
    settings = dict.fromkeys(key for _, found in by_line for key in found)
    rows = []
    for key in settings:
        reasons = {f.why for _, found in by_line for f in found.get(key, [])}
        if len(reasons) == 1 and not any(
            why == "" or why.startswith(FAILED) for why in reasons
        ):  # the data's
            rows.append([key[1] or key[0], "n/a", "", "", "", "", "", *reasons])
            continue
        for label, found in by_line:
            of = found.get(key, [])
            why = "; ".join(dict.fromkeys(f.why for f in of if f.why))
            last = [f.last for f in of if f.last is not None]
            if not last:
                rows.append(
                    [f"{label}, {key[1]}".rstrip(", "), "n/a", "", "", "", "", "", why or "not evaluated"]
                )
                continue
            top5 = [s.top5 for s in last if s.top5 is not None]
            best = [f.best.top1 for f in of if f.best is not None]
            cells = [mean_std([s.top1 for s in last]), mean_std(top5) if top5 else "n/a"]
            cells += [mean_std([s.balanced for s in last]), mean_std(best) if best else ""]
            labels = next(f.train for f in of if f.last is not None)
            rows.append([f"{label}, {key[1]}".rstrip(", "), *cells, f"{labels:,}", str(len(last)), why])
    for name, score in (("majority class", target.majority), ("chance", target.chance)):
        five = "n/a" if score.top5 is None else f"{100 * score.top5:.1f}"
        rows.append([name, f"{100 * score.top1:.1f}", five, f"{100 * score.balanced:.1f}", "", "", "", ""])
    columns = ["", "top-1", "top-5", "balanced", "best epoch", "labels", "runs", "why n/a"]
    lacking = any(row[-1] for row in rows)
    have = {line.role for line in lines}
    words = {"floor": "random encoder", "ceiling": "supervised", "shuffled": "shuffled pairs"}
    absent = [word for role, word in words.items() if role not in have]
    caption = "The best epoch is chosen on the test split (an oracle)."
    if any(line.derived for line in lines):
        caption += " Derived from joints: captions made by rule from the encoder's own input."
    if absent:
        caption += f" Controls that are not here: {', '.join(absent)}."
    show_table(
        f"{target.title}, {target.benchmark}: {title}, %, {target.train:,} train / {target.test:,} test",
        columns if lacking else columns[:-1],
        rows if lacking else [row[:-1] for row in rows],
        caption,
    )


def show_zeroshot(title: str, found: Sequence[tuple[str, Role, ZeroShot]]) -> None:
    """Print what runs answered without labels; the data's own floors are those of the last run."""
    rows: list[list[str]] = []
    for name, role, one in found:
        label = f"{name}{_ROLES.get(role, '')}"
        rows.append([label, *_score_cells(one.last), f"{one.shuffled.p:.3f}"])
        drawn = _score_cells(one.shuffled.mean, one.shuffled.std)
        rows.append([f"{label}, class texts permuted", *drawn, ""])
    if one.majority is not None:
        rows.append(["majority class", *_score_cells(one.majority), ""])
    rows.append(["chance", *_score_cells(one.chance), ""])
    words = f"{one.texts} descriptions" if one.described else "the names of the classes"
    show_table(
        f"{title}: zero-shot by {words}, %, {one.test:,} test clips, {one.classes} classes",
        ["", "top-1", "top-5", "balanced", "p"],
        rows,
        f"Permuted: mean ± standard deviation of {one.shuffled.draws} namings drawn at random; p: the share of namings, the true one among them, that reach its top-1.",
    )
    _say_notes([one.notes for _, _, one in found])


def show_retrieval(title: str, found: Sequence[tuple[str, Role, Retrieval]]) -> None:
    """Print how clips were found by their captions; ceiling and chance are those of the last run."""
    rows: list[list[str]] = []
    for name, role, one in found:
        label = f"{name}{_ROLES.get(role, '')}"
        for side, what in ((one.clip, "the clip itself"), (one.same_class, "any clip of its class")):
            if side is None:
                continue
            rows.append([f"{label}: {what}", *_recall_cells(side.last)])
            drawn = _recall_cells(side.shuffled, side.shuffled_std)
            rows.append([f"{label}: {what}, captions permuted", *drawn])
    rows.append(["ceiling: the clip itself, as captions repeat", *_recall_cells(one.ceiling)])
    rows.append(["chance: the clip itself", *_recall_cells(one.clip.chance)])
    if one.same_class is not None:
        rows.append(["chance: any clip of its class", *_recall_cells(one.same_class.chance)])
    show_table(
        f"{title}: text to motion, {one.queries:,} queries ({one.distinct:,} different) among {one.gallery:,} test clips",
        ["", "R@1, %", "R@5, %", "R@10, %", "median rank"],
        rows,
        f"Of clips at equal cosine the one that is asked for stands last. Permuted: mean ± standard deviation of {one.draws} permutations of the captions between clips.",
    )
    _say_notes([one.notes for _, _, one in found])


def _say_notes(notes: Sequence[Sequence[str]]) -> None:
    for note in dict.fromkeys(note for some in notes for note in some):
        say(note)


def _percent(value: float | None, std: float | None = None) -> str:
    if value is None:
        return "n/a"
    return f"{100 * value:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


def _score_cells(score: Score, std: Score | None = None) -> list[str]:
    fields = ("top1", "top5", "balanced")
    return [_percent(getattr(score, f), None if std is None else getattr(std, f)) for f in fields]


def _recall_cells(found: Recall, std: Recall | None = None) -> list[str]:
    shares = [
        _percent(getattr(found, f), None if std is None else getattr(std, f)) for f in ("r1", "r5", "r10")
    ]
    spread = "" if std is None or std.median is None else f" ± {std.median:.1f}"
    return [*shares, "n/a" if found.median is None else f"{found.median:.1f}{spread}"]
