"""Fine-tuning protocol: the whole network learns, from the weights of a run and a fresh fully connected layer.

*Reading:* the paper gives no recipe. SGD, learning rate 0.1, weight decay 1e-4, batch 128, 80 epochs, x0.1 at 50 and
70: the recipe of the supervised control, so that the two differ in their first weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from c2vl_evaluation.cache import Cell, ResultWithPredictions
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.protocols.finetuning import Job, tune


def cells(context: EvalContext) -> Iterator[Cell]:
    """Yield the one cell of the protocol."""
    config, precision = context.recipe.evaluation.finetune, context.recipe.training.precision

    def compute() -> ResultWithPredictions:
        train, test, classes = context.splits()
        job = Job(context, train.rows, test.rows, classes, config, f"finetune {context.run.name}")
        return tune(job).result(job, "finetune")

    yield Cell("finetune", compute, context.key("finetune", config, precision=precision))
