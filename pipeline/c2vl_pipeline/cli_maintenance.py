"""Commands over an existing work folder: what is done, what is damaged, what the rows look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2vl_manifests.cli_common import RecipeOption, SetOption
from c2vl_manifests.cli_output import Reporter, link, next_steps, say, say_json, show_table
from c2vl_pipeline.cli_options import (
    ResourceOption,
    SchedulerOption,
    StageRunner,
    WorkersOption,
    WorkOption,
    look_and_train,
    recipe_of,
)

if TYPE_CHECKING:
    from c2vl_manifests.recipe import Recipe
    from c2vl_pipeline.engines.requirements import Requirement
    from c2vl_pipeline.maintenance.status import StageStatus


def status_command(
    work: WorkOption,
    recipe: RecipeOption = None,
    why: Annotated[
        bool, typer.Option("--why", help="Give the reasons why shards are not done, and why rows failed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    set_: SetOption = None,
) -> None:
    """Show what each stage has done, what is stale, and the status of every row.

    Exit code 0 when every expected row of every stage is accounted for, 1 when something is still to do.
    """
    from c2vl_pipeline.maintenance.status import failure_lines, survey
    from c2vl_pipeline.stages import stages_of
    from c2vl_pipeline.workspace import load

    resolved = recipe_of(work, recipe, set_)
    stages = survey(work, resolved)
    if as_json:
        say_json([asdict(entry) for entry in stages])
    else:
        _show_stages(work, resolved.name, stages)
        for entry in stages if why else ():
            for reason, shards in entry.why.items():
                say(f"{entry.stage}: {shards:,} shard{'s' if shards > 1 else ''}: {reason}")
        for line in failure_lines(work) if why else ():
            say(line)
    if to_do := next((e.stage for e in stages if e.state != "complete"), None):
        if not as_json:
            command = {**{name: stage.command for name, stage in stages_of(load(work)).items()}, "packed": "pack"}[
                to_do
            ]
            say(next_steps(["c2vl-pipeline", command, "--work", work]))
        raise typer.Exit(1)
    if not as_json:
        say(look_and_train(work, work / "packed"))


def _show_stages(work: Path, recipe: str, stages: list[StageStatus]) -> None:
    """Print the stages of a work folder, with what `prompts --dry-run` expected if it was asked."""
    import shutil

    from c2vl_manifests.datasets import load_dataset
    from c2vl_manifests.events import byte_size, duration
    from c2vl_manifests.manifest import read_shard_manifest
    from c2vl_pipeline.maintenance import estimate

    index, planned = read_shard_manifest(work / "samples.parquet"), estimate.read(work)
    assert index is not None  # surveyed
    plans = {s.stage: s for s in planned.stages} if planned else {}
    rows, left = [], 0.0
    for e in stages:
        plan, share = plans.get(e.stage), e.rows / e.expected_rows if e.expected_rows else 1.0
        expected = plan.samples * share * plan.sample_seconds if plan and plan.samples else 0.0
        left += plan.samples * (1 - share) * plan.sample_seconds / plan.workers if plan else 0.0
        cells = [e.stage, e.state, f"{e.shards_done}/{e.shards}", f"{e.rows:,}/{e.expected_rows:,}", e.not_ok()]
        rows.append([*cells, f"{e.seconds:,.0f} s", f"{expected:,.0f} s" if expected else ""])
    columns = ["stage", "state", "shards", "rows", "not ok", "work time", "planned"]
    size, free = sum(e.bytes for e in stages), shutil.disk_usage(work).free
    caption = f"{byte_size(size)} written, {byte_size(free)} free."
    if left:
        caption += f" About {duration(left)} left, as measured by `prompts --dry-run`."
    show_table(
        f"{work}: {load_dataset(index.extra['dataset']).title}, {index.rows:,} samples, recipe {recipe}",
        columns,
        rows,
        caption,
        spare=["planned", "work time", "shards"],
    )


def _show_requirements(recipe: Recipe, needs: Sequence[Requirement]) -> None:
    """Print which packages and weights the engines of a recipe load, and from where."""
    from c2vl_manifests.events import byte_size

    held = {
        place: [one for one in needs if one.weights and one.weights.place == place]
        for place in ("here", "hub", "absent")
    }
    sizes = {place: sum((one.weights and one.weights.bytes) or 0 for one in ones) for place, ones in held.items()}
    for one in needs:
        words = f"{one.role} {one.engine}"
        if one.weights:
            size = f"{byte_size(one.weights.bytes)} " if one.weights.bytes else ""
            words += f" {one.model}: {size}{one.weights.note}"
        names = [f"{name} (not installed)" if name in one.missing else name for name in one.packages]
        say(words + (f"; needs {', '.join(names)}" if names else ""))
    said = [f"{byte_size(sizes['here'])} on this machine"] if held["here"] else []
    said += [f"{byte_size(sizes['hub'])} to be downloaded"] if held["hub"] else []
    said += [f"those of the {', '.join(one.role for one in held['absent'])} are not here"] if held["absent"] else []
    say(f"recipe {recipe.name}: {'weights: ' + '; '.join(said) if said else 'no weights to load'}")


def show_estimate(work: Path, recipe: Recipe, workers: int | None, seconds: float, as_json: bool) -> None:
    """Print what the engines need; probe the stages on a few samples, and print time, GPU-hours and disk of the rest."""
    from c2vl_manifests.events import byte_size, duration
    from c2vl_pipeline.engines.requirements import requirements
    from c2vl_pipeline.maintenance.estimate import estimate
    from c2vl_pipeline.stages import stages_of
    from c2vl_pipeline.workspace import load

    index = load(work)
    specs = [stage.engine(recipe, index) for stage in stages_of(index).values() if stage.engine]
    needs = requirements(specs)
    if not as_json:
        _show_requirements(recipe, needs)
    with Reporter() as emit:
        made = estimate(work, recipe, seconds=seconds, workers=workers, emit=emit)
    if as_json:
        say_json(made.model_dump(mode="json") | {"engines": [one.model_dump(mode="json") for one in needs]})
    else:
        rows = [
            [
                s.stage,
                f"{s.samples:,}",
                f"{s.probed}",
                f"{1000 * s.sample_seconds:,.1f} ms",
                f"{s.workers}",
                duration(s.seconds),
                f"{s.gpu_hours:,.1f}",
                byte_size(s.bytes),
            ]
            for s in made.stages
        ]
        hours, size = sum(s.gpu_hours for s in made.stages), sum(s.bytes for s in made.stages)
        total = duration(sum(s.seconds for s in made.stages))
        gpu = f" on {max(s.workers for s in made.stages if s.on_gpu)} GPUs" if hours else ""
        say(
            f"{made.all_samples:,} samples: about {total}{gpu}, {byte_size(size)} to write; "
            f"{byte_size(made.free_bytes)} free"
        )
        rows.append(["all", "", "", "", "", total, f"{hours:,.1f}", byte_size(size)])
        show_table(
            f"{work}: {made.all_samples:,} samples",
            ["stage", "to do", "probed", "per sample", "workers", "wall time", "GPU-hours", "disk"],
            rows,
            caption="Extrapolated from one process, assuming that workers scale and that the GPUs are those of this machine.",
            spare=["probed", "per sample", "workers", "GPU-hours"],
        )
    if problem := made.problem():
        say(f"warning: {problem}")
        raise typer.Exit(1)


def verify_command(
    work: WorkOption,
    raw: Annotated[
        bool, typer.Option("--raw", help="Hash the raw files again too, and compare with what was read.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list instead of lines.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Make what is damaged again, and nothing else.")] = False,
    recipe: RecipeOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    resource: ResourceOption = None,
    set_: SetOption = None,
) -> None:
    """Read every committed byte and compare it with the manifests. Exit code 1 when anything is (still) damaged."""
    from c2vl_pipeline.maintenance.verify import verify

    if repair and as_json:
        raise typer.BadParameter("--json lists the damage and cannot be combined with --repair")
    with Reporter() as emit:
        damages = verify(work, raw=raw, emit=emit)
    if as_json:
        say_json([asdict(damage) for damage in damages])
    else:
        for damage in damages:
            say(f"{damage.stage}: {damage.path} {damage.problem}")
        if not damages:
            say(f"{work}: everything is as it was committed")
        elif repair:
            from c2vl_pipeline.maintenance import repair as repairs

            with StageRunner(work, recipe_of(work, recipe, set_), workers, scheduler, resource) as runner:
                repairs.repair(work, runner.recipe, damages, runner.run)
            if left := verify(work, raw=raw):
                for damage in left:
                    say(f"still damaged: {damage.path} {damage.problem}")
                raise typer.Exit(1)
            say(f"repaired {len(damages)}; {work} is whole again (`c2vl-pipeline status` shows whether to pack again)")
            return
        elif any(damage.stage == "index" for damage in damages):
            say(f"{len(damages)} damaged; run `c2vl-pipeline index` again first, then verify again")
        else:
            command = f"c2vl-pipeline verify --work {work}{' --raw' if raw else ''} --repair"
            say(f"{len(damages)} damaged; repair with: {command}")
    if damages:
        raise typer.Exit(1)


def retry_failed(runner: StageRunner) -> None:
    """Try the samples with failed or undecodable rows again, and bring the later stages up to date."""
    from c2vl_manifests.errors import StageError
    from c2vl_pipeline.maintenance.repair import failed_samples, retry
    from c2vl_pipeline.stages import stages_of
    from c2vl_pipeline.stages.failures import total_failure
    from c2vl_pipeline.workspace import load

    work = runner.work
    tried = retry(work, runner.recipe, lambda stage, redo: runner.run(stage, redo=redo))
    if not tried:
        say(f"{work}: no row has failed or could not be decoded; nothing to try again")
        return
    index = load(work)
    stages = stages_of(index)
    for stage, samples in tried.items():
        left = sum(len(ids) for ids in failed_samples(work, stages[stage]).values())
        fate = f"{left:,} failed again" if left else "none failed again"
        again = f"{samples:,} sample{'s' if samples > 1 else ''} tried again, {fate}"
        say(f"{stage}: {again if samples else 'brought up to date'}")
    if (work / "packed").is_dir():
        say(f"`c2vl-pipeline status --work {work}` shows whether to pack again")
    if failed := next(filter(None, (total_failure(index, stages[stage]) for stage in tried)), None):
        raise StageError(failed)


OutOption = Annotated[Path | None, typer.Option("--out", help="HTML file to write (default: in the work folder).")]


def inspect_command(
    work: WorkOption,
    out: OutOption = None,
    status: Annotated[
        str | None, typer.Option(help="A row has it in any stage: no_person, captions:failed, not-ok (all but ok) ...")
    ] = None,
    sample: Annotated[list[str] | None, typer.Option(help="Id, or a pattern with * and ?; may be repeated.")] = None,
    label: Annotated[str | None, typer.Option("--class", help="Name of a class, or its 0-based number.")] = None,
    split: Annotated[str | None, typer.Option(help="Such as xsub:test.")] = None,
    subject: Annotated[int | None, typer.Option(help="Number of a person.")] = None,
    camera: Annotated[str | None, typer.Option(help="Camera of the index, or the number of a view.")] = None,
    shard: Annotated[
        int | None, typer.Option(help="Number of a shard, the file of a stage that holds samples.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="A caption holds it, in any case.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Show at most this many samples.")] = 48,
    seed: Annotated[int | None, typer.Option(min=0, help="Show random ones, not a slice of all kinds.")] = None,
    order: Annotated[
        str | None,
        typer.Option(help="Show the first by captions (most missing, cut or repeated) or score (lowest), not a slice."),
    ] = None,
) -> None:
    """Write an offline gallery of any slice: crops, captions, and what became of them."""
    from c2vl_pipeline.browse import gallery, selection

    filters = selection.Filters(
        status=status,
        samples=tuple(sample or ()),
        label=label,
        split=split,
        subject=subject,
        camera=camera,
        shard=shard,
        text=text,
    )

    def tell(made: gallery.Gallery) -> None:
        matched = f" that match ({filters.words()}), of {made.total:,}" if filters.words() else ""
        chosen = f", {made.chosen}" if made.chosen else ""
        say(f"{made.shown:,} of {made.matched:,} samples{matched}{chosen}")
        for note in [*made.notes, *made.reasons]:
            say(f"note: {note}")

    made = gallery.gallery(work, out or work / "inspect.html", filters, limit=limit, seed=seed, order=order, tell=tell)
    say(f"page: {link(made.path)}")
    if made.reasons and status is None:
        say(next_steps(["c2vl-pipeline", "inspect", "--status", selection.NOT_OK, *filters.options(), "--work", work]))


def explain_command(
    sample_id: Annotated[str, typer.Argument(metavar="SAMPLE_ID")],
    work: WorkOption,
    out: OutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as one JSON object.")] = False,
) -> None:
    """Follow one sample from its raw files to its vectors: every frame, engine and configuration involved."""
    from c2vl_pipeline.browse import trace

    traced = trace.trace(work, sample_id)
    path = out or work / trace.page_name(sample_id)
    if as_json:
        say_json({**traced.facts, "page": str(path)})
    for line in () if as_json else [*trace.outline(traced.facts), f"page: {link(path)}"]:
        say(line)
    trace.write(traced, path)


def audit_command(
    work: WorkOption,
    out: OutOption = None,
    released: Annotated[
        Path | None, typer.Option(help="Captions the authors released (.json or .zip), to compare with.")
    ] = None,
    check: Annotated[int, typer.Option(min=1, help="Samples whose joints are compared with their crops.")] = 500,
    captions: Annotated[int, typer.Option(min=1, help="Samples whose captions are read.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Of their choice, and of the shuffled control.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Audit crops and captions on one offline page: joints inside, vocabulary, repeats, contradictions, agreement."""
    from c2vl_pipeline.browse import audit

    measured = audit.measure(work, released, check=check, captions=captions, seed=seed)
    path = out or work / "audit.html"
    if as_json:
        say_json({**measured.as_dict(), "page": str(path)})
    notes = [f"note: {note}" for note in measured.notes]
    for line in () if as_json else [*measured.summary(), *notes, f"page: {link(path)}"]:
        say(line)
    audit.write(measured, path)


def publish_command(
    work: WorkOption,
    out: Annotated[Path, typer.Option("--out", help="New folder, or one that this command wrote.")],
    crops: Annotated[bool, typer.Option("--crops", help="Pictures too, if the dataset's licence allows it.")] = False,
    skeletons: Annotated[
        bool, typer.Option("--skeletons", help="Joints too, if the dataset's licence allows it.")
    ] = False,
    webdataset: Annotated[bool, typer.Option("--webdataset", help="Tar shards for streaming too.")] = False,
) -> None:
    """Write captions and vectors, with a card, as a folder for a data hub that the `datasets` library reads."""
    from c2vl_pipeline.publishing.publish import publish

    with Reporter() as emit:
        made = publish(work, out, crops=crops, skeletons=skeletons, webdataset=webdataset, emit=emit)
    parts = ", ".join(f"{name} {part.rows:,}" for name, part in made.parts.items())
    say(
        f"{out}: rows of {parts}; read the section Licence of {out / 'README.md'} and name the licence there before you "
        "give it away"
    )
