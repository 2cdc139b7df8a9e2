"""Fine-tuning protocol: the whole network learns, from the weights of a run and a fresh fully connected layer.

*Reading:* the paper gives no recipe. SGD, learning rate 0.1, weight decay 1e-4, batch 128, 80 epochs, x0.1 at 50 and
70: the recipe of the supervised control, so that the two differ in their first weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from c2vl_evaluation.cache import Outcome, Subject, kept
from c2vl_evaluation.metrics import check_classes
from c2vl_evaluation.protocols.finetuning import Cell, Job, labelled, tune
from c2vl_manifests.events import Emit, silent


def outcome(subject: Subject, emit: Emit = silent) -> Outcome:
    """Fine-tune on the training split and answer the test split, or read what was found before."""
    config = subject.recipe.evaluation.finetune

    def compute() -> Outcome:
        train, test = labelled(subject)
        classes = check_classes(subject.packed, train, test)
        job = Job(subject, train.rows, test.rows, classes, config, f"finetune {subject.run.name}")
        return tune(job, emit).outcome(job, "finetune")

    precision = subject.recipe.training.precision
    return kept(subject.task("finetune", config, precision=precision), compute)


def cells(subject: Subject, emit: Emit = silent) -> Iterator[Cell]:
    """Yield the one cell of the protocol."""
    yield Cell("finetune", "", 0, lambda: outcome(subject, emit))
