"""Experiments of the paper's tables that train in seconds."""

from __future__ import annotations

from pathlib import Path

from c2vl_evaluation.paper.experiments import Experiments, find_datasets
from c2vl_evaluation.paper.spec import Column
from c2vl_evaluation.paper.tables import FilledCell, FilledRow, FilledTable
from c2vl_evaluation.results import Result, Score
from support.training import BASE

FAST = (
    *BASE,
    "training.pretrain.epochs=3",
    "training.pretrain.optimiser.milestones=[2]",
    "training.supervised.epochs=1",
    "training.encoder.blocks=[[8,1],[16,2]]",
    "evaluation.linear.epochs=4",
    "evaluation.linear.milestones=[3]",
    "evaluation.linear.lrs=[0.1]",
    "evaluation.finetune.epochs=1",
    "evaluation.semi.shares=[0.5]",
    "evaluation.semi.draws=2",
    "evaluation.semi.tune.epochs=1",
    "evaluation.transfer.tune.epochs=1",
)


def experiments(work: Path, out: Path, *overrides: str, seeds: int = 1) -> Experiments:
    return Experiments(find_datasets(work), out, "debug", (*FAST, *overrides), seeds)


def shown(
    paper: float | None = None, ours: tuple[float, ...] = (), why: str = "", part: str = "", **more: tuple[float, ...]
) -> FilledCell:
    """A place of a table with numbers in percent, one per result; `more` are `top5`, `balanced`, `best`, `best_epochs`."""
    results = []
    for n, top1 in enumerate(ours):
        of = {name: values[n] / 100 for name, values in more.items() if name != "best_epochs"}
        best = Score(top1=of["best"], top5=None, balanced=0) if "best" in of else None
        last = Score(top1=top1 / 100, top5=of.get("top5"), balanced=of.get("balanced", 0))
        epoch = int(more["best_epochs"][n]) if "best_epochs" in more else None
        results.append(Result(protocol="linear", last=last, best=best, best_epoch=epoch, epochs=9 if epoch else 0))
    return FilledCell(paper, tuple(results), why, part)


BESIDE = shown(84.4, (84.0, 82.0), top5=(97.0, 98.0), balanced=(80.0, 81.0), best=(85.5, 82.5), best_epochs=(4, 7))


def small_table() -> FilledTable:
    columns = (Column(dataset="ntu60", benchmark="xsub"), Column(dataset="a_b", benchmark="x|v", share=0.05))
    rows = (
        FilledRow("P&C [61]", "", "peer", (shown(50.0), shown())),
        FilledRow("C²VL", "GCN", "pretrained", (BESIDE, shown(None, (61.5,)))),
        FilledRow("even", "", "pretrained", (shown(80.0, (80.04,)), shown(70.0, (71.0,)))),
        FilledRow("floor", "", "floor", (shown(None, (12.5,)), shown(None, (), "a_b is <not> there"))),
    )
    return FilledTable("table9", "IX", "100 % & more", "Caption with $ and _.", columns, rows)
