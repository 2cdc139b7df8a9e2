"""Change the files of work and run folders at random, run commands on them, and look at how they end.

python benchmarks/stress/fuzz_folders.py [--cases 20000] [--seed 0] [--start N] [--only N] [--jobs 1] [--json FILE]

Each case is a tiny folder of every kind (raw data, work folder, benchmark table with its runs), changed in one or two
places by `mutations.py`, and one to three commands on it, which share the folder. All that a case does is drawn from
the seed and its number. Everything is imported once; each command runs its `main` in a fork. Promised, and looked at:

- the exit code is 0, 1 or 2, within LIMIT seconds; no signal, no traceback;
- with code 1, standard error holds nothing or one line that begins with `error: `;
- memory stays below the limit, and no command says that it ran out;
- nothing outside the folder changes: canaries that links point to, the home, current and temporary folders, and no
  path elsewhere is opened for writing, made, renamed or removed by Python code;
- no control or bidirectional character reaches the output.

What breaks a promise is written to a file of JSON lines (--findings), and its kinds are counted in the summary.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import json
import os
import pickle
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from c2vl_manifests.cli_output import show_table
from c2vl_manifests.errors import one_line
from mutations import mutate

LIMIT, MEMORY, FILE = 60.0, 4 << 30, 256 << 20
"""Seconds of a command, bytes of memory beyond those of the server, bytes of a file."""

SETTINGS = (
    "pipeline.frames=2", "pipeline.shard_samples=4", "training.input.frames=8", "training.encoder.blocks=[[4,1],[4,2]]",
    "training.pretrain.projector_dim=4", "training.pretrain.epochs=2", "training.pretrain.batch_size=2",
    "training.supervised.epochs=1", "training.supervised.batch_size=2", "training.supervised.optimiser.warmup_epochs=0",
    "training.supervised.optimiser.milestones=[]", "evaluation.linear.epochs=1", "evaluation.linear.milestones=[]",
    "evaluation.linear.lrs=[0.1]",
)  # fmt: skip
PROGRAMS = ("c2vl_pipeline", "c2vl_training", "c2vl_evaluation")
RUN, OTHER, HALF = "table/runs/partition-cosine-seed0", "table/runs/random-encoder-seed0", "half"
SAMPLE = "S001C001P001R001A001"

COMMANDS: dict[str, tuple[int, str, float]] = {
    "status --work works/w --why": (0, "works packed", 8),
    "status --work works/w --json": (0, "works", 2),
    "verify --work works/w": (0, "works", 8),
    "verify --work works/w --raw --json": (0, "works raw", 3),
    "verify --work works/w --repair --workers 0": (0, "works", 4),
    "inspect --work works/w": (0, "works packed", 6),
    "inspect --work works/w --status ok --text person --split xsub:test": (0, "works", 2),
    f"explain {SAMPLE} --work works/w": (0, "works packed raw", 6),
    f"explain {SAMPLE} --work works/w --json": (0, "works", 2),
    "audit --work works/w --check 2 --released extra/captions.json": (0, "works extra", 4),
    "prompts --work works/w --workers 0": (0, "works raw", 8),
    "prompts --work works/w --workers 0 --retry-failed": (0, "works", 3),
    "index --dataset synthetic --data raw --work works/w": (0, "works raw", 4),
    "index --dataset synthetic --data raw --work works/w --recipe extra/recipe.toml --deep": (0, "raw extra", 2),
    "skeletons --work works/w --workers 0": (0, "works raw", 3),
    "crop --work works/w --workers 0": (0, "works raw", 3),
    "caption --work works/w --workers 0": (0, "works", 3),
    "embed --work works/w --workers 0": (0, "works", 3),
    "pack --work works/w": (0, "works packed", 6),
    "pretrain --data works/w --dry-run": (1, "packed extra", 4),
    "pretrain --data works/w --recipe extra/recipe.toml --dry-run": (1, "extra", 4),
    f"pretrain --data works/w --benchmark xsub --out {HALF}": (1, "packed half", 3),
    f"pretrain --data works/w --benchmark xsub --out {RUN}": (1, "packed table", 3),
    "supervised --data works/w --benchmark xsub --out table/runs/supervised-seed0": (1, "packed table", 3),
    "supervised --data works/w --out new": (1, "packed", 1),
    "random --data works/w --out new": (1, "packed", 1),
    f"export --run {RUN}": (1, "table", 0.02),  # seconds
    f"run knn --run {RUN} --data works/w": (2, "packed table", 4),
    f"run linear --run {RUN} --run {OTHER} --data works/w": (2, "packed table", 4),
    f"compare {RUN} {OTHER}": (2, "table", 3),
    f"predict extra/clip.npy extra/clip.npz raw/nturgb+d_skeletons/{SAMPLE}.skeleton --run {RUN} --data works/w": (2, "packed table extra raw", 4),
    f"zeroshot --run {RUN} --data works/w --descriptions extra/descriptions.toml": (2, "packed table extra", 3),
    f"retrieval --run {RUN} --data works/w": (2, "packed table", 3),
    f"search walking --run {RUN} --data works/w --out search.html": (2, "packed table works", 3),
    "report --out table --data works/w": (2, "packed table works", 0.2),  # seconds
    "benchmark --data works/w --benchmark xsub --out table": (2, "packed table works", 0.2),
    "paper --work works --out paper --dry-run": (2, "packed", 1),
}  # fmt: skip
"""Command line in the case's folder -> number of its program, areas whose changes it meets, weight."""

AREAS = {"works": ("works/w", 8), "packed": ("works/w/packed", 4), "run": (RUN, 3), "table": ("table", 3), "half": (HALF, 1), "raw": ("raw", 1), "extra": ("extra", 2)}  # fmt: skip
"""Area -> folder in which a case changes something, how often."""

OUTSIDE = ("canary", "home", "tmp")
"""Folders beside the case's."""

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}

# -------------------------------------------------------------------------------------------------- server


class Server:
    """A process with everything imported that runs commands in forks.

    Args:
        scratch: folder of its own, empty; cases lie in `scratch/case`.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.case, self.learning = scratch, scratch / "case", False
        self.canary = scratch / "canary"
        for name in (*OUTSIDE, "case"):
            (scratch / name).mkdir()
        (self.canary / "file").write_text("not yours\n")
        os.environ |= {"HOME": str(scratch / "home"), "TMPDIR": str(scratch / "tmp"), "COLUMNS": "140", "MPLCONFIGDIR": str(scratch / "home")}  # fmt: skip
        os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it in a process and so hands it to this one
        tempfile.tempdir = None
        sys.dont_write_bytecode = True

    def call(self, words: list[str], limit: float = LIMIT) -> tuple[int | str, str, str, float]:
        """Run a command in the case's folder; returns how it ended, what it printed, and its peak memory in MB."""
        sys.stdout.flush()
        outputs = [self.scratch / name for name in ("stdout", "stderr")]
        child = os.fork()
        if child == 0:
            self._child(words, outputs)
        code: int | str
        handle = os.pidfd_open(child)
        ended = select.select([handle], [], [], limit)[0]
        os.close(handle)
        if not ended:
            os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        code = os.waitstatus_to_exitcode(status) if ended else "hang"
        with suppress(ProcessLookupError):  # what it has started
            os.killpg(child, signal.SIGKILL)
            code = "left a process" if ended else code
        out, err = (path.read_bytes()[: 1 << 20].decode("utf-8", "replace") for path in outputs)
        return code, out, err, usage.ru_maxrss / 1024

    def _child(self, words: list[str], outputs: list[Path]) -> None:
        code: Any = 70
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            for number, path in zip((1, 2), outputs, strict=True):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.chdir(self.case)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            for what, most in ((resource.RLIMIT_AS, used + MEMORY), (resource.RLIMIT_FSIZE, FILE), (resource.RLIMIT_CORE, 0)):  # fmt: skip
                resource.setrlimit(what, (most, most))
            sys.argv = words
            sys.addaudithook(self._watch)
            importlib.import_module(f"{words[0]}.cli").main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            with suppress(BaseException):
                if self.learning:
                    (self.scratch / "modules").write_text("\n".join(sys.modules))
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)

    def _watch(self, event: str, args: tuple[Any, ...]) -> None:
        """Note Python code that would change something outside of the scratch folder."""
        if event == "open" and isinstance(args[2], int) and args[2] & _WRITES:
            paths = args[:1]
        elif event in _EVENTS:
            paths = args[1:2] if event in {"os.symlink", "os.link"} else args[:2]
        else:
            return
        for path in paths:
            if isinstance(path, (str, bytes)):
                whole = os.path.abspath(os.fsdecode(path))
                own = (self.case, *(self.scratch / name for name in ("tmp", "home", "modules")))
                inside = (*map(str, own), "/dev/null", "/dev/shm/")
                if not whole.startswith(inside):
                    os.write(2, f"\noutside: {event} {whole}\n".encode())

    def outside(self) -> list[tuple[str, int, int, bytes]]:
        """Return the state of the canaries and of the home and temporary folder."""
        found = []
        for name in OUTSIDE:
            for path in (self.scratch / name, *sorted((self.scratch / name).rglob("*"))):
                state = path.lstat()
                when = state.st_mtime_ns if path.is_dir() else 0
                found.append((str(path), state.st_mode, when, path.read_bytes() if path.is_file() else b""))
        return found

    def build(self, commands: Sequence[str]) -> None:
        """Make the folders that are changed, and learn what these commands import."""
        importlib.import_module("c2vl_pipeline.readers.video")  # quiets decoders, which look once
        from c2vl_pipeline.synthetic.dataset import generate

        sets = [word for value in SETTINGS for word in ("--set", value)]
        works, extra = self.case / "works", self.case / "extra"
        works.mkdir()
        extra.mkdir()
        generate(self.case / "raw", classes=2, subjects=2, views=1, repeats=2, size=(64, 48), frames=(8, 12))
        (extra / "recipe.toml").write_text(
            'extends = "debug"\nname = "own"\n' + "".join(f"{s.replace('=', ' = ', 1)}\n" for s in SETTINGS)
        )
        (extra / "descriptions.toml").write_text('drink = ["a person drinks", "drinking"]\n"phone call" = "a call"\n')
        (extra / "captions.json").write_text(json.dumps({SAMPLE: ["a person", "a man"]}))
        clip = np.random.default_rng(0).normal(size=(9, 25, 3)).astype(np.float32)
        np.save(extra / "clip.npy", clip)
        np.savez(extra / "clip.npz", joints=clip)
        first = f"prompts --dataset synthetic --data {self.case}/raw --work works/w --recipe debug --workers 0"
        for program, line in (
            (0, first),
            (2, "benchmark --data works/w --benchmark xsub --out table"),
            (1, f"pretrain --data works/w --benchmark xsub --out {HALF}"),
        ):
            self._whole([PROGRAMS[program], *line.split(), *(sets if line == first else [])])
        for name in ("encoder", "projectors"):
            (self.case / HALF / f"{name}.safetensors").unlink()
        self.case.rename(self.scratch / "template")
        for line in commands:
            self.renew()
            self._whole([PROGRAMS[COMMANDS[line][0]], *line.split()])
        for name in OUTSIDE:
            shutil.copytree(self.scratch / name, self.scratch / "kept" / name)
        self.before = self.outside()
        import typer.main

        typer.main.get_command = functools.cache(typer.main.get_command)
        for name in PROGRAMS:  # half the time of a short command
            typer.main.get_command(sys.modules[f"{name}.cli"].app)
        gc.collect()
        gc.freeze()

    def _whole(self, words: list[str]) -> None:
        """Run a command on folders that nobody has changed, and import what it imported."""
        self.learning = True
        code, out, err, _ = self.call(words, 600)
        self.learning = False
        if code != 0 or err:
            sys.exit(f"{' '.join(words)} on a whole folder ended with {code}: {out[-1000:]}{err[-3000:]}")
        for name in (self.scratch / "modules").read_text().split("\n"):
            with suppress(Exception):  # some are made only in the course of others
                importlib.import_module(name)

    def mend(self) -> None:
        """Put back what was changed outside."""
        for name in OUTSIDE:
            shutil.rmtree(self.scratch / name, ignore_errors=True)
            shutil.copytree(self.scratch / "kept" / name, self.scratch / name)
        self.before = self.outside()

    def renew(self) -> None:
        """Put whole folders in place of the last case's."""
        command = 'rm -rf "$1/case" && cp -a "$1/template" "$1/case"'  # in two thirds of shutil's time
        subprocess.run(["sh", "-c", command, "sh", str(self.scratch)], check=True)


# --------------------------------------------------------------------------------------------------- cases


@dataclass
class Tally:
    """What became of all commands."""

    codes: dict[str, Counter[str]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    cases: int = 0
    slowest: float = 0.0
    memory: float = 0.0

    def add(self, line: str, code: int | str, seconds: float, memory: float) -> None:
        """Count one command."""
        self.codes.setdefault(line, Counter())[str(code)] += 1
        self.slowest, self.memory = max(self.slowest, seconds), max(self.memory, memory)

    def join(self, other: Tally) -> None:
        """Add another job's."""
        for line, codes in other.codes.items():
            self.codes.setdefault(line, Counter()).update(codes)
        self.kinds.update(other.kinds)
        self.cases += other.cases
        self.slowest, self.memory = max(self.slowest, other.slowest), max(self.memory, other.memory)


def judge(code: int | str, out: str, err: str) -> list[str]:
    """Return which promises the end of a command breaks, each as one line that is equal for equal causes."""
    found = []
    said = err.removesuffix("\n")
    if "Traceback (most recent call last)" in err:
        frames = re.findall(r'File "[^"]*?/((?:c2vl_\w+|site-packages|python3[.]\d+)/[^"]*)", line \d+, in (\S+)', err)
        ours = [f"{path}:{name}" for path, name in frames if path.startswith("c2vl_")][-1:]
        found.append(
            f"traceback {_plain(said.split(chr(10))[-1])[:60]} at {' '.join(ours)} {' '.join(frames[-1]) if frames else ''}"
        )
    elif code not in (0, 1, 2):
        found.append(f"ended by {code}")
    elif code == 1 and not err and not out:
        found.append("silent")
    elif err and not (code == 2 and err.startswith("Usage: ")) and not (code == 1 and said.startswith("error: ") and "\n" not in said):  # fmt: skip
        found.append(f"stderr with code {code}: {_plain(said)[:80]}")
    if "memory ran out" in err or "MemoryError" in err:
        found.append("memory")
    if at := re.search("outside: (.*)", err):
        found.append(f"outside: {_plain(at[1])}")
    if at := _CONTROL.search(out + err):
        found.append(f"control {at[0]!r} printed by {_plain((out + err)[max(0, at.start() - 60) : at.start()])!r}")
    return found


def _plain(text: str) -> str:
    return re.sub(r"\d+|0x[0-9a-f]+", "#", re.sub(r"/\S*/", "/", text))


def draw(seed: int, number: int) -> tuple[random.Random, list[str], list[str]]:
    """Return the generator of a case, the folders that it changes, and its commands."""
    rng = random.Random(f"{seed} {number}")
    areas = rng.choices(list(AREAS), [weight for _, weight in AREAS.values()])
    if rng.random() < 0.2:
        areas += [areas[0] if rng.random() < 0.6 else rng.choice(list(AREAS))]
    fitting = {
        line: weight
        for line, (_, meets, weight) in COMMANDS.items()
        if {"run": "table"}.get(areas[0], areas[0]) in meets.split()
    }
    commands = rng.choices(list(fitting), list(fitting.values()), k=rng.choices((1, 2, 3), (85, 10, 5))[0])
    return rng, areas, commands


def run_case(server: Server, seed: int, number: int, limit: float, tally: Tally) -> Iterator[dict[str, Any]]:
    """Run one case; yields what it found."""
    rng, areas, commands = draw(seed, number)
    server.renew()
    changes = []
    for area in areas:
        try:
            changes.append(f"{area}: {mutate(server.case / AREAS[area][0], server.canary, rng)}")
        except Exception as error:  # the second change of two may meet what the first has left
            changes.append(f"{area}: stays as it is ({one_line(error, named=True)})")
    for line in commands:
        began = time.monotonic()
        code, out, err, memory = server.call([PROGRAMS[COMMANDS[line][0]], *line.split()], limit)
        seconds = time.monotonic() - began
        tally.add(line, code, seconds, memory)
        kinds = judge(code, out, err)
        if (after := server.outside()) != server.before:
            kinds.append("changed outside: " + ", ".join(sorted({a[0] for a in set(after) ^ set(server.before)})))
            server.mend()
        for kind in kinds:
            tally.kinds[kind] += 1
            yield {
                "case": number, "seed": seed, "kind": kind, "command": line, "changes": changes, "code": code,
                "seconds": round(seconds, 2), "memory_mb": round(memory), "stdout": out[-800:], "stderr": err[-3000:],
            }  # fmt: skip


def storm(args: argparse.Namespace, job: int) -> Tally:
    """Run the cases of one job."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="c2vl-fuzz-", dir=args.scratch) as folder:
        server = Server(Path(folder))
        numbers = range(args.start + job, args.start + args.cases, args.jobs) if args.only is None else [args.only]
        # a seldom one may import much; a few cases take less time than all that imports
        server.build([line for line, (_, _, weight) in COMMANDS.items() if weight >= 0.1 and len(numbers) > 100])
        began = said = time.monotonic()
        for number in numbers:
            for found in run_case(server, args.seed, number, args.limit, tally):
                with args.findings.open("a") as handle:
                    handle.write(json.dumps(found) + "\n")
            tally.cases += 1
            if time.monotonic() - said > 60:
                said = time.monotonic()
                rate = (said - began) / tally.cases
                print(f"{tally.cases:,} folders, {rate:.3f} s each, {tally.kinds.total():,} findings", flush=True)
        if args.keep is not None:
            shutil.copytree(server.case, args.keep, symlinks=True)
    return tally


def _side_by_side(args: argparse.Namespace) -> Tally:
    """Run every job in a process of its own, which imports for itself: forks of one with threads would hang."""
    whole, children = Tally(), []
    for job in range(args.jobs):
        reading, writing = os.pipe()
        if os.fork() == 0:
            with os.fdopen(writing, "wb") as handle:
                pickle.dump(storm(args, job), handle)
            os._exit(0)
        os.close(writing)
        children.append(reading)
    for reading in children:
        with os.fdopen(reading, "rb") as handle:
            whole.join(pickle.load(handle))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="run this case alone")
    parser.add_argument("--keep", type=Path, help="copy the last folder here")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of a command")
    parser.add_argument("--findings", type=Path, default=Path("findings.jsonl"))
    parser.add_argument("--json", type=Path, help="write the summary here")
    parser.add_argument("--scratch", type=Path, default="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    args = parser.parse_args()
    args.findings = args.findings.absolute()
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the scratch folder is removed
    began = time.monotonic()
    tally = storm(args, 0) if args.jobs == 1 else _side_by_side(args)
    rows = [[line, f"{sum(c.values()):,}", *(f"{c[code]:,}" for code in "012"), f"{sum(c.values()) - c['0'] - c['1'] - c['2']:,}"] for line, c in sorted(tally.codes.items())]  # fmt: skip
    show_table(f"{tally.cases:,} folders, seed {args.seed}", ["command", "runs", "0", "1", "2", "other"], rows)
    for kind, count in tally.kinds.most_common():
        print(f"{count:6,} {kind}")
    record = {
        "seed": args.seed, "start": args.start, "folders": tally.cases, "commands": sum(c.total() for c in tally.codes.values()), "jobs": args.jobs,
        "limits": {"seconds": args.limit, "memory_bytes": MEMORY, "file_bytes": FILE}, "codes": tally.codes,
        "kinds": dict(tally.kinds.most_common()), "slowest_s": round(tally.slowest, 2),
        "peak_memory_mb": round(tally.memory), "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    print(json.dumps({k: v for k, v in record.items() if k not in {"codes", "kinds"}}))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(1 if tally.kinds else 0)


if __name__ == "__main__":
    main()
