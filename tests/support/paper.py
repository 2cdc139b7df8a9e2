"""A lab of the paper's tables that trains in seconds."""

from __future__ import annotations

from pathlib import Path

from c2vl_evaluation.paper.experiments import Lab
from c2vl_evaluation.paper.sets import find_sets
from c2vl_evaluation.paper.spec import Column
from c2vl_evaluation.paper.tables import Sheet, SheetRow, Shown
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


def lab(work: Path, out: Path, *overrides: str, seeds: int = 1) -> Lab:
    return Lab(find_sets(work), out, "debug", (*FAST, *overrides), seeds)


BESIDE = Shown(
    84.4,
    (84.0, 82.0),
    top5=(97.0, 98.0),
    balanced=(80.0, 81.0),
    best=(85.5, 82.5),
    last_epochs=(9,),
    best_epochs=(4, 7),
)


def small_sheet() -> Sheet:
    columns = (Column(dataset="ntu60", benchmark="xsub"), Column(dataset="a_b", benchmark="x|v", share=0.05))
    rows = (
        SheetRow("P&C [61]", "", "peer", (Shown(50.0), Shown())),
        SheetRow("C²VL", "GCN", "pretrained", (BESIDE, Shown(None, (61.5,)))),
        SheetRow("even", "", "pretrained", (Shown(80.0, (80.04,)), Shown(70.0, (71.0,)))),
        SheetRow("floor", "", "floor", (Shown(None, (12.5,)), Shown(None, (), "a_b is <not> there"))),
    )
    return Sheet("table9", "IX", "100 % & more", "Caption with $ and _.", columns, rows)
