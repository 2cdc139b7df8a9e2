"""What `c2vl-eval paper` fills: columns, cells, and the trainings and evaluations behind them. Nothing is computed here.

    OUT/runs/<dataset>/<benchmark>/<what>-<hash>-seed0/   a training; the hash is of all that determines it
    OUT/runs/…/evaluations/                               its results, see `cache`: none is computed twice
    OUT/paper.html, paper.md, paper.tex, paper.csv        see `export`

Trainings are those of `c2vl_training.trainer`, protocols those of this package; lines that need the same training
share it, across tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from c2vl_evaluation import cache
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.metrics import no_encoder_scores
from c2vl_evaluation.paper.spec import Column, Line, Variant, everything, lines, printed
from c2vl_evaluation.protocols import PROTOCOLS
from c2vl_evaluation.results import Protocol, Result, Score
from c2vl_manifests.errors import C2VLError, ConfigError, StageError
from c2vl_manifests.events import Emit, Note, silent
from c2vl_manifests.manifest import fingerprint
from c2vl_manifests.packed import FILE as PACKED
from c2vl_manifests.packed import resolve_recipe
from c2vl_manifests.recipe import EvaluationConfig, Recipe, targets_name
from c2vl_training import checkpoint
from c2vl_training.dataset import Packed
from c2vl_training.run_folder import Run

BLIND = ("majority class", "chance")
"""What answers without looking at a sample."""


@dataclass(frozen=True)
class Job:
    """One protocol on one training (on three, for an ensemble): what one seed of a cell waits for."""

    protocol: Protocol
    setting: str
    """`1 % stratified, frozen`, `tuned`, or whose scores an ensemble adds."""
    runs: tuple[Run, ...]
    packed: Packed
    """What the encoder is evaluated on."""
    benchmark: str
    evaluation: EvaluationConfig

    @property
    def id(self) -> str:
        """Equal for equal jobs."""
        words = (
            self.protocol,
            self.setting,
            self.packed.folder,
            self.benchmark,
            *(run.out for run in self.runs),
        )
        return "|".join(map(str, words))

    def results(self, emit: Emit = silent) -> Iterator[cache.Cell]:
        """Return the protocol's results before they are computed; its trainings must be finished."""
        contexts = [
            EvalContext(
                run.out, self.packed, self.benchmark,
                run.recipe.model_copy(update={"evaluation": self.evaluation}), run.seed, emit,
            )
            for run in self.runs
        ]  # fmt: skip
        if self.protocol == "ensemble":
            streams: dict[str, EvalContext] = {one.recipe.training.input.stream: one for one in contexts}
            contexts[0] = replace(contexts[0], streams=streams)
        return PROTOCOLS[self.protocol](contexts[0])


@dataclass(frozen=True)
class Cell:
    """A place of a table: a line of ours in a column."""

    table: str
    line: Line
    column: Column
    jobs: tuple[Job, ...] = ()
    """One a seed."""
    why: str = ""
    """Why it cannot be made; empty where it can."""

    def wants(self, finding: Result) -> bool:
        """Whether a finding of its jobs belongs into it."""
        match self.line.protocol:
            case "semi":
                return finding.setting == f"{100 * (self.column.share or 0):g} % {self.line.setting}"
            case "transfer":
                return finding.setting.endswith(f", {self.line.setting}")
            case "ensemble":
                return finding.setting.endswith("equal weights") == (self.line.setting == "equal weights")
        return True


@dataclass
class Lab:
    """What the tables are made from and where they go."""

    sets: dict[str, Packed]
    out: Path
    recipe: str | None = None
    """The one that each work folder was made with, unless given."""
    overrides: tuple[str, ...] = ()
    seeds: int = 1
    wide: bool = False
    """Every table on every dataset and benchmark, also where the paper has no number of it."""
    failed: dict[Path | str, str] = field(default_factory=dict)
    """Of this session: a training's folder or a job's id -> why."""
    _bases: dict[str, Recipe] = field(default_factory=dict)
    _results: dict[str, tuple[Result, ...]] = field(default_factory=dict)
    _whys: dict[Column, str] = field(default_factory=dict)
    _blind: dict[tuple[str, str], dict[str, Score] | str] = field(default_factory=dict)

    def base(self, name: str) -> Recipe:
        """Return the recipe of a dataset."""
        if name not in self._bases:
            self._bases[name] = resolve_recipe(self.sets[name].manifest, self.recipe, self.overrides)
        return self._bases[name]

    def unusable(self) -> dict[str, str]:
        """Return the datasets that can fill no cell at all, and why: no benchmark, or no recipe."""
        found = {}
        for name, packed in self.sets.items():
            try:
                packed.main_benchmark()
                self.base(name)
            except C2VLError as error:
                found[name] = str(error)
        return found

    def columns(self, table: str) -> list[Column]:
        """Return the paper's columns of a table, then those of datasets that it has no numbers of."""
        spec = everything()[table]
        known = {c.dataset for t in printed().values() for c in t.columns}
        more: list[Column] = []
        unusable = self.unusable()
        sets = {name: packed for name, packed in self.sets.items() if name not in unusable}
        for name, packed in sets.items():
            if name in known and not self.wide:
                continue
            if spec.protocol == "transfer":
                pairs = [(a, b) for a in sets for b in sets if a != b and name in {a, b}]
                ways = [Column(dataset=a, benchmark=sets[b].main_benchmark(), to=b) for a, b in pairs]
                more += [way for way in ways if not self._impossible(way)]
                continue
            names = [packed.main_benchmark()] if table.startswith("figure") else packed.benchmarks()
            shares = self.base(name).evaluation.semi.shares if spec.protocol == "semi" else (None,)
            more += [Column(dataset=name, benchmark=b, share=s) for b in names for s in shares]
        return list(dict.fromkeys([*spec.columns, *more]))

    def run(self, name: str, benchmark: str, variant: Variant, seed: int) -> Run:
        """Return the training of a variant; equal ones have equal folders, whatever asks for them."""
        recipe = variant.recipe(self.base(name))
        bare = Run(variant.kind, self.sets[name], recipe, benchmark, seed, self.out)
        t = recipe.training
        words = [variant.kind, t.encoder.name, t.input.stream]
        if variant.kind == "pretrain":
            p = t.pretrain
            words[1:1] = [targets_name(p.targets), p.knowledge, "shuffled" if p.pairs == "shuffled" else ""]
        slug = re.sub(r"[^a-z0-9_]+", "-", "-".join(filter(None, words)).lower()).strip("-")
        folder = f"{slug}-{fingerprint(bare.facts())[:8]}-seed{seed}"
        out = self.out / "runs" / name / benchmark / folder
        return Run(variant.kind, self.sets[name], recipe, benchmark, seed, out)

    def job(self, line: Line, column: Column, seed: int) -> Job:
        """Return the job of a cell and a seed."""
        source = self.sets[column.dataset].main_benchmark() if column.to else column.benchmark
        runs = tuple(self.run(column.dataset, source, variant, seed) for variant in line.streams)
        on = column.to or column.dataset
        evaluation = _narrowed(runs[0].recipe.evaluation, line, column)
        return Job(line.protocol, _setting(line, column), runs, self.sets[on], column.benchmark, evaluation)

    def cells(self, tables: Iterable[str], *, finished: bool = False) -> list[Cell]:
        """Return all cells of some tables and figures, in their order.

        Args:
            tables: their names.
            finished: with the seeds that follow those asked for, as far as they are finished.
        """
        found = []
        for table in tables:
            several = table == "figure6" or table.startswith("table")
            for column in self.columns(table):
                why = self._impossible(column)
                encoder = "stgcn" if why else self.base(column.dataset).training.encoder.name
                for line in lines(table, encoder):
                    jobs: list[Job] = []
                    if not why:
                        jobs += (self.job(line, column, seed) for seed in range(self.seeds if several else 1))
                        jobs += self._later(line, column) if finished and several else ()
                    found.append(Cell(table, line, column, tuple(jobs), why))
        return found

    def _later(self, line: Line, column: Column) -> Iterator[Job]:
        """Yield the finished jobs of the seeds after those asked for, up to the first that is not finished."""
        for seed in count(self.seeds):
            job = self.job(line, column, seed)
            if self.results(job) is None:
                return
            yield job

    def blind(self, column: Column) -> dict[str, Score] | str:
        """Return what each of `BLIND` reaches on the data that a column is evaluated on, or why that is not known.

        All labels of the training split are counted, also where encoders learn from a share of them.
        """
        on = Column(dataset=column.to or column.dataset, benchmark=column.benchmark)
        key = on.dataset, on.benchmark
        if key not in self._blind:
            self._blind[key] = self._impossible(on) or self._counted(on)
        return self._blind[key]

    def _counted(self, on: Column) -> dict[str, Score] | str:
        try:
            found = no_encoder_scores(self.sets[on.dataset], on.benchmark)
        except C2VLError as error:
            return str(error)
        return dict(zip(BLIND, (found.majority, found.chance), strict=True))

    def _impossible(self, column: Column) -> str:
        """Say why a column cannot be filled; nothing where it can."""
        if column not in self._whys:  # many tables have the same columns, and a split is read to know
            self._whys[column] = self._lack(column)
        return self._whys[column]

    def _lack(self, column: Column) -> str:
        for name in filter(None, (column.dataset, column.to)):
            if name not in self.sets:
                return f"{name} is not there"
        on = self.sets[column.to or column.dataset]
        if column.benchmark not in on.benchmarks():
            return f"{column.to or column.dataset} has no benchmark {column.benchmark}"
        own = self.sets[column.dataset].layout
        if (own.names, own.dims) != (on.layout.names, on.layout.dims):
            return f"the joints of {column.to} are of another layout ({on.layout.name}, not {own.name})"
        try:
            self.base(column.dataset)
            for split in ("train", "test"):
                on.select(column.benchmark, split)
            if column.to:
                source = self.sets[column.dataset]
                source.select(source.main_benchmark(), "train")
        except C2VLError as error:
            return str(error)
        return ""

    def results(self, job: Job) -> tuple[Result, ...] | None:
        """Return the stored results of a job; None if one is missing, or of other weights than there are now."""
        if job.id not in self._results:
            if not (job.runs[0].out / cache.FOLDER).is_dir():  # most often, and the data need not be asked
                return None
            try:
                found = [cell.cached() for cell in job.results()]
            except C2VLError:
                return None
            if not found or None in found:
                return None
            self.add(job, [result for result in found if result is not None])
        return self._results[job.id]

    def add(self, job: Job, results: Iterable[Result]) -> None:
        """Note that a job is finished."""
        self._results[job.id] = tuple(results)

    def others(self, cells: Iterable[Cell]) -> int:
        """Count the trainings in the folder that are behind none of these cells: of other settings, data or seeds."""
        own = {run.out for cell in cells for job in cell.jobs for run in job.runs}
        return sum(path.parent not in own for path in (self.out / "runs").glob(f"*/*/*/{checkpoint.ENCODER}"))


def _setting(line: Line, column: Column) -> str:
    share = "" if column.share is None else f"{100 * column.share:g} % "
    return line.of if line.protocol == "ensemble" else share + line.setting


def _narrowed(config: EvaluationConfig, line: Line, column: Column) -> EvaluationConfig:
    """Return a configuration that asks for what a line needs and nothing else."""
    changes: dict[str, Any] = {}
    if line.protocol == "semi":
        sampling, encoder = line.setting.split(", ")
        told = {"sampling": (sampling,), "encoder": (encoder,), "shares": (column.share,)}
        changes["semi"] = config.semi.model_copy(update=told)
    elif line.protocol == "transfer":
        changes["transfer"] = config.transfer.model_copy(update={"encoder": (line.setting,)})
    elif line.protocol == "ensemble":
        changes["ensemble"] = config.ensemble.model_copy(update={"protocol": (line.of,)})
    return config.model_copy(update=changes)


def find_sets(root: Path, emit: Emit = silent) -> dict[str, Packed]:
    """Return the packed sets below a folder by name: the dataset's, or `dataset (folder)` where two hold the same.

    A folder's name never stands for a dataset, so made-up samples in a folder `ntu60` are not taken for NTU's. A folder
    that cannot be read is noted and left out.

    Raises:
        StageError: there is none, or the only one is of an old format.
        DataError: the only one is damaged.
        ConfigError: two would have the same name.
    """
    places = [root, *sorted(p for p in root.iterdir() if p.is_dir())] if root.is_dir() else []
    homes = [p for p in places if (p / "packed" / PACKED).is_file() or (p / PACKED).is_file()]
    homes = [p for p in homes if p.name != "packed" or p.parent not in homes]
    if not homes:
        raise StageError(
            f"no packed dataset below {root}; make one by `c2vl-pipeline prompts --work {root}/<dataset>`"
        )
    packs: list[tuple[str, Packed]] = []
    for home in homes:
        try:
            packs.append((home.resolve().name, Packed(home)))
        except C2VLError as error:
            if len(homes) == 1:
                raise
            emit(Note(f"{home} is left out: {error}", "warning"))
    if not packs:
        raise StageError(
            f"none of the {len(homes)} packed datasets below {root} can be read; pack them again"
        )
    names = [packed.manifest.dataset for _, packed in packs]
    found: dict[str, Packed] = {}
    for folder, packed in packs:
        own = packed.manifest.dataset
        name = own if folder == own or names.count(own) == 1 else f"{own} ({folder})"
        if name in found:
            raise ConfigError(
                f"{found[name].folder} and {packed.folder} would both be named {name!r}; rename one of their folders"
            )
        found[name] = packed
    return found
