"""Transfer protocol: an encoder trained on one dataset, on the training and test split of another one.

Both have the same joints, or the target was packed in the layout of the source (`c2vl-pipeline pack --layout`).

*Reading:* the paper fine-tunes (`tuned`); its Table V is headed PKU-MMD I, its caption and text say II. `frozen`, the
linear protocol on the other dataset, tells what the encoder brought along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from c2vl_evaluation.cache import Outcome, Subject, kept
from c2vl_evaluation.metrics import check_classes
from c2vl_evaluation.protocols import linear
from c2vl_evaluation.protocols.finetuning import Cell, Job, labelled, tune
from c2vl_manifests.errors import ConfigError
from c2vl_manifests.events import Emit, silent
from c2vl_training.checkpoint import load_finished
from c2vl_training.dataset import Packed


def named(packed: Packed, benchmark: str, source: str, more: str = "") -> str:
    """Say where an encoder is transferred to: dataset, benchmark, and the folder where its own data are called alike.

    Args:
        packed: the target.
        benchmark: there.
        source: dataset that the encoder was trained on.
        more: what else tells it from others.
    """
    folder = folder_of(packed) if packed.manifest.dataset == source else ""
    told = ", ".join(dict.fromkeys(filter(None, (folder, more))))
    return f"{packed.manifest.dataset}, {benchmark}" + (f" ({told})" if told else "")


def folder_of(packed: Packed) -> str:
    """Return the name of a work folder, or of the packed one where it stands alone."""
    at = packed.folder.resolve()
    return at.parent.name if at.name == "packed" else at.name


def cells(subject: Subject, emit: Emit = silent, to: str = "") -> Iterator[Cell]:
    """Yield the frozen and the tuned encoder before either is run; `to` names the target in place of `named`.

    Raises:
        CheckpointError: there is no finished run.
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
        name = f"{source} to {to or named(subject.packed, subject.benchmark, source)}, {encoder}"
        how = _frozen if encoder == "frozen" else _tuned
        yield Cell("transfer", name, 0, partial(_called, name, partial(how, subject, name, emit)))


def _called(name: str, make: Callable[[], Outcome]) -> Outcome:
    """Make an outcome, or read it under the name that it has here: the folder may have been called otherwise."""
    found = make()
    return Outcome(found.finding.model_copy(update={"setting": name}), found.predictions)


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
