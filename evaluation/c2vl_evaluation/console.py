"""Findings as tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from c2vl_evaluation.results import Finding, Results, Role, Score, Target, by_setting, mean_std
from c2vl_manifests.terminal import say, show_table

if TYPE_CHECKING:
    from c2vl_evaluation.search import Recall, Retrieval
    from c2vl_evaluation.zeroshot import ZeroShot

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


def show_results(results: Results) -> None:
    """Print a table: kNN and linear of every line, what answers without an encoder, then a table a protocol."""
    rows = []
    for name in results.names():
        of = results.of(name)
        label = name + _ROLES.get(of[0].role, "")
        if of[0].derived_from_joints:
            label += " [derived from joints]"
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
            lines = []
            for name in results.names():
                found = [f for row in results.of(name) for f in row.findings if f.protocol == protocol]
                if protocol == "transfer":
                    found = [f for f in found if f" to {target.dataset}, " in f.setting]
                if found:
                    lines.append((name, results.of(name)[0].role, found))
            show_findings(protocol, lines, target)


def show_findings(title: str, lines: Sequence[tuple[str, Role, Sequence[Finding]]], target: Target) -> None:
    """Print a table of findings with what answers without an encoder reach."""
    settings = dict.fromkeys(key for _, _, found in lines for key in by_setting(found))
    rows = []
    for key in settings:
        reasons = {f.why for _, _, found in lines for f in by_setting(found).get(key, [])}
        if len(reasons) == 1 and "" not in reasons:  # the data's, not an encoder's
            rows.append([key[1] or key[0], "n/a", "", "", "", "", "", *reasons])
            continue
        for name, role, found in lines:
            of = by_setting(found).get(key, [])
            label = f"{name}{_ROLES.get(role, '')}"
            last = [f.last for f in of if f.last is not None]
            if not last:
                why = "; ".join(dict.fromkeys(f.why for f in of)) or "not evaluated"
                rows.append([f"{label}, {key[1]}".rstrip(", "), "n/a", "", "", "", "", "", why])
                continue
            top5 = [s.top5 for s in last if s.top5 is not None]
            best = [f.best.top1 for f in of if f.best is not None]
            cells = [mean_std([s.top1 for s in last]), mean_std(top5) if top5 else "n/a"]
            cells += [mean_std([s.balanced for s in last]), mean_std(best) if best else ""]
            rows.append([f"{label}, {key[1]}".rstrip(", "), *cells, f"{of[0].train:,}", str(len(of)), ""])
    for name, score in (("majority class", target.majority), ("chance", target.chance)):
        five = "n/a" if score.top5 is None else f"{100 * score.top5:.1f}"
        rows.append([name, f"{100 * score.top1:.1f}", five, f"{100 * score.balanced:.1f}", "", "", "", ""])
    columns = ["", "top-1", "top-5", "balanced", "best epoch", "labels", "runs", "why n/a"]
    lacking = any(row[-1] for row in rows)
    have = {role for _, role, _ in lines}
    words = {"floor": "random encoder", "ceiling": "supervised", "shuffled": "shuffled pairs"}
    absent = [word for role, word in words.items() if role not in have]
    caption = "The best epoch is chosen on the test split (an oracle)."
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
