"""The whole of NTU RGB+D 120 in small: index to pack, status, audit and one epoch; time, memory, files, and a killed driver.

python benchmarks/stress/rehearsal.py [--samples 114480] [--json FILE] [--scratch DIR] [--keep]

The samples bear the dataset's names. Their files are hard links to 16 clips of 64 x 48 pixels and 16 frames, so that
bookkeeping and not decoding is measured. Captions come from a file by `precomputed`, and repeat like the authors' (57 % over
everything, `bench_interning.py`). Boxes, vectors and the encoder are those of the recipe `heuristic`. The driver of each
stage is killed when a tenth of its shards is committed, and started again; memory is that of the second one. Flat means
that the end of a stage needs what its middle needed. Exit code 0 if all that is checked holds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from c2vl_manifests.cli_output import say, show_table
from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.manifest import commit_text
from c2vl_pipeline.stages import STAGES
from c2vl_pipeline.synthetic.dataset import generate
from c2vl_pipeline.workspace import load

MIB = 1 << 20
TEMPLATES = 16
"""Clips that are rendered; a file system allows 65,000 links to one."""

RESUME, SURVEY = 3.0, 10.0
"""Seconds of the processor that finding a finished work folder finished, and that `status` and `audit` may take."""

GROWTH = 1.1
"""Memory at the end of a stage, by that in its middle, up to which it counts as flat."""

KILL_AT = 0.1
"""Share of the shards of a stage at which its driver is killed."""

MODULES = {"c2vl-pipeline": "c2vl_pipeline.cli", "c2vl-train": "c2vl_training.cli"}


@dataclass
class Step:
    """One command: what it took, and the memory of its process and of the largest of its children, in MiB."""

    name: str
    seconds: float
    processor: float
    load: float
    driver: list[int] = field(default_factory=list)
    """At 10, 50 and 100 % of the shards, or of the time of a command without shards."""
    worker: list[int] = field(default_factory=list)
    driver_peak: int = 0
    worker_peak: int = 0

    def cells(self) -> list[str]:
        """Return its row of the table."""
        memory = [
            f"{' '.join(map(str, at))}, peak {peak}" if at else ""
            for at, peak in ((self.driver, self.driver_peak), (self.worker, self.worker_peak))
        ]
        return [self.name, f"{self.seconds:,.1f}", f"{self.processor:,.1f}", f"{self.load:.1f}", *memory]


# -------------------------------------------------------------------------------------------------- raw files


def make_raw(raw: Path, samples: int) -> None:
    """Write the first samples of NTU RGB+D 120: links to a few synthetic clips, and a file of captions."""
    templates, dataset = raw.with_name("templates"), load_dataset("ntu120")
    generate(templates, classes=8, subjects=2, views=1, repeats=1, size=(64, 48), frames=(16, 16))
    ids, missing = list(islice(dataset.expected_ids(), samples)), dataset.known_missing()
    for folder, ending in (("nturgb+d_rgb", "_rgb.avi"), ("nturgb+d_skeletons", ".skeleton")):
        (raw / folder).mkdir(parents=True)
        clips = sorted((templates / folder).iterdir())
        assert len(clips) == TEMPLATES
        for number, name in enumerate(ids):
            if ending == "_rgb.avi" or name not in missing:
                os.link(clips[number % TEMPLATES], raw / folder / f"{name}{ending}")
    with (raw.with_name("captions.json")).open("w") as file:
        for number, (name, said) in enumerate(zip(ids, captions(samples), strict=True)):
            file.write(f"{',' if number else '{'}\n{json.dumps(name)}: {json.dumps(said)}")
        file.write("\n}\n")


def captions(samples: int) -> Iterator[list[str]]:
    """Yield 16 captions a sample; of all, 57 % repeat another, about half of them one of the same sample."""
    rng, new = random.Random(0), 0
    for _ in range(samples):
        said: list[str] = []
        for slot in range(16):
            chance = rng.random()
            if slot and chance < 0.31:
                said.append(said[-1])
            elif chance < 0.57:
                common = int(2000 * rng.random() ** 3)
                said.append(f"The person is standing and holding a cup number {common} in the right hand.")
            else:
                new += 1
                said.append(
                    f"The person is standing in a room, and is trying to pick up object {new} with the left hand."
                )
        yield said


# ------------------------------------------------------------------------------------------------- one command


class Watched:
    """A command in a process of its own, and its memory in the course of its shards."""

    def __init__(self, name: str, command: list[str], log: Path, shards: Path | None = None, total: int = 0) -> None:
        self.name, self.shards, self.total = name, shards, total
        self.samples: list[tuple[float, int, int]] = []
        """Share of the shards that are committed, MiB of the driver, of its largest child."""
        words = [sys.executable, "-c", f"from {MODULES[command[0]]} import main; main()", *command[1:]]
        self._used = _children()
        self._began = time.monotonic()
        with log.open("ab") as file:
            self.process = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
        self.log = log
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def done(self) -> float:
        """Return the share of the shards that are committed; 0 of a command without."""
        if self.shards is None or not self.total:
            return 0.0
        try:
            return (
                sum(e.name.startswith("shard-") and e.name.endswith(".json") for e in os.scandir(self.shards))
                / self.total
            )
        except FileNotFoundError:
            return 0.0

    def _watch(self) -> None:
        own = psutil.Process(self.process.pid)
        while self.process.returncode is None:
            try:
                driver = own.memory_info().rss
                children = [_rss(child) for child in own.children(recursive=True)]
            except psutil.Error:
                return
            self.samples.append((self.done(), driver // MIB, max(children, default=0) // MIB))
            time.sleep(0.25)

    def wait(self) -> Step:
        """Wait for the end; raise RuntimeError with the end of the log if the command failed."""
        code = self.process.wait()
        self._thread.join()
        seconds = time.monotonic() - self._began
        if code:
            tail = self.log.read_text("utf-8", "replace").splitlines()[-3:]
            raise RuntimeError(f"{self.name} ended with {code}: {' | '.join(tail)}")
        step = Step(self.name, round(seconds, 2), round(_children() - self._used, 2), round(os.getloadavg()[0], 1))
        if self.samples:
            many = len(self.samples)
            course = [done if self.total else (n + 1) / many for n, (done, _, _) in enumerate(self.samples)]
            step.driver_peak = max(one[1] for one in self.samples)
            step.worker_peak = max(one[2] for one in self.samples)
            # the last readings are of a driver that has ended its workers
            busy = [n for n, one in enumerate(self.samples) if one[2] >= step.worker_peak / 2 and one[1]]
            at = [min(busy, key=lambda n: (abs(course[n] - share), -n)) for share in (KILL_AT, 0.5, 1.0)]
            step.driver = [self.samples[n][1] for n in at]
            step.worker = [self.samples[n][2] for n in at] if self.total else []
        return step


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ----------------------------------------------------------------------------------------------- the rehearsal


class Rehearsal:
    """The commands in order; `violations` says in one line each what does not hold."""

    def __init__(self, scratch: Path, samples: int) -> None:
        self.raw, self.work, self.run = scratch / "raw", scratch / "work", scratch / "run"
        self.log, self.samples = scratch / "log.txt", samples
        self.steps: list[Step] = []
        self.violations: list[str] = []
        self.kills: dict[str, str] = {}
        self.before: set[tuple[str, int]] = set()

    def command(self, name: str, *words: str, shards: str | None = None, total: int = 0) -> Watched:
        """Start a command."""
        return Watched(name, [*words], self.log, self.work / shards if shards else None, total)

    def step(self, name: str, *words: str, most: float | None = None) -> Step:
        """Run a command, of which `most` seconds are expected."""
        step = self.command(name, *words).wait()
        self.add(step)
        if most is not None and step.processor > most:  # others may use the machine
            self.violations.append(f"{name} took {step.processor:.1f} s of the processor, expected {most:.0f}")
        return step

    def add(self, step: Step) -> None:
        """Keep and print what a command took."""
        self.steps.append(step)
        say(f"{step.name}: {step.seconds:,.1f} s, {step.processor:,.1f} s of the processor, load {step.load}")

    def all(self) -> None:
        """Run everything."""
        work = ("--work", str(self.work))
        words = ["--dataset=ntu120", f"--data={self.raw}", "--recipe=heuristic", f"--limit={self.samples}"]
        settings = ["caption.engine=precomputed", f"caption.engine.options.path={self.raw.with_name('captions.json')}"]
        sets = [f"--set=pipeline.{one}" for one in settings]
        self.step("index", "c2vl-pipeline", "index", *words, *sets, *work)
        total = len(load(self.work).shard_ranges)
        for name, stage in STAGES.items():
            self.killed(name, stage.command, total)
            watched = self.command(
                stage.command, "c2vl-pipeline", stage.command, *work, "--workers=2", shards=name, total=total
            )
            self.add(watched.wait())
            self.flat(self.steps[-1])
            if made := self.before - self.manifests(name):
                self.violations.append(f"{stage.command}: {len(made)} shards were made twice after a kill")
        self.step("pack", "c2vl-pipeline", "pack", *work)
        self.step("prompts, finished", "c2vl-pipeline", "prompts", *work, "--workers=2", most=RESUME)
        self.step("status", "c2vl-pipeline", "status", *work, most=SURVEY)
        self.step("audit", "c2vl-pipeline", "audit", *work, "--out", str(self.work / "audit.html"), most=SURVEY)
        train = ["pretrain", f"--data={self.work / 'packed'}", "--benchmark=xsub", f"--out={self.run}"]
        small = ['encoder={ name = "stgcn", blocks = [[8, 1], [16, 2]] }', "input.frames=16", "pretrain.epochs=1"]
        small += [
            f"pretrain.batch_size={min(400, self.samples // 8)}",
            "pretrain.optimiser={ warmup_epochs = 0, milestones = [] }",
        ]
        self.step("one epoch", "c2vl-train", *train, *(f"--set=training.{one}" for one in small))

    def killed(self, name: str, command: str, total: int) -> None:
        """Start a stage, kill its driver when some shards are committed, and wait until its workers are gone."""
        words = ("c2vl-pipeline", command, "--work", str(self.work), "--workers=2")
        watched = self.command(command, *words, shards=name, total=total)
        while watched.process.poll() is None and watched.done() < KILL_AT:
            time.sleep(0.2)
        children = (
            psutil.Process(watched.process.pid).children(recursive=True) if watched.process.poll() is None else []
        )
        watched.process.send_signal(signal.SIGKILL)
        watched.process.wait()
        _, alive = psutil.wait_procs(children, timeout=60)
        if alive:
            self.violations.append(f"{command}: {len(alive)} workers outlived their driver by a minute")
        self.before = self.manifests(name)
        self.kills[command] = f"{len(self.before)} of {total}"

    def manifests(self, stage: str) -> set[tuple[str, int]]:
        """Return names and times of the shards that are committed."""
        return {
            (path.name, path.stat().st_mtime_ns)
            for path in (self.work / stage).glob("shard-*.parquet")
            if path.with_suffix(".json").is_file()
        }

    def flat(self, step: Step) -> None:
        """Note a process that needed more memory at the end of a stage than in its middle."""
        for who, memory in (("driver", step.driver), ("worker", step.worker)):
            if memory and memory[2] > GROWTH * memory[1]:
                self.violations.append(f"{step.name}: the {who} grew from {memory[1]} to {memory[2]} MiB")


def sizes(work: Path) -> dict[str, tuple[int, int]]:
    """Return the number of files and the bytes of each folder of a work folder."""
    found: dict[str, tuple[int, int]] = {}
    for folder in (work, *sorted(path for path in work.iterdir() if path.is_dir())):
        paths = [p for p in (folder.iterdir() if folder == work else folder.rglob("*")) if p.is_file()]
        found["" if folder == work else folder.name] = (len(paths), sum(path.stat().st_size for path in paths))
    return found


def main() -> None:
    """Rehearse, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=114_480, help="the first ones of the dataset")
    parser.add_argument("--json", type=Path, help="file for the report as JSON")
    parser.add_argument("--scratch", type=Path, help="folder to work in (default: a new one below the system's)")
    parser.add_argument("--keep", action="store_true", help="keep the folder of raw files, shards and the log")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    scratch = Path(tempfile.mkdtemp(prefix="rehearsal-", dir=options.scratch)).resolve()
    rehearsal = Rehearsal(scratch, options.samples)
    try:
        began = time.monotonic()
        make_raw(rehearsal.raw, options.samples)
        say(f"{options.samples:,} samples in {scratch}, made in {time.monotonic() - began:.0f} s")
        rehearsal.all()
    except RuntimeError as error:
        rehearsal.violations.append(str(error))
    held = sizes(rehearsal.work)
    if rehearsal.violations or options.keep:
        say(f"everything was kept in {scratch}")
    else:
        shutil.rmtree(scratch, ignore_errors=True)
    columns = ["command", "seconds", "of the processor", "load", "driver at 10 50 100 %, MiB", "larger worker"]
    show_table(f"{options.samples:,} samples", columns, [step.cells() for step in rehearsal.steps])
    rows = [[name or "(work folder)", f"{count:,}", f"{size / MIB:,.0f}"] for name, (count, size) in held.items()]
    show_table("files", ["folder", "files", "MiB"], rows)
    say(f"drivers killed when shards were committed: {', '.join(f'{k} {v}' for k, v in rehearsal.kills.items())}")
    say("; ".join(rehearsal.violations) or "held")
    if options.json is not None:
        report: dict[str, Any] = {
            "samples": options.samples,
            "steps": [asdict(step) for step in rehearsal.steps],
            "files": held,
            "kills": rehearsal.kills,
            "violations": rehearsal.violations,
        }
        commit_text(options.json, json.dumps(report, indent=1) + "\n")
    sys.exit(bool(rehearsal.violations))


if __name__ == "__main__":
    main()
