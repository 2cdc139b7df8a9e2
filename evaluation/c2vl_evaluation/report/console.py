"""Results as tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from c2vl_evaluation.results import ALWAYS, Evaluated, Line, Role, Score, Summary, Table, grouped
from c2vl_manifests.cli_output import say, show_table

if TYPE_CHECKING:
    from c2vl_evaluation.language.class_split import ClassSplit
    from c2vl_evaluation.language.retrieval import Recall, Retrieval
    from c2vl_evaluation.language.unseen import SeenUnseen, Unseen
    from c2vl_evaluation.language.zeroshot import ZeroShot
    from c2vl_evaluation.prediction import Answer, Calibration

_ROLES = {"floor": " (floor)", "ceiling": " (ceiling)", "shuffled": " (control)", "baseline": " (baseline)"}
_CONTROLS: dict[Role, str] = {"floor": "random encoder", "ceiling": "supervised", "shuffled": "shuffled pairs"}
_ORACLE = "The best epoch is chosen on the test split (an oracle)."
_LEAST = 0.0005
"""Probability below which a class is not worth naming."""
_DERIVED = "† Derived from joints: captions made by rule from the encoder's own input."


def _label(line: Line) -> str:
    return line.name + _ROLES.get(line.role, "") + (" †" if line.derived else "")


def show_results(table: Table) -> None:
    """Print kNN and linear of every line with the scores that need no encoder, then the other protocols."""
    rows = []
    for line in table.lines():
        knn, linear = (line.summary(protocol) for protocol in ALWAYS)
        cells = [knn.top1, knn.top5, knn.balanced, linear.top1, linear.top5, linear.balanced, linear.best]
        of = table.of(line.name)
        rows.append([_label(line), *cells, str(len(of)), f"{sum(r.seconds for r in of) / len(of):,.0f} s"])
    for name, score in (("majority class", table.majority), ("chance", table.chance)):
        rows.append([name, *_score_cells(score), *_score_cells(score), "", "", ""])
    show_table(
        f"{table.title}, {table.benchmark}, recipe {table.recipe}: %, {table.train:,} train / {table.test:,} test",
        ["", "kNN", "top-5", "bal.", "linear", "top-5", "bal.", "best epoch", "seeds", "training"],
        rows,
        "kNN and linear: top-1; bal.: balanced. "
        + " ".join([_ORACLE, *table.notes(), *([_DERIVED] if any(line.derived for line in table.lines()) else [])]),
        spare=["training", "best epoch", "top-5", "top-5", "bal.", "bal.", "seeds"],
    )
    for protocol in dict.fromkeys(r.protocol for row in table.rows for r in row.results):
        if protocol in ALWAYS:
            continue
        for place, target in [(t, t.id) for t in table.targets] if protocol == "transfer" else [(table, "")]:
            show_protocol(protocol, table.lines_of(protocol, target), place)


def show_protocol(title: str, lines: Sequence[Line], place: Evaluated) -> None:
    """Print the results of one protocol, with the scores that need no encoder."""
    labels, rows = {line.name: _label(line) for line in lines}, []
    for group in grouped(lines):
        if group.why:
            rows.append([group.setting or group.protocol, "n/a", "", "", "", "", "", group.why])
            continue
        for name, cell in group.cells.items():
            rows.append([f"{labels[name]}, {group.setting}".rstrip(", "), *_summary_cells(cell)])
    for name, score in (("majority class", place.majority), ("chance", place.chance)):
        rows.append([name, *_score_cells(score), "", "", "", ""])
    columns = ["", "top-1", "top-5", "balanced", "best epoch", "labels", "runs", "why n/a"]
    roles = {line.role for line in lines}
    absent = [word for role, word in _CONTROLS.items() if role not in roles]
    said = [_ORACLE] if any(row[4] not in {"", "n/a"} for row in rows) else []
    said += place.notes()
    said += [_DERIVED] if any(line.derived for line in lines) else []
    said += [f"Missing controls: {', '.join(absent)}."] if absent else []
    show_table(
        f"{place.title}, {place.benchmark}: {title}, %, {place.train:,} train / {place.test:,} test",
        columns,
        rows,
        " ".join(said),
        spare=["best epoch", "top-5", "balanced"],
    )


def _summary_cells(cell: Summary) -> list[str]:
    if not cell.count:
        return ["n/a", "", "", "", "", "", cell.why or "not evaluated"]
    labels = " to ".join(f"{count:,}" for count in cell.train)
    return [cell.top1, cell.top5, cell.balanced, cell.best, labels, str(cell.count), cell.why]


def show_zeroshot(title: str, found: Sequence[tuple[str, Role, ZeroShot]]) -> None:
    """Print zero-shot results of runs, with the scores that need no encoder."""
    rows: list[list[str]] = []
    for name, role, one in found:
        label = f"{name}{_ROLES.get(role, '')}"
        rows.append([label, *_score_cells(one.last)])
        rows.append(["  names permuted", *_score_cells(one.shuffled.mean, one.shuffled.std)])
    if one.majority is not None:
        rows.append(["majority class", *_score_cells(one.majority)])
    rows.append(["chance", *_score_cells(one.chance)])
    words = f"{one.texts} descriptions" if one.described else "the names of the classes"
    words += ", cosines standardised per class" if one.standardised else ""
    show_table(
        f"{title}: zero-shot by {words}, %, {one.test:,} test clips, {one.classes} classes",
        ["", "top-1", "top-5", "balanced"],
        rows,
        f"Permuted: the same clips, mean ± standard deviation of {one.shuffled.draws} random permutations; p: share "
        "of permutations, the true naming included, that reach its top-1.",
    )
    for name, _, one in found:
        say(f"{name}: {one.verdict()}")
    _say_notes([one.notes for _, _, one in found])


def show_unseen(title: str, split: ClassSplit, found: Sequence[tuple[str, Role, Unseen]]) -> None:
    """Print recognition of unseen classes, alone and among all classes, with published figures."""
    alone: list[list[str]] = []
    among: list[list[str]] = []
    for name, role, one in found:
        label = f"{name}{_ROLES.get(role, '')}"
        alone.append([label, *_score_cells(one.last)])
        alone.append(["  names permuted", *_score_cells(one.shuffled.mean, one.shuffled.std)])
        if (all_ := one.generalised) is not None:
            among.append([label, *_pair_cells(all_.plain)])
            among.append(["  calibrated", *(_pair_cells(all_.calibrated) if all_.calibrated else ["n/a"] * 5)])
            among.append(["    names permuted", *_pair_cells(all_.shuffled, all_.shuffled_std)])
    alone.append(["chance", *_score_cells(one.chance)])
    alone += [[f"{method} *", _percent(value), "", ""] for method, value in one.published.items()]
    words = f"{one.texts} descriptions" if one.described else "the names of the classes"
    words += ", cosines standardised per class" if one.standardised else ""
    counts = f"{len(split.unseen)} unseen classes"
    show_table(
        f"{title}, split {split.title}: zero-shot by {words}, %, {one.test:,} test clips of {counts}",
        ["", "top-1", "top-5", "balanced"],
        alone,
        "Permuted: mean ± standard deviation of random permutations of the class texts."
        + (" * Published, trained with labels of the seen classes; ours with none." if one.published else ""),
    )
    if all_ := one.generalised:
        among.append(["chance", *_pair_cells(all_.chance)])
        show_table(
            f"generalised: {all_.test:,} test clips among all {split.classes} classes, {counts}, %",
            ["", "seen", "unseen", "harmonic", "seen, bal.", "unseen, bal."],
            among,
            "seen, unseen: accuracy on clips of such classes; harmonic: harmonic mean of both; bal.: balanced. Calibrated: "
            "cosines to seen classes are lowered by a constant that was chosen on training clips of seen classes.",
            spare=["unseen, bal.", "seen, bal."],
        )
    say(f"unseen: {', '.join(split.unseen_names)}")
    for name, _, one in found:
        say(f"{name}: {one.verdict()}")
        if one.generalised and one.generalised.constant is not None:
            on = f"{one.generalised.calibrated_on:,} training clips"
            say(f"{name}: constant {one.generalised.constant:.3f}, chosen on {on} of seen classes")
    _say_notes([one.notes for _, _, one in found])


def _pair_cells(pair: SeenUnseen, std: SeenUnseen | None = None) -> list[str]:
    fields = ("seen", "unseen", "harmonic", "seen_balanced", "unseen_balanced")
    return [_percent(getattr(pair, f), None if std is None else getattr(std, f)) for f in fields]


def show_retrieval(title: str, found: Sequence[tuple[str, Role, Retrieval]]) -> None:
    """Print retrieval results of runs, with ceiling and chance."""
    rows: list[list[str]] = []
    for name, role, one in found:
        rows.append([f"{name}{_ROLES.get(role, '')}", "", "", "", ""])
        for side, what in ((one.clip, "the clip itself"), (one.same_class, "any of its class")):
            if side is None:
                continue
            rows.append([f"  {what}", *_recall_cells(side.last)])
            rows.append(["    captions permuted", *_recall_cells(side.shuffled, side.shuffled_std)])
    rows.append(["ceiling: the clip itself", *_recall_cells(one.ceiling)])
    rows.append(["chance: the clip itself", *_recall_cells(one.clip.chance)])
    if one.same_class is not None:
        rows.append(["chance: any of its class", *_recall_cells(one.same_class.chance)])
    show_table(
        f"{title}: text to motion, {one.queries:,} queries ({one.distinct:,} different) among "
        f"{one.gallery:,} test clips",
        ["", "R@1, %", "R@5, %", "R@10, %", "median rank"],
        rows,
        "Of clips with equal cosine, the wanted one is ranked last. Ceiling: what repeated captions leave possible. Permuted: mean ± standard deviation of "
        f"{one.draws} permutations of the captions between clips.",
    )
    _say_notes([one.notes for _, _, one in found])


def show_predictions(answers: Sequence[Answer], known: Calibration | None) -> None:
    """Print the classes of skeleton files, and how far their probabilities can be trusted."""
    rows, named = [], [answer.file.stem for answer in answers]
    for answer in answers:
        (name, probability), *others = answer.top
        file = answer.file.stem if named.count(answer.file.stem) == 1 else str(answer.file)
        rest = ", ".join(f"{other} {_probability(p)}" for other, p in others if p >= _LEAST)
        rows.append([file, str(answer.frames), name, _probability(probability), rest])
    show_table("Recognised actions", ["file", "frames", "class", "prob.", "next"], rows, spare=["frames", "next"])
    say(known.words() if known else "How well these probabilities are calibrated is unknown: no stored test answers.")


def _probability(value: float) -> str:
    """Return a probability; a softmax never gives 1."""
    return "> 0.999" if value > 1 - _LEAST else f"{value:.3f}"


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
    shares = [_percent(getattr(found, f), None if std is None else getattr(std, f)) for f in ("r1", "r5", "r10")]
    spread = "" if std is None or std.median is None else f" ± {std.median:.1f}"
    return [*shares, "n/a" if found.median is None else f"{found.median:.1f}{spread}"]
