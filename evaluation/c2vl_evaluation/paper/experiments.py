"""Columns and cells of the paper's tables, and the trainings and evaluations behind them. Nothing is computed here.

    OUT/runs/<dataset>/<benchmark>/<variant>-<hash>-seed0/   a training; the hash is of everything that determines it
    OUT/runs/…/evaluations/                                  its results (see `cache`): none is computed twice
    OUT/paper.html, paper.md, paper.tex, paper.csv           see `export`

Rows that need the same training share it, across tables.
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
from c2vl_evaluation.paper.spec import Column, RowSpec, Variant, printed_tables, rows_of, tables_and_figures
from c2vl_evaluation.protocols import PROTOCOLS
from c2vl_evaluation.results import Evaluated, Protocol, Result
from c2vl_manifests.errors import C2VLError, ConfigError, StageError
from c2vl_manifests.events import Emit, Note, silent
from c2vl_manifests.manifest import fingerprint
from c2vl_manifests.packed import FILE as PACKED
from c2vl_manifests.packed import resolve_recipe
from c2vl_manifests.recipe import EvaluationConfig, Recipe
from c2vl_manifests.targets import targets_name
from c2vl_training import checkpoint
from c2vl_training.dataset import PackedDataset
from c2vl_training.run_folder import Run


@dataclass(frozen=True)
class Evaluation:
    """One protocol on one training (on three, for an ensemble): one seed of a cell."""

    protocol: Protocol
    setting: str
    """`1 % stratified, frozen`, `tuned`, or whose scores an ensemble adds."""
    runs: tuple[Run, ...]
    packed: PackedDataset
    """Data that the encoder is evaluated on."""
    benchmark: str
    config: EvaluationConfig

    @property
    def id(self) -> str:
        """Identify the evaluation: equal for equal ones."""
        words = (self.protocol, self.setting, self.packed.folder, self.benchmark)
        return "|".join(map(str, (*words, *(run.out for run in self.runs))))

    def cells(self, emit: Emit = silent) -> Iterator[cache.Cell]:
        """Yield the protocol's results before they are computed; the trainings must be finished."""
        contexts = [
            EvalContext(
                run.out, self.packed, self.benchmark,
                run.recipe.model_copy(update={"evaluation": self.config}), run.seed, emit,
            )
            for run in self.runs
        ]  # fmt: skip
        if self.protocol == "ensemble":
            streams: dict[str, EvalContext] = {one.recipe.training.input.stream: one for one in contexts}
            contexts[0] = replace(contexts[0], streams=streams)
        return PROTOCOLS[self.protocol](contexts[0])


@dataclass(frozen=True)
class TableCell:
    """A cell of a table: a computed row in a column."""

    table: str
    row: RowSpec
    column: Column
    evaluations: tuple[Evaluation, ...] = ()
    """One per seed."""
    why: str = ""
    """Why it cannot be computed; empty if it can."""

    def takes(self, result: Result) -> bool:
        """Return True if a result of its evaluations belongs in this cell."""
        match self.row.protocol:
            case "semi":
                return result.setting == f"{100 * (self.column.share or 0):g} % {self.row.setting}"
            case "transfer":
                return result.setting.endswith(f", {self.row.setting}")
            case "ensemble":
                return result.setting.endswith("equal weights") == (self.row.setting == "equal weights")
        return True


@dataclass
class Experiments:
    """The datasets, settings and output folder of all tables."""

    datasets: dict[str, PackedDataset]
    out: Path
    recipe: str | None = None
    """Name or file; the recipe that each work folder was made with unless given."""
    overrides: tuple[str, ...] = ()
    seeds: int = 1
    wide: bool = False
    """Fill every table for every dataset and benchmark, even where the paper has no number."""
    failed: dict[Path | str, str] = field(default_factory=dict)
    """Failures of this session: folder of a training or id of an evaluation -> reason."""
    _recipes: dict[str, Recipe] = field(default_factory=dict)
    _results: dict[str, tuple[Result, ...]] = field(default_factory=dict)
    _impossible: dict[Column, str] = field(default_factory=dict)
    _no_encoder: dict[Column, Evaluated | str] = field(default_factory=dict)

    def recipe_of(self, name: str) -> Recipe:
        """Return the recipe of a dataset."""
        if name not in self._recipes:
            self._recipes[name] = resolve_recipe(self.datasets[name].manifest, self.recipe, self.overrides)
        return self._recipes[name]

    def unusable(self) -> dict[str, str]:
        """Return the datasets that can fill no cell, with the reason: no benchmark, or no recipe."""
        reasons = {}
        for name, packed in self.datasets.items():
            try:
                packed.main_benchmark()
                self.recipe_of(name)
            except C2VLError as error:
                reasons[name] = str(error)
        return reasons

    def columns(self, table: str) -> list[Column]:
        """Return the paper's columns of a table, then those of datasets that the paper does not use."""
        spec = tables_and_figures()[table]
        known = {c.dataset for t in printed_tables().values() for c in t.columns}
        more: list[Column] = []
        unusable = self.unusable()
        usable = {name: packed for name, packed in self.datasets.items() if name not in unusable}
        for name, packed in usable.items():
            if name in known and not self.wide:
                continue
            if spec.protocol == "transfer":
                pairs = [(a, b) for a in usable for b in usable if a != b and name in {a, b}]
                transfers = [Column(dataset=a, benchmark=usable[b].main_benchmark(), to=b) for a, b in pairs]
                more += [column for column in transfers if not self.why_impossible(column)]
                continue
            names = [packed.main_benchmark()] if table.startswith("figure") else packed.benchmarks()
            shares = self.recipe_of(name).evaluation.semi.shares if spec.protocol == "semi" else (None,)
            more += [Column(dataset=name, benchmark=b, share=s) for b in names for s in shares]
        return list(dict.fromkeys([*spec.columns, *more]))

    def run(self, name: str, benchmark: str, variant: Variant, seed: int) -> Run:
        """Return the training of a variant; equal trainings have the same folder, whichever table needs them."""
        recipe = variant.recipe(self.recipe_of(name))
        bare = Run(variant.kind, self.datasets[name], recipe, benchmark, seed, self.out)
        t = recipe.training
        words = [variant.kind, t.encoder.name, t.input.stream]
        if variant.kind == "pretrain":
            p = t.pretrain
            words[1:1] = [targets_name(p.targets), p.knowledge, "shuffled" if p.pairs == "shuffled" else ""]
        slug = re.sub(r"[^a-z0-9_]+", "-", "-".join(filter(None, words)).lower()).strip("-")
        folder = f"{slug}-{fingerprint(bare.facts())[:8]}-seed{seed}"
        out = self.out / "runs" / name / benchmark / folder
        return Run(variant.kind, self.datasets[name], recipe, benchmark, seed, out)

    def evaluation(self, row: RowSpec, column: Column, seed: int) -> Evaluation:
        """Return the evaluation of a row and a column for a seed."""
        source = self.datasets[column.dataset].main_benchmark() if column.to else column.benchmark
        runs = tuple(self.run(column.dataset, source, variant, seed) for variant in row.streams)
        packed = self.datasets[column.to or column.dataset]
        config = _narrowed(runs[0].recipe.evaluation, row, column)
        return Evaluation(row.protocol, _setting(row, column), runs, packed, column.benchmark, config)

    def cells(self, tables: Iterable[str], *, finished: bool = False) -> list[TableCell]:
        """Return all cells of some tables and figures, in their order.

        Args:
            tables: names of tables and figures.
            finished: add the seeds beyond those asked for, up to the first that is not finished.
        """
        cells = []
        for table in tables:
            several = table == "figure6" or table.startswith("table")
            for column in self.columns(table):
                why = self.why_impossible(column)
                encoder = "stgcn" if why else self.recipe_of(column.dataset).training.encoder.name
                for row in rows_of(table, encoder):
                    evaluations: list[Evaluation] = []
                    if not why:
                        seeds = range(self.seeds if several else 1)
                        evaluations += (self.evaluation(row, column, seed) for seed in seeds)
                        evaluations += self._later_seeds(row, column) if finished and several else ()
                    cells.append(TableCell(table, row, column, tuple(evaluations), why))
        return cells

    def _later_seeds(self, row: RowSpec, column: Column) -> Iterator[Evaluation]:
        """Yield the evaluations of the seeds after those asked for, up to the first that is not finished."""
        for seed in count(self.seeds):
            evaluation = self.evaluation(row, column, seed)
            if self.results(evaluation) is None:
                return
            yield evaluation

    def no_encoder_scores(self, column: Column) -> Evaluated | str:
        """Return the size of a column's benchmark and its scores without an encoder, or why there are none.

        All labels of the training split are counted, even if encoders learn from a share of them.
        """
        on = Column(dataset=column.to or column.dataset, benchmark=column.benchmark)
        if on not in self._no_encoder:
            self._no_encoder[on] = self.why_impossible(on) or self._count_labels(on)
        return self._no_encoder[on]

    def _count_labels(self, on: Column) -> Evaluated | str:
        try:
            return no_encoder_scores(self.datasets[on.dataset], on.benchmark)
        except C2VLError as error:
            return str(error)

    def why_impossible(self, column: Column) -> str:
        """Return the reason why a column cannot be filled; empty if it can."""
        if column not in self._impossible:  # many tables have the same columns, and the check reads a split
            self._impossible[column] = self._check(column)
        return self._impossible[column]

    def _check(self, column: Column) -> str:
        for name in filter(None, (column.dataset, column.to)):
            if name not in self.datasets:
                return f"{name} is not available"
        on = self.datasets[column.to or column.dataset]
        if column.benchmark not in on.benchmarks():
            return f"{column.to or column.dataset} has no benchmark {column.benchmark}"
        own = self.datasets[column.dataset].layout
        if (own.names, own.dims) != (on.layout.names, on.layout.dims):
            return f"the joints of {column.to} are of another layout ({on.layout.name}, not {own.name})"
        try:
            self.recipe_of(column.dataset)
            for split in ("train", "test"):
                on.select(column.benchmark, split)
            if column.to:
                source = self.datasets[column.dataset]
                source.select(source.main_benchmark(), "train")
        except C2VLError as error:
            return str(error)
        return ""

    def results(self, evaluation: Evaluation) -> tuple[Result, ...] | None:
        """Return the stored results of an evaluation; None if one is missing or of other weights."""
        if evaluation.id not in self._results:
            if not (evaluation.runs[0].out / cache.FOLDER).is_dir():  # the common case, without reading the data
                return None
            try:
                stored = [cell.cached() for cell in evaluation.cells()]
            except C2VLError:
                return None
            if not stored or None in stored:
                return None
            self.add_results(evaluation, (result for result in stored if result is not None))
        return self._results[evaluation.id]

    def add_results(self, evaluation: Evaluation, results: Iterable[Result]) -> None:
        """Record the results of a finished evaluation."""
        self._results[evaluation.id] = tuple(results)

    def unshown_trainings(self, cells: Iterable[TableCell]) -> int:
        """Count the finished trainings in the folder that no cell uses: of other settings, data or seeds."""
        used = {run.out for cell in cells for evaluation in cell.evaluations for run in evaluation.runs}
        return sum(path.parent not in used for path in (self.out / "runs").glob(f"*/*/*/{checkpoint.ENCODER}"))


def _setting(row: RowSpec, column: Column) -> str:
    share = "" if column.share is None else f"{100 * column.share:g} % "
    return row.of if row.protocol == "ensemble" else share + row.setting


def _narrowed(config: EvaluationConfig, row: RowSpec, column: Column) -> EvaluationConfig:
    """Return the configuration restricted to the setting of a row."""
    changes: dict[str, Any] = {}
    if row.protocol == "semi":
        sampling, encoder = row.setting.split(", ")
        setting = {"sampling": (sampling,), "encoder": (encoder,), "shares": (column.share,)}
        changes["semi"] = config.semi.model_copy(update=setting)
    elif row.protocol == "transfer":
        changes["transfer"] = config.transfer.model_copy(update={"encoder": (row.setting,)})
    elif row.protocol == "ensemble":
        changes["ensemble"] = config.ensemble.model_copy(update={"protocol": (row.of,)})
    return config.model_copy(update=changes)


def find_datasets(root: Path, emit: Emit = silent) -> dict[str, PackedDataset]:
    """Return the packed datasets below a folder by name; `dataset (folder)` if two folders hold the same dataset.

    The name comes from the data and not from the folder, so synthetic samples in a folder `ntu60` are not taken for
    NTU's. A folder that cannot be read is skipped with a warning.

    Raises:
        StageError: no packed dataset exists, or the only one has another format.
        DataError: the only one is damaged.
        ConfigError: two would have the same name.
    """
    places = [root, *sorted(p for p in root.iterdir() if p.is_dir())] if root.is_dir() else []
    homes = [p for p in places if (p / "packed" / PACKED).is_file() or (p / PACKED).is_file()]
    homes = [p for p in homes if p.name != "packed" or p.parent not in homes]
    if not homes:
        raise StageError(f"no packed dataset below {root}; make one by `c2vl-pipeline prompts --work {root}/<dataset>`")
    packs: list[tuple[str, PackedDataset]] = []
    for home in homes:
        try:
            packs.append((home.resolve().name, PackedDataset(home)))
        except C2VLError as error:
            if len(homes) == 1:
                raise
            emit(Note(f"{home} is left out: {error}", "warning"))
    if not packs:
        raise StageError(f"none of the {len(homes)} packed datasets below {root} can be read; pack them again")
    names = [packed.manifest.dataset for _, packed in packs]
    datasets: dict[str, PackedDataset] = {}
    for folder, packed in packs:
        own = packed.manifest.dataset
        name = own if folder == own or names.count(own) == 1 else f"{own} ({folder})"
        if name in datasets:
            raise ConfigError(
                f"{datasets[name].folder} and {packed.folder} would both be named {name!r}; rename one of their folders"
            )
        datasets[name] = packed
    return datasets
