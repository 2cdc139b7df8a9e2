"""Run every stage while its processes are killed and its files damaged, and compare the rows with a clean run's.

python benchmarks/stress/chaos.py --work WORK [--kills 20] [--seed 0] [--limit N] [--garbage 2] [--json FILE]

Nothing is simulated: stages run as the commands that users type, SIGKILL comes from outside at random moments and
during commits, files are damaged on disk, a small file system is really full. The script works in a folder of its
own, on links to the raw files; the given work folder and the raw data are only read. Exit code 0 if no row was lost,
duplicated, or changed without a status that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from c2vl_manifests.cli_output import Reporter, say, show_table
from c2vl_manifests.errors import C2VLError, StageError
from c2vl_manifests.events import Emit, Note, Progress, silent
from c2vl_manifests.manifest import commit_text, read_shard_manifest, read_stage_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.execution.runner import run_stage
from c2vl_pipeline.stages import STAGES, crop
from c2vl_pipeline.stages.index import build
from c2vl_pipeline.workspace import Workspace, load, shard_path
from chaos_report import TABLE, Garbage, Report
from compare_rows import Damaged, compare_stage
from faults import GARBAGE, Killer, damage, spoil

COMMANDS = {name: stage.command for name, stage in STAGES.items()}

DAMAGE_SHARE, UPSTREAM_SHARE, LAST_DAMAGES = 0.7, 0.2, 3
"""Runs followed by damage; damages that hit an earlier stage; damages of a complete stage before `repair`."""

MOST_REFUSALS = 6
"""Times that a stage may stop by itself, with repairs in between, before chaos is given up."""

HANGS = 300.0
"""Seconds without an end, undisturbed, after which a run counts as hanging."""

# ------------------------------------------------------------------------------------------------ farm


def _link_raw(index: Workspace, samples: list[dict[str, Any]], farm: Path) -> None:
    """Link the raw files of some samples, and every file of the raw folder that is neither video nor skeleton."""
    suffixes = (*index.dataset.video_suffixes, *index.dataset.skeleton_suffixes)
    files = {Path(row[what]) for row in samples for what in ("video", "skeleton") if row[what] is not None}
    for folder, _, names in os.walk(index.root, followlinks=True):
        for path in (Path(folder, name).relative_to(index.root) for name in names):
            if not path.name.endswith(suffixes) or "label" in str(path.parent).lower():
                files.add(path)  # descriptions, tables, labels
    for path in files:
        (farm / path).parent.mkdir(parents=True, exist_ok=True)
        (farm / path).symlink_to(index.root / path)


def _build(index: Workspace, farm: Path, work: Path, recipe: Recipe, overrides: list[str]) -> Workspace:
    """Index a farm of links as the given index was."""
    layout = index.layout.name
    own = layout if (farm / f"{layout}.toml").is_file() is False else f"{layout}.toml"
    made, _ = build(
        index.dataset,
        farm,
        work,
        recipe.pipeline,
        recipe=index.recipe,
        overrides=overrides,
        layout=own,
        only_present=True,
    )
    return made


# ----------------------------------------------------------------------------------------------- chaos


class Chaos:
    """One run: a clean reference, then the same under attack, then the comparison.

    Args:
        given: index of the work folder that is the pattern.
        scratch: folder to work in, empty.
        kills: SIGKILLs in all, spread evenly over the four stages.
        seed: of what is damaged and of the moments (which depend on the machine's speed too).
        limit: only the first so many samples.
        workers: processes of each stage.
        garbage: raw files to replace.
        overrides: further `--set` assignments (small shards make more commits to hit).
        emit: receives progress.
    """

    def __init__(
        self,
        given: Workspace,
        scratch: Path,
        *,
        kills: int,
        seed: int,
        limit: int | None,
        workers: int,
        garbage: int,
        overrides: list[str],
        emit: Emit,
    ) -> None:
        self.given, self.scratch, self.emit = given, scratch, emit
        self.rng = random.Random(seed)
        self.overrides = [*given.overrides, *overrides]
        self.recipe = load_recipe(given.recipe, self.overrides)
        self.quota = {n: kills // 4 + (i < kills % 4) for i, n in enumerate(("crops", "captions", "embeddings", "skeletons"))}  # fmt: skip
        rows = [row for row in given.table.to_pylist() if row["video"] or row["skeleton"]][:limit]
        self.clean, self.work = scratch / "clean", scratch / "work"
        for farm in ("raw-clean", "raw"):
            _link_raw(given, rows, scratch / farm)
        clean = _build(given, scratch / "raw-clean", self.clean, self.recipe, self.overrides)
        self.rows = clean.table.to_pylist()
        self.report = Report(seed, clean.table.num_rows, len(clean.shard_ranges), workers)
        self.processes: set[psutil.Process] = set()
        self.running: subprocess.Popen[bytes] | None = None
        self.late = self._choose_garbage(garbage)

    # -------------------------------------------------------------------------------------- commands

    def _start(
        self, command: str, work: Path, *more: str, prefix: tuple[str, ...] = ()
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a command of ours on a work folder; returns it and the file that receives what it says."""
        self.report.runs[command] += 1
        logs = self.scratch / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{self.report.runs.total():05d}-{command}.txt"
        entry = "from c2vl_pipeline.cli import main; main()"
        with log.open("wb") as handle:  # not a pipe: orphaned workers would keep it open
            process = subprocess.Popen(
                [*prefix, sys.executable, "-c", entry, command, "--work", str(work), *more],
                stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self.running = process
        return process, log

    def stop(self) -> None:
        """End what still runs."""
        if self.running is not None and self.running.poll() is None:
            for process in psutil.Process(self.running.pid).children(recursive=True):
                process.kill()
            self.running.kill()
            self.running.wait()

    def _finish(self, command: str, process: subprocess.Popen[bytes], log: Path) -> int:
        """Wait for a run that nobody disturbs any more; notes how it stopped, if it did."""
        try:
            code = process.wait(HANGS)
        except subprocess.TimeoutExpired:
            self.report.violations.append(f"{command} hung: no end after {HANGS:.0f} s undisturbed ({log})")
            self.stop()
            return process.wait()
        if code > 0:
            lines = log.read_text("utf-8", "replace").strip().splitlines() or [""]
            told = next((line for line in reversed(lines) if line.startswith("error: ")), None)
            self.report.stops[self._plain(told or lines[-1])] += 1
            if told is None:
                self.report.violations.append(f"{command} ended without an error line, with {lines[-1]!r}")
        return code

    def _plain(self, line: str) -> str:
        """Take out of a line what differs from case to case, so that equal stops are counted together."""
        line = line.replace(str(self.scratch), "…")
        return "".join("#" if c.isdigit() else c for c in line)[:160]

    def _call(self, command: str, work: Path, *more: str) -> int:
        return self._finish(command, *self._start(command, work, *more))

    def _undisturbed(self, command: str, work: Path, *more: str) -> None:
        if code := self._call(command, work, *more):
            raise StageError(
                f"undisturbed, {command} on {work} ended with exit code {code} ({list(self.report.stops)[-1:]}); "
                "mend that first, there is nothing to compare with"
            )

    # --------------------------------------------------------------------------------------- garbage

    def _choose_garbage(self, count: int) -> list[Garbage]:
        """Choose files and spoil the first half; returns what is to be spoiled later."""
        rows = self.rng.sample(self.rows, min(count, len(self.rows)))
        chosen = []
        for number, row in enumerate(rows):
            kind = "video" if row["skeleton"] is None or (number % 2 == 0 and row["video"]) else "skeleton"
            how = GARBAGE[number % len(GARBAGE)]
            chosen.append(Garbage(str(row[kind]), kind, how, early=number % 4 < 2))
        for garbage in chosen:
            if garbage.early:
                self._spoil(garbage)
        return [garbage for garbage in chosen if not garbage.early]

    def _spoil(self, garbage: Garbage) -> None:
        path = self.scratch / "raw" / garbage.file
        if path.is_symlink():  # not twice: samples may share a file
            spoil(path, garbage.how, self.rng)
            self.report.garbage.append(garbage)

    def damaged(self, stage: str) -> Damaged:
        """Return which samples of a stage may differ from the clean run."""
        files = {garbage.file for garbage in self.report.garbage}
        total = {g.file for g in self.report.garbage if g.early and g.how != "cut to 60 %"}
        reads = {"skeletons": "skeleton", "crops": "video"}.get(stage, "")
        samples = frozenset(r["sample_id"] for r in self.rows if {r["video"], r["skeleton"]} & files)
        hopeless = frozenset(r["sample_id"] for r in self.rows if reads and r[reads] in total)
        nearby: frozenset[str] = frozenset()
        engine = crop.STAGE.engine
        if stage != "skeletons" and engine and engine(self.recipe, self.given).backend == "motion":
            cameras = {r["camera"] for r in self.rows if r["video"] in files}
            nearby = frozenset(r["sample_id"] for r in self.rows if r["camera"] in cameras)
        return Damaged(samples, hopeless, nearby)

    # ------------------------------------------------------------------------------------------ storm

    def run(self) -> Report:
        """Do it all."""
        started = time.monotonic()
        for stage in STAGES.values():
            run_stage(stage, self.clean, self.recipe)
        self.report.clean_seconds = time.monotonic() - started
        self.report.full_disk = self._full_disk()
        _build(self.given, self.scratch / "raw", self.work, self.recipe, self.overrides)
        for name, command in COMMANDS.items():
            self._storm(name, command)
            for _ in range(LAST_DAMAGES):
                self._damage(name)
            self._repair()
        self._settle()
        self._compare()
        self._orphans()
        self.report.seconds = time.monotonic() - started
        return self.report

    def _storm(self, name: str, command: str) -> None:
        """Run one stage until it is complete and its kills are made."""
        folder, left = self.work / name, self.quota[name]
        options = ("--workers", str(self.report.workers), "--max-failures", "1")
        refused = 0
        while refused < MOST_REFUSALS:
            process, log = self._start(command, self.work, *options)
            killer = Killer(process, folder, self.rng)
            kills = killer.disturb(left)
            self.processes |= killer.seen
            self.report.kills += kills
            left -= len(kills)
            self.emit(Progress("chaos", len(self.report.kills), sum(self.quota.values()), "kills"))
            code = self._finish(command, process, log)
            if code == 0 and left == 0 and not (name == "crops" and self.late):
                return
            refused = 0 if kills or code <= 0 else refused + 1
            self._between(name, code)
        raise StageError(
            f"{command} refused {refused} times, whatever was repaired in between; see {log}, and look there for what is damaged"
        )

    def _between(self, name: str, code: int) -> None:
        """Damage something between two runs; mend what a run refused to go on with."""
        if code > 0:
            self._repair()
            for command in list(COMMANDS.values())[: list(COMMANDS).index(name)]:
                self._call(command, self.work, "--workers", str(self.report.workers))
        if name == "crops" and self.late:
            for garbage in self.late:
                self._spoil(garbage)
            self.late = []
            _build(self.given, self.scratch / "raw", self.work, self.recipe, self.overrides)
            self._call("skeletons", self.work, "--workers", str(self.report.workers))
        if code == 0:  # complete, and more is to be killed: take the commit of half of it away
            shards = sorted((self.work / name).glob("shard-*.json"))
            for path in self.rng.sample(shards, (len(shards) + 1) // 2):
                path.unlink()
                self.report.damages[name, "a manifest deleted"] += 1
        if self.rng.random() < DAMAGE_SHARE:
            self._damage(name)

    def _damage(self, name: str) -> None:
        names = list(COMMANDS)[: list(COMMANDS).index(name)]
        at = self.rng.choice(names) if names and self.rng.random() < UPSTREAM_SHARE else name
        if what := damage(self.work / at, self.rng):
            self.report.damages[at, what] += 1

    def _repair(self) -> None:
        if self._call("verify", self.work, "--repair", "--workers", "0"):
            self.report.violations.append("repair did not make everything whole")

    def _settle(self) -> None:
        """Bring everything to its end: what is complete stays, innocent victims of three kills are tried again."""
        for command in COMMANDS.values():
            self._undisturbed(command, self.work, "--workers", str(self.report.workers))
        if any(_blamed(self.work, name) for name in COMMANDS):
            self._undisturbed("prompts", self.work, "--retry-failed", "--workers", str(self.report.workers))
        self._undisturbed("verify", self.work)

    def _compare(self) -> None:
        for name in COMMANDS:
            self.report.comparisons.append(compare_stage(name, self.clean, self.work, self.damaged(name)))
            manifests = [read_stage_manifest(work / name) for work in (self.clean, self.work)]
            left, right = (m.digest if m else "" for m in manifests)
            self.report.digests[name] = (left, right)
            if not self.report.garbage and left != right:
                self.report.violations.append(f"{name}: the digest of the stage is not that of the clean run")
            hidden = sorted(p.name for p in (self.work / name).rglob(".*") if p.name != ".lock")
            if hidden:
                self.report.violations.append(f"{name}: {len(hidden)} files were left behind ({hidden[0]})")

    def _orphans(self) -> None:
        """Look whether a worker outlived its driver."""
        _, alive = psutil.wait_procs(self.processes, timeout=20)
        for process in alive:
            process.kill()
        if alive:
            self.report.violations.append(f"{len(alive)} worker processes outlived their driver")

    # -------------------------------------------------------------------------------------- full disk

    def _full_disk(self) -> str:
        """Run the crops on a file system that is too small, then grow it; returns what happened in a sentence.

        The file system exists only in the mount namespace of one shell: nothing is left mounted, whatever dies.
        """
        space = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
        home, out = self.scratch / "full", self.scratch / "full-out"
        home.mkdir()
        if shutil.which("unshare") is None:
            return "skipped: there is no `unshare` to mount a small file system with"
        trial = subprocess.run(
            [*space, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(home)], capture_output=True, check=False
        )  # fmt: skip
        if trial.returncode:
            reason = " ".join(trial.stderr.decode(errors="replace").split())
            return f"skipped: no small file system may be mounted here ({reason})"
        source = self.scratch / "full-source"
        source.mkdir()
        for path in self.clean.glob("samples.*"):
            shutil.copy(path, source)
        shutil.copytree(self.clean / "skeletons", source / "skeletons")
        crops = _blocks(self.clean / "crops")
        small, large = _blocks(source) + crops * 2 // 5, 4 * (_blocks(source) + crops) + (64 << 20)
        script = (
            'mount -t tmpfs -o "size=$SMALL" tmpfs "$HOME_" && cp -a "$SOURCE/." "$HOME_" || exit 91; '
            '"$@"; echo "first: $?"; mount -o "remount,size=$LARGE" "$HOME_" || exit 92; '
            '"$@" || exit 93; cp -a "$HOME_/." "$OUT"'
        )
        variables = {"SMALL": small, "LARGE": large, "HOME_": home, "SOURCE": source, "OUT": out}
        names = [f"{key}={value}" for key, value in variables.items()]
        out.mkdir()
        process, log = self._start(
            "crop", home, "--workers", str(self.report.workers), prefix=("env", *names, *space, "sh", "-c", script, "sh")
        )  # fmt: skip
        code = process.wait()
        lines = log.read_text("utf-8", "replace").splitlines()
        told = [line for line in lines if line.startswith("error: ")]
        if code or "first: 1" not in lines or len(told) != 1 or "the disk is full" not in told[0]:
            self.report.violations.append(f"a full disk: exit code {code}, said {told or lines[-1:]} ({log})")
            return "did not hold"
        there = compare_stage("crops", self.clean, out, Damaged())
        kept = next((line for line in lines if "shards are already done" in line), "no shard was kept")
        if not there.held:
            self.report.violations.append("a full disk: the rows made after it are not those of the clean run")
            return "did not hold"
        return (
            f"held: {small:,} bytes; {self._stop_line(told[0])}; after growing: {kept}; all {there.equal:,} rows equal"
        )

    def _stop_line(self, line: str) -> str:
        return line.replace(str(self.scratch), "…")[:120]


def _blocks(folder: Path) -> int:
    """Bytes that the files of a folder take on a file system of 4 KiB blocks."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def _blamed(work: Path, name: str) -> bool:
    """Whether a stage left out a sample because workers kept dying over it: kills may well fall so."""
    for number in range(len(load(work).shard_ranges)):
        manifest = read_shard_manifest(shard_path(work, name, number))
        if manifest is not None and manifest.statuses.get("failed"):
            return True
    return False


def _folder(scratch: Path | None) -> Path:
    """Make a new folder to work in."""
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="chaos-", dir=scratch)).resolve()


def run(
    work: Path,
    *,
    kills: int = 20,
    seed: int = 0,
    limit: int | None = None,
    workers: int = 2,
    garbage: int = 2,
    overrides: list[str] | None = None,
    scratch: Path | None = None,
    keep: bool = False,
    emit: Emit = silent,
) -> Report:
    """Attack a copy of a work folder's road and say whether it held; see `Chaos` for the arguments.

    `scratch` is where the copy is made (the folder for temporary files otherwise). It is removed unless `keep` is
    asked for or something did not hold.

    Raises:
        StageError: there is no index, or a stage fails undisturbed.
    """
    given = load(work)
    folder = _folder(scratch)
    held = False
    chaos: Chaos | None = None
    try:
        chaos = Chaos(
            given, folder, kills=kills, seed=seed, limit=limit, workers=workers, garbage=garbage,
            overrides=overrides or [], emit=emit,
        )  # fmt: skip
        report = chaos.run()
        held = report.held
        return report
    finally:
        if chaos is not None:
            chaos.stop()
        if held and not keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            emit(Note(f"everything was kept in {folder}"))


def main() -> None:
    """Run the attack and print its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="work folder with an index")
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs in total")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="first samples only")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of each stage")
    parser.add_argument("--garbage", type=int, default=2, help="raw files to replace by garbage")
    parser.add_argument("--scratch", type=Path, help="folder for the copy")
    parser.add_argument("--keep", action="store_true", help="keep the copy")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="file for the report as JSON")
    options = vars(parser.parse_args())
    out = options.pop("json")
    try:
        with Reporter() as emit:
            report = run(emit=emit, **options)
    except C2VLError as error:
        sys.exit(f"error: {error}")
    title = f"{len(report.kills)} kills, {report.damages.total()} damages, {len(report.garbage)} garbage files"
    show_table(title, list(TABLE), report.table())
    for line in report.lines():
        say(line)
    if out is not None:
        commit_text(out, json.dumps(report.as_dict(), indent=1) + "\n")
    sys.exit(not report.held)


if __name__ == "__main__":
    main()
