"""What every part of the GPU benchmark shares: device, time limits, peak of the device, rows and the table."""

from __future__ import annotations

import faulthandler
import gc
import math
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from c2vl_manifests.errors import one_line
from timing import FILE, in_turn, keep, machine, measured, report

GIB = 1 << 30
AGAIN = 10.0
"""Seconds after which an item that has not ended is interrupted once more: what it called may have dropped the first."""
GRACE = 20.0
"""Seconds behind its limit that an item has to end; then the process does. No signal reaches a call that hangs in CUDA."""


class OutOfTimeError(BaseException):
    """The time of an item is over; `except Exception` within it must not take this for an error of its own."""


@dataclass
class Session:
    """One run of the benchmark."""

    device: torch.device
    tiny: bool
    """Sizes for a trial on a CPU: figures mean nothing."""
    folder: Path
    """For temporary files."""
    seconds: float
    """For the whole run."""
    pairs: int
    began: float = field(default_factory=time.monotonic)
    limit: float = 0.0
    """Seconds of the present item."""
    started: float = 0.0
    """When it began."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Lines to print below the table."""
    peaks: dict[torch.dtype, float] = field(default_factory=dict)
    """FLOP/s of the device by type, see `peak`."""

    def item(self, name: str, seconds: float, run: Callable[[Session], None]) -> None:
        """Run one item; one that fails or takes longer than its share becomes a row with its reason."""
        self.started = time.monotonic()
        # the processor of a trial may be old or busy
        self.limit = min(seconds * (3 if self.tiny else 1), self.began + self.seconds - self.started)
        try:
            if self.limit < min(10.0, seconds):
                raise OutOfTimeError(f"the run's {self.seconds / 60:.0f} minutes are used up; give more by --minutes")
            with self._watched(name), _alarm(self.limit):
                run(self)
        except OutOfTimeError as error:
            self.skip(name, one_line(error))
        except Exception as error:  # an item that fails does not end the others
            self.skip(name, one_line(error, named=True))
        with suppress(RuntimeError):  # after some errors a GPU answers nothing any more
            self.free()
        print(f"{name}: {time.monotonic() - self.started:.0f} s", file=sys.stderr, flush=True)

    def left(self) -> float:
        """Return the seconds that the present item has left."""
        return self.limit - (time.monotonic() - self.started)

    @contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        """End the process if the body, an item, runs on behind its limit; the table and the JSON are written first."""

        def end() -> None:
            self.skip(name, f"it did not end within {self.limit + GRACE:.0f} s and could not be interrupted")
            self.show()
            sys.stdout.flush()
            faulthandler.dump_traceback()
            os._exit(3)

        watchdog = threading.Timer(self.limit + GRACE, end)
        watchdog.daemon = True
        watchdog.start()
        # where no thread of Python can run: what was measured before is in the JSON
        faulthandler.dump_traceback_later(self.limit + 2 * GRACE, exit=True)
        try:
            yield
        finally:
            watchdog.cancel()
            faulthandler.cancel_dump_traceback_later()

    def skip(self, name: str, reason: str) -> None:
        """Add a row that says why there is no figure."""
        row = {"script": Path(sys.argv[0]).name, "name": name, "reason": reason}
        self._put(row)
        keep(row)

    def _put(self, row: dict[str, Any]) -> None:
        """Add a row, or put it in the place of an earlier one of that name."""
        names = [one["name"] for one in self.rows]
        at = names.index(row["name"]) if row["name"] in names else len(names)
        self.rows[at : at + 1] = [row]

    def show(self) -> None:
        """Print the table and the lines below it."""
        print(table(self.rows), "\n")
        if any("usual_ratio" in row for row in self.rows):
            print(
                "usual: time of the usual way, plain in float32, over this one's; minutes: of the paper's recipe on ntu60 xsub"
            )
        print("\n".join([*(line for row in self.rows for line in described(row)), *self.notes]))
        facts = machine()
        print(f"{facts['gpu'] or facts['processor']}, torch {facts['torch']}, commit {facts['commit']}")
        peaks = ", ".join(f"{kind} {peak / 1e12:.3g}".replace("torch.", "") for kind, peak in self.peaks.items())
        print(f"peak, measured by a product of matrices, TFLOP/s: {peaks}")
        print(f"kept in {os.environ.get(FILE)}")

    def timed(self, functions: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Return the seconds of each function's calls, run in turn within half of the item's time."""
        waiting = {name: partial(self._finished, function) for name, function in functions.items()}
        spent = in_turn(waiting, self.pairs, self.limit / 2)
        return {name: [one.wall for one in times] for name, times in spent.items()}

    def seconds_of(self, function: Callable[[], object]) -> float:
        """Return the seconds of a call."""
        return measured(partial(self._finished, function)).wall

    def _finished(self, function: Callable[[], object]) -> None:
        function()
        self.wait()

    def row(
        self,
        name: str,
        ours: list[float],
        baseline: tuple[str, list[float]] | None,
        items: tuple[int, str],
        flops: float,
        dtype: torch.dtype,
        **facts: Any,
    ) -> None:
        """Add a row, in the place of an earlier one of that name.

        Args:
            name: what was measured.
            ours: seconds of each call.
            baseline: name and seconds of what was run beside it.
            items: how many a call treats, and what they are.
            flops: floating-point operations of a call.
            dtype: of its products: the peak that it is measured by.
            facts: further ones.
        """
        middle, (count, unit) = statistics.median(ours), items
        found = {"rate": count / middle, "unit": f"{unit}/s", "utilisation": flops / middle / self.peak(dtype)}
        beside, usual = ("", None) if baseline is None else baseline
        self._put(report(name, ours, usual, baseline=beside, quiet=True, **found, **facts))

    def peak(self, dtype: torch.dtype) -> float:
        """Return the FLOP/s of a large product of matrices in a type, measured once a run.

        In float32 on a GPU that is TF32, in which cuDNN computes float32 convolutions; products of matrices are computed
        without it, so that the utilisation of float32 rows has a limit below 1.
        """
        if dtype not in self.peaks:
            precision = torch.get_float32_matmul_precision()
            n = 256 if self.tiny else 8192
            a, b = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
            times = []
            try:
                torch.set_float32_matmul_precision("high")
                for _ in range(8):
                    self.wait()
                    started = time.perf_counter()
                    a @ b
                    self.wait()
                    times.append(time.perf_counter() - started)
            finally:
                torch.set_float32_matmul_precision(precision)
            self.peaks[dtype] = 2 * n**3 / statistics.median(times[2:])
        return self.peaks[dtype]

    def wait(self) -> None:
        """Wait until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def held(self) -> int:
        """Return the bytes of the GPU that are allocated."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def memory(self, function: Callable[[], object], others: int = 0) -> float | None:
        """Return the most GiB of the GPU that are allocated in a call, weights included; None on a CPU.

        Args:
            function: what is called.
            others: bytes that are held beside it and do not count.
        """
        if self.device.type != "cuda":
            function()
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        function()
        self.wait()
        return float(torch.cuda.max_memory_allocated(self.device) - others) / GIB

    def free(self) -> None:
        """Give back the memory of an item."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def flops_of(function: Callable[[], object]) -> int:
    """Return the floating-point operations of the products and convolutions of a call."""
    counter = FlopCounterMode(display=False)
    with counter:
        function()
    return int(counter.get_total_flops())


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError in the body when its seconds are over, and again until it ends."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError(f"it took longer than its {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table of text."""
    heads = ("", "rate", "", "s a call", "of peak", "GiB", "beside", "ratio", "usual", "minutes")
    cells = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells if len(line) > 2) for i in range(len(heads))]
    lines = []
    for line in cells:
        if len(line) == 2:
            lines.append(f"{line[0]:<{widths[0]}}  {line[1]}")
        else:
            padded = [
                f"{c:<{w}}" if i in {0, 2, 6} else f"{c:>{w}}"
                for i, (c, w) in enumerate(zip(line, widths, strict=True))
            ]
            lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "reason" in row:
        return row["name"], f"not measured: {row['reason']}"
    ratio = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})" if "ratio" in row else ""
    memory, share = row.get("memory_gib"), row.get("utilisation")
    return (
        row["name"],
        f"{row['rate']:,.1f}",
        row["unit"],
        f"{row['seconds']:.3f}",
        f"{share:.1%}" if share is not None and math.isfinite(share) else "",
        f"{memory:.1f}" if memory is not None else "",
        row.get("baseline", ""),
        ratio,
        *(f"{row[name]:{form}}" if name in row else "" for name, form in (("usual_ratio", ".2f"), ("minutes", ".1f"))),
    )


def described(row: dict[str, Any]) -> list[str]:
    """Return the lines below the table that a row adds."""
    lines = []
    if "graphs" in row:
        broken = [f"{times} times: {' '.join(reason.split())[:160]}" for reason, times in row["breaks"].items()]
        lines.append(
            f"{row['name']}: {row['graphs']} graphs for {row['blocks']} blocks, broken {'; '.join(broken) or 'nowhere'}; "
            f"the first epoch took {row['first_seconds']:.0f} s"
        )
    if "shares" in row:
        busy = "" if row["busy"] is None else f"the device is busy {row['busy']:.0%} of the time; "
        for what, part in ((busy + "of its work", row["shares"]), ("operators", row["top"])):
            lines.append(f"{row['name']}: {what}: " + ", ".join(f"{k} {v:.1%}" for k, v in part.items()))
    if "alone_rate" in row:
        lines.append(
            f"{row['name']}: {row['parameters'] / 1e6:,.3g} M parameters; the model alone treats {row['alone_rate']:,.1f} images/s, "
            f"{row['share_of_model']:.0%} of our time"
        )
    return lines
