"""Transfer protocol: an encoder trained on one dataset, on the training and test split of another one.

Both have the same joints, or the target was packed in the layout of the source (`c2vl-pipeline pack --layout`).

*Reading:* the paper fine-tunes (`tuned`); its Table V is headed PKU-MMD I, its caption and text say II. `frozen`, the
linear protocol on the other dataset, tells what the encoder brought along.
"""

from __future__ import annotations

from collections.abc import Iterator

from c2vl_evaluation import linear
from c2vl_evaluation.scores import check_classes
from c2vl_evaluation.store import Outcome, Subject, kept
from c2vl_evaluation.tuning import Job, labelled, tune
from c2vl_manifests.errors import ConfigError
from c2vl_manifests.events import Emit, silent
from c2vl_training.checkpoint import load_finished


def outcomes(subject: Subject, emit: Emit = silent) -> Iterator[Outcome]:
    """Yield the outcome of a frozen and of a tuned encoder.

    Raises:
        CheckpointError: the encoder is of another joint layout.
        ConfigError: it was trained on this very data.
    """
    facts = load_finished(subject.run)[1]
    if facts.get("data") == subject.packed.manifest.fingerprint:
        raise ConfigError(
            f"{subject.run} was trained on the data of {subject.packed.folder} itself; give those of another dataset, "
            "or run `c2vl-eval finetune`"
        )
    source = str(facts.get("dataset", "elsewhere"))
    for encoder in subject.recipe.evaluation.transfer.encoder:
        name = f"{source} to {subject.packed.manifest.dataset}, {encoder}"
        yield (_frozen if encoder == "frozen" else _tuned)(subject, name, emit)


def _frozen(subject: Subject, name: str, emit: Emit) -> Outcome:
    config = subject.recipe.evaluation.linear

    def compute() -> Outcome:
        train, test, classes = subject.splits()
        found = linear.probe(train, test, classes, config, subject.seed)
        return found.outcome(subject, test, config, len(train.labels), protocol="transfer", setting=name)

    return kept(subject.task("transfer", config, encoder="frozen"), compute)


def _tuned(subject: Subject, name: str, emit: Emit) -> Outcome:
    config = subject.recipe.evaluation.transfer.tune

    def compute() -> Outcome:
        train, test = labelled(subject)
        classes = check_classes(subject.packed, train, test)
        job = Job(subject, train.rows, test.rows, classes, config, f"{subject.run.name} {name}")
        return tune(job, emit).outcome(job, "transfer", name)

    precision = subject.recipe.training.precision
    return kept(subject.task("transfer", config, encoder="tuned", precision=precision), compute)
