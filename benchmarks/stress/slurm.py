"""Run the pipeline on a Slurm of this machine as docs/guides/scaling.md says, and cancel and requeue jobs in every stage.

python benchmarks/stress/slurm.py [--clips 48] [--nodes 2] [--form array|scheduler] [--json FILE] [--keep]

Needs root, and installs nothing: `apt-get install slurmctld slurmd slurm-client munge` (Debian 12, no systemd) and, for
the form `scheduler`, `pip install dask-jobqueue`. munged, slurmctld and one slurmd per node run in the foreground below a
folder of their own and end with this script. The guide's blocks are run as they are but for sizes and paths. Exit code 0
if every stage of both forms has the digest of a clean run and nothing is left behind.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from c2vl_manifests.cli_output import say, show_table
from c2vl_manifests.manifest import commit_text, read_stage_manifest
from c2vl_pipeline.stages import STAGES
from c2vl_pipeline.synthetic.dataset import generate
from c2vl_pipeline.workspace import load

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "scaling.md"

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")

SHARES = 3
"""Tasks of the array: more than fit on two nodes of one GPU each at a time."""

ACTIONS = (("scancel",), ("scontrol", "requeue"))

HANGS = 900.0
"""Seconds after which a form counts as hanging."""

CONF = """ClusterName=stress
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SchedulerParameters=batch_sched_delay=1,sched_interval=2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class SlurmError(Exception):
    """The script cannot go on; one line."""


@dataclass
class Form:
    """What happened to one form of running the pipeline."""

    name: str
    actions: list[dict[str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0
    shards: int = 0
    digests: dict[str, str] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------- the cluster


class Cluster:
    """Slurm on this machine: munged, slurmctld, and one slurmd per node, each with one GPU in name only."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, list[subprocess.Popen[bytes]]()

    def start(self, nodes: int) -> None:
        """Start the daemons and wait until every node is idle."""
        folder = self.folder
        host, ports = socket.gethostname().split(".")[0], _free_ports(nodes + 1)
        folder.mkdir(mode=0o755)
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        lines = [
            f"NodeName=node{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[n]} CPUs=2 RealMemory=8000 Gres=gpu:1\n"
            for n in range(1, nodes + 1)
        ]
        conf = folder / "slurm.conf"
        conf.write_text(CONF.format(host=host, ports=ports, folder=folder) + "".join(lines))
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        os.environ["SLURM_CONF"] = str(conf)
        munge = {name: f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")}
        self._start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge.values())
        self._wait((folder / "munge.socket").exists)
        self._start("slurmctld", "-D")
        for n in range(1, nodes + 1):
            self._start("slurmd", "-D", "-N", f"node{n}")
        self._wait(lambda: f"{nodes} idle" in ask("sinfo", "-h", "-o", "%D %t"))

    def _start(self, *words: str) -> None:
        with (self.folder / f"{len(self.processes)}-{words[0]}.out").open("wb") as out:
            self.processes.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out))

    def _wait(self, ready: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not ready():
            dead = [str(p.args) for p in self.processes if p.poll() is not None]
            if dead or time.monotonic() > end:
                raise SlurmError(f"Slurm does not start ({dead or 'no answer'}); see {self.folder}/*.out and *.log")
            time.sleep(0.3)

    def close(self) -> None:
        """Cancel every job and stop the daemons."""
        if "slurmctld" in str([p.args for p in self.processes]):
            ask("scancel", "--user=root", check=False)
            end = time.monotonic() + 30
            while jobs() and time.monotonic() < end:
                time.sleep(0.5)
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def ask(*words: str, check: bool = True, folder: Path | None = None) -> str:
    """Run one of Slurm's commands and return what it printed."""
    made = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, cwd=folder)
    if check and made.returncode:
        raise SlurmError(f"{' '.join(words)}: {' '.join(made.stderr.split())}")
    return made.stdout.strip()


def jobs(*states: str) -> list[str]:
    """Return the ids of jobs and array tasks, of some states or of any."""
    chosen = ["-t", ",".join(states)] if states else []
    return ask("squeue", "-h", "-r", "-o", "%i", *chosen, check=False).split()


# ------------------------------------------------------------------------------------------------- the blocks


def blocks() -> dict[str, str]:
    """Return the guide's blocks about Slurm: `array`, `commands`, `cluster`, `prompts`."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    marks = {
        "array": ("bash", "#SBATCH"),
        "commands": ("sh", "sbatch array.sh"),
        "cluster": ("python", "SLURMCluster"),
        "prompts": ("sh", "--scheduler"),
    }
    return {name: next(text for kind, text in found if kind == k and mark in text) for name, (k, mark) in marks.items()}


def changed(text: str, changes: dict[str, str]) -> str:
    """Replace sizes and paths; SlurmError if the guide does not have one of them any more."""
    for old, new in changes.items():
        if old not in text:
            raise SlurmError(f"{GUIDE}: {old!r} is not in the block any more; change benchmarks/stress/slurm.py too")
        text = text.replace(old, new)
    return text


class Attack:
    """Runs the forms in folders below `scratch` and disturbs them."""

    def __init__(self, scratch: Path, clips: int) -> None:
        self.scratch, self.raw = scratch, scratch / "raw"
        generate(self.raw, classes=2, subjects=2, views=2, repeats=-(-clips // 8), seed=0, workers=2)
        self.paths = {"/shared/ntu": str(self.raw), "ntu120": "synthetic"}
        # the program of this interpreter, under the name that the guide gives it; shards of one video
        tools = scratch / "bin"
        tools.mkdir()
        program = tools / "c2vl-pipeline"
        program.write_text(
            f"#!{sys.executable}\nfrom c2vl_pipeline.cli import main\nif __name__ == '__main__':\n    main()\n"
        )
        program.chmod(0o755)
        os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
        self.index = " --recipe debug --set pipeline.shard_samples=1"

    def run(self, name: str, *words: str) -> None:
        """Run a command of ours undisturbed."""
        log = self.scratch / f"{name}.txt"
        with log.open("wb") as out:
            code = subprocess.run(
                ["c2vl-pipeline", *words], stdout=out, stderr=out, check=False, timeout=HANGS
            ).returncode
        if code:
            raise SlurmError(f"{' '.join(words)} ended with exit code {code}; see {log}")

    def clean(self) -> dict[str, str]:
        """Make the reference: all stages in one process each, undisturbed."""
        work = self.scratch / "clean"
        source = ["--dataset", "synthetic", "--data", str(self.raw)]
        self.run("clean", "prompts", *source, "--work", str(work), *self.index.split(), "--workers", "2")
        return digests(work)

    def disturb(
        self, form: Form, work: Path, alive: Callable[[], bool], cancelled: Callable[[str], object] = lambda job: None
    ) -> None:
        """Cancel one running job and requeue another in the middle of every stage; call `cancelled` with the first one's id."""
        for name in STAGES:
            for words in ACTIONS:
                end = time.monotonic() + HANGS
                seen = committed(work, name)  # something more is made between two actions
                while alive() and time.monotonic() < end:
                    made = committed(work, name)
                    # a worker's job runs before its worker has joined: hit one only when shards come in
                    if made > seen and made < form.shards and (running := jobs("R")):
                        job = running[len(form.actions) % len(running)]
                        ask(*words, job, check=False)
                        form.actions.append({"stage": name, "action": " ".join(words), "job": job, "shards": made})
                        if words == ("scancel",):
                            cancelled(job)
                        break
                    if made == form.shards:
                        break
                    time.sleep(0.05)

    def array(self, form: Form) -> None:
        """A job array of shares; cancelled tasks are submitted again, requeued ones come back."""
        work, folder = self.scratch / "array", self.scratch / "array-jobs"
        folder.mkdir()
        resources = {"--gres=gpu:1 --cpus-per-task=8 --mem=64G": "--gres=gpu:1 --cpus-per-task=1 --mem=2G"}
        here = {"/shared/work": str(work)}
        array = changed(blocks()["array"], resources | here | {"1-8": f"1-{SHARES}", '/8"': f'/{SHARES}"'})
        (folder / "array.sh").write_text(array)
        index, submit, last = changed(
            blocks()["commands"].replace("\\\n", " "), self.paths | here | resources
        ).strip().split("\n")  # fmt: skip
        ask("sh", "-c", index + self.index, folder=folder)
        form.shards = len(load(work).shard_ranges)
        ask("sh", "-c", submit, folder=folder)

        def again(job: str) -> None:
            ask("sh", "-c", f"sbatch --array={job.partition('_')[2]} array.sh", folder=folder)

        self.disturb(form, work, lambda: bool(jobs()), again)
        ask("sh", "-c", last, folder=folder)
        self._end(form, lambda: not jobs())
        for log in folder.glob("slurm-*.out"):
            _traceback(form, log)

    def scheduler(self, form: Form) -> None:
        """Workers of dask-jobqueue; the cluster submits new jobs for those that are lost."""
        work, folder = self.scratch / "scheduler", self.scratch / "scheduler-jobs"
        folder.mkdir()
        (port,) = _free_ports(1)
        sizes = {"64GB": "2GB", "job_cpu=8": "job_cpu=1", "minimum=8, maximum=8": "minimum=2, maximum=2"}
        script = folder / "cluster.py"
        script.write_text(changed(blocks()["cluster"], sizes | {"8786": str(port)}))
        self.run(
            "index",
            "index",
            "--dataset",
            "synthetic",
            "--data",
            str(self.raw),
            "--work",
            str(work),
            *self.index.split(),
        )
        form.shards = len(load(work).shard_ranges)
        here = {"/shared/work": str(work), "tcp://login:8786": f"tcp://{socket.gethostname()}:{port}"}
        prompts = changed(blocks()["prompts"].replace("\\\n", " "), self.paths | here).strip()
        log = folder / "prompts.txt"
        with (folder / "cluster.txt").open("wb") as told, log.open("wb") as out:
            cluster = subprocess.Popen(
                [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=told, stderr=told, cwd=folder
            )  # fmt: skip
            self._end(form, lambda: bool(jobs("R")) or cluster.poll() is not None)
            driver = subprocess.Popen(["sh", "-c", prompts + self.index], stdout=out, stderr=out)
            self.disturb(form, work, lambda: driver.poll() is None)
            self._end(form, lambda: driver.poll() is not None)
            if driver.poll() is None:
                driver.terminate()
            if code := driver.wait():
                form.violations.append(f"prompts --scheduler ended with exit code {code}, see {log}")
            cluster.communicate(b"\n", timeout=60)
        _traceback(form, log)

    def _end(self, form: Form, ended: Callable[[], bool]) -> None:
        end = time.monotonic() + HANGS
        while not ended():
            if time.monotonic() > end:
                form.violations.append(f"no end after {HANGS:.0f} s")
                return
            time.sleep(0.5)

    def compare(self, form: Form, clean: dict[str, str]) -> None:
        """Compare digests, verify every shard, and look for files left behind."""
        work = self.scratch / form.name
        form.digests = digests(work)
        form.violations += [
            f"{name}: the digest is not the clean run's" for name in STAGES if form.digests[name] != clean[name]
        ]
        missed = {(name, " ".join(words)) for name in STAGES for words in ACTIONS}
        for name, action in sorted(missed - {(a["stage"], a["action"]) for a in form.actions}):
            say(f"note: {form.name}: {name} was over before a {action} could hit it")
        if not (work / "packed" / "packed.json").is_file():
            form.violations.append("it was not packed")
        self.run(f"verify-{form.name}", "verify", "--work", str(work))
        hidden = sorted(p.relative_to(work) for p in work.rglob(".*") if p.name != ".lock")
        if hidden:
            form.violations.append(f"{len(hidden)} files were left behind ({hidden[0]})")


def committed(work: Path, stage: str) -> int:
    """Return how many shards of a stage are committed."""
    return sum(1 for _ in (work / stage).glob("shard-*.json"))


def digests(work: Path) -> dict[str, str]:
    """Return the digest of each stage; empty where it is not complete."""
    manifests = {name: read_stage_manifest(work / name) for name in STAGES}
    return {name: manifest.digest if manifest else "" for name, manifest in manifests.items()}


def _traceback(form: Form, log: Path) -> None:
    if "Traceback" in log.read_text("utf-8", "replace"):
        form.violations.append(f"a traceback in {log}")


def main() -> None:
    """Run both forms, or one, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=48, help="synthetic clips, a multiple of 8")
    parser.add_argument("--nodes", type=int, default=2, help="slurmd processes")
    parser.add_argument("--form", choices=("array", "scheduler"), help="one form only")
    parser.add_argument("--json", type=Path, help="file for the report as JSON")
    parser.add_argument("--keep", action="store_true", help="keep the folder of clips, shards and logs")
    options = parser.parse_args()
    if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
        sys.exit(f"error: {absent[0]} is not installed; apt-get install slurmctld slurmd slurm-client munge")
    if options.form != "array" and importlib.util.find_spec("dask_jobqueue") is None:
        sys.exit("error: dask-jobqueue is not installed; pip install dask-jobqueue, or give --form array")
    if os.geteuid():
        sys.exit("error: slurmd starts jobs as their users: run this as root")
    os.environ["OMP_NUM_THREADS"] = "1"
    scratch = Path(tempfile.mkdtemp(prefix="slurm-")).resolve()
    forms = [Form(name) for name in ((options.form,) if options.form else ("array", "scheduler"))]
    cluster, held, version = None, False, ask("slurmctld", "-V")
    try:
        attack = Attack(scratch, options.clips)
        clean = attack.clean()
        cluster = Cluster(scratch / "slurm")
        cluster.start(options.nodes)
        for form in forms:
            started = time.monotonic()
            getattr(attack, form.name)(form)
            attack.compare(form, clean)
            form.seconds = round(time.monotonic() - started, 1)
        held = not any(form.violations for form in forms)
    except SlurmError as error:
        sys.exit(f"error: {error}")
    finally:
        if cluster is not None:
            cluster.close()
        if held and not options.keep:
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            say(f"everything was kept in {scratch}")
    show_table(
        f"{options.clips} clips, {options.nodes} nodes, {version}",
        ["form", "stage", "action", "job", "shards done"],
        [[f.name, a["stage"], a["action"], a["job"], f"{a['shards']} of {f.shards}"] for f in forms for a in f.actions],
    )
    for form in forms:
        say(
            f"{form.name}: {form.seconds:.0f} s; {'; '.join(form.violations) or 'held: all digests equal the clean run'}"
        )
    if options.json is not None:
        commit_text(options.json, json.dumps([asdict(form) for form in forms], indent=1) + "\n")
    sys.exit(not held)


if __name__ == "__main__":
    main()
