"""Commands over a work folder that is there: what is done, foreseen, damaged, to be tried again, to be looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2vl_manifests.cli_common import RecipeOption, Reporter, SetOption, say, show_table
from c2vl_pipeline.cli_options import (
    Call,
    FailuresOption,
    ResourceOption,
    SchedulerOption,
    WorkersOption,
    WorkOption,
    recipe_of,
)

if TYPE_CHECKING:
    from c2vl_pipeline.maintenance.estimate import StagePlan
    from c2vl_pipeline.maintenance.status import StageStatus


def status(
    work: WorkOption,
    recipe: RecipeOption = None,
    why: Annotated[bool, typer.Option("--why", help="Say for each stage why shards are not done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    set_: SetOption = None,
) -> None:
    """Say of each stage what is done, what is stale, and what became of every row.

    Exit code 0 when every expected row of every stage is accounted for, 1 when something is still to do.
    """
    from c2vl_pipeline.maintenance import estimate as plan
    from c2vl_pipeline.maintenance.status import survey

    found = survey(work, recipe_of(work, recipe, set_))
    planned = plan.read(work)
    if as_json:
        say(json.dumps([entry.as_dict() for entry in found], indent=1))
    else:
        foreseen = {s.stage: s for s in planned.stages} if planned else {}
        rows = [
            [
                e.stage,
                e.state,
                f"{e.shards_done}/{e.shards}",
                f"{e.rows:,}/{e.expected_rows:,}",
                e.counts(),
                f"{e.seconds:,.0f} s",
                *([_foreseen(foreseen, e)] if planned else []),
            ]
            for e in found
        ]
        columns = ["stage", "state", "shards", "rows", "statuses", "work time"]
        show_table(f"{work}", [*columns, *(["planned"] if planned else [])], rows)
        for entry in found if why else ():
            for reason, shards in entry.why.items():
                say(f"{entry.stage}: {shards:,} shard{'s' if shards > 1 else ''}: {reason}")
    if any(e.state != "complete" for e in found):
        raise typer.Exit(1)


def _foreseen(foreseen: Mapping[str, StagePlan], entry: StageStatus) -> str:
    """Say what `plan` expected of the samples that a stage has done, in the same unit as its work time."""
    plan = foreseen.get(entry.stage)
    if plan is None or not plan.samples or not entry.expected_rows:
        return ""
    samples = plan.samples * entry.rows / entry.expected_rows
    return f"{samples * plan.sample_seconds:,.0f} s"


def plan(
    work: WorkOption,
    recipe: RecipeOption = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes the run will have.", show_default=False)
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="How long to probe.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    set_: SetOption = None,
) -> None:
    """Probe the stages on a few samples and estimate time, GPU-hours and disk of the rest.

    Exit code 1 when the disk will not do.
    """
    from c2vl_pipeline.maintenance import estimate as planner

    with Reporter() as emit:
        made = planner.estimate(
            work, recipe_of(work, recipe, set_), seconds=seconds, workers=workers, emit=emit
        )
    if as_json:
        say(made.model_dump_json(indent=1))
    else:
        rows = [
            [
                s.stage,
                f"{s.samples:,}",
                f"{s.probed}",
                f"{1000 * s.sample_seconds:,.1f} ms",
                f"{s.workers}",
                _duration(s.seconds),
                f"{s.gpu_hours:,.1f}",
                f"{s.bytes / 1e9:,.2f} GB",
            ]
            for s in made.stages
        ]
        total = sum(s.seconds for s in made.stages)
        rows.append(
            [
                "all",
                "",
                "",
                "",
                "",
                _duration(total),
                f"{sum(s.gpu_hours for s in made.stages):,.1f}",
                f"{sum(s.bytes for s in made.stages) / 1e9:,.2f} GB",
            ]
        )
        show_table(
            f"{work}: {made.all_samples:,} samples",
            ["stage", "to do", "probed", "a sample", "workers", "wall time", "GPU-hours", "disk"],
            rows,
            caption="Extrapolated from one process; workers are taken to scale, and GPUs to be this machine's.",
        )
    problem = made.problem()
    if problem:
        say(f"warning: {problem}")
        raise typer.Exit(1)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


RawOption = Annotated[
    bool, typer.Option("--raw", help="Hash the raw files again too, and compare with what was read.")
]


def verify(
    work: WorkOption,
    raw: RawOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list instead of lines.")] = False,
) -> None:
    """Read every committed byte and compare it with the manifests. Exit code 1 when anything is damaged."""
    from c2vl_pipeline.maintenance import verify as checks

    with Reporter() as emit:
        found = checks.verify(work, raw=raw, emit=emit)
    if as_json:
        say(json.dumps([damage.as_dict() for damage in found], indent=1))
    else:
        for damage in found:
            say(f"{damage.stage}: {damage.path} {damage.problem}")
        if any(damage.stage == "index" for damage in found):
            say(f"{len(found)} damaged; run `c2vl-pipeline index` again first, then verify again")
        elif found:
            mend = f"c2vl-pipeline repair --work {work}{' --raw' if raw else ''}"
            say(f"{len(found)} damaged; mend with: {mend}")
        else:
            say(f"{work}: everything is as it was committed")
    if found:
        raise typer.Exit(1)


def repair(
    work: WorkOption,
    recipe: RecipeOption = None,
    raw: RawOption = False,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    resource: ResourceOption = None,
    set_: SetOption = None,
) -> None:
    """Make what `verify` finds damaged again, and nothing else."""
    from c2vl_pipeline.maintenance import verify as checks

    with Reporter() as emit:
        found = checks.verify(work, raw=raw, emit=emit)
    for damage in found:
        say(f"{damage.stage}: {damage.path} {damage.problem}")
    if not found:
        say(f"{work}: everything is as it was committed")
        return
    resolved = recipe_of(work, recipe, set_)
    with Call(work, workers, scheduler, resource) as run:
        checks.repair(
            work,
            resolved,
            found,
            lambda command, only, redo: run.stage(command, resolved, only=only, redo=redo),
        )
    left = checks.verify(work, raw=raw)
    for damage in left:
        say(f"still damaged: {damage.path} {damage.problem}")
    if left:
        raise typer.Exit(1)
    say(f"repaired {len(found)}; {work} is whole again (`c2vl-pipeline status` says whether to pack again)")


def retry_failed(
    work: WorkOption,
    recipe: RecipeOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    resource: ResourceOption = None,
    max_failures: FailuresOption = 1.0,
    set_: SetOption = None,
) -> None:
    """Try the samples with failed or undecodable rows again, and bring the later stages up to date."""
    from c2vl_pipeline.maintenance import verify as checks

    resolved = recipe_of(work, recipe, set_)
    with Call(work, workers, scheduler, resource, max_failures) as run:
        tried = checks.retry(work, resolved, lambda command, redo: run.stage(command, resolved, redo=redo))
    if not tried:
        say(f"{work}: no row has failed or could not be decoded; nothing to try again")
        return
    for stage, samples in tried.items():
        left = sum(len(ids) for ids in checks.failed_samples(work, stage).values())
        fate = f"{left:,} failed again" if left else "none failed again"
        say(
            f"{stage}: {samples:,} sample{'s' if samples > 1 else ''} tried again, {fate}"
            if samples
            else f"{stage}: brought up to date"
        )
    if (work / "packed").is_dir():
        say(f"`c2vl-pipeline status --work {work}` says whether to pack again")


OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="HTML file to write (default: in the work folder).", show_default=False),
]


def inspect(
    work: WorkOption,
    out: OutOption = None,
    status: Annotated[
        str | None,
        typer.Option(help="A row has it in any stage: no_person, captions:failed, not-ok (all but ok) ..."),
    ] = None,
    sample: Annotated[
        list[str] | None, typer.Option(help="Id, or a pattern with * and ?; may be repeated.")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--class", help="Name of a class, or its 0-based number.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Such as xsub:test.")] = None,
    subject: int | None = None,
    camera: Annotated[str | None, typer.Option(help="Camera of the index, or the number of a view.")] = None,
    shard: int | None = None,
    text: Annotated[str | None, typer.Option(help="A caption holds it, in any case.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show at most so many samples.")] = 48,
    seed: Annotated[int | None, typer.Option(min=0, help="Show random ones, not the first.")] = None,
) -> None:
    """Write an offline gallery of any slice: crops, captions, and what became of them."""
    from c2vl_pipeline.browse import gallery as pages

    filters = pages.Filters(
        status=status,
        samples=tuple(sample or ()),
        label=label,
        split=split,
        subject=subject,
        camera=camera,
        shard=shard,
        text=text,
    )
    made = pages.gallery(work, out or work / "inspect.html", filters, limit=limit, seed=seed)
    say(f"{made.shown:,} of {made.matched:,} samples that match ({filters.words()}), of {made.total:,}")
    for note in made.notes:
        say(f"note: {note}")
    say(str(made.path))


def explain(
    sample_id: Annotated[str, typer.Argument(metavar="SAMPLE_ID", show_default=False)],
    work: WorkOption,
    out: OutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as one JSON object.")] = False,
) -> None:
    """Follow one sample from its raw files to its vectors: every frame, engine and configuration involved."""
    from c2vl_pipeline.browse import trace as pages

    found = pages.trace(work, sample_id)
    path = pages.write(found, out or work / pages.page_name(sample_id))
    if as_json:
        say(json.dumps({**found.facts, "page": str(path)}, indent=1, ensure_ascii=False))
        return
    for line in pages.outline(found.facts):
        say(line)
    say(str(path))


def audit(
    work: WorkOption,
    out: OutOption = None,
    released: Annotated[
        Path | None,
        typer.Option(
            help="Captions the authors released (.json or .zip), to compare with.", show_default=False
        ),
    ] = None,
    check: Annotated[
        int, typer.Option(min=1, help="Samples whose joints are compared with their crops.")
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of their choice, and of the shuffled control.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Audit crops and captions on one offline page: joints inside, vocabulary, repeats, contradictions, agreement."""
    from c2vl_pipeline.browse import audit as pages

    found = pages.measure(work, released, check=check, seed=seed)
    path = pages.write(found, out or work / "audit.html")
    if as_json:
        say(json.dumps({**found.as_dict(), "page": str(path)}, indent=1, ensure_ascii=False))
        return
    for line in [*found.summary(), *(f"note: {note}" for note in found.notes)]:
        say(line)
    say(str(path))
