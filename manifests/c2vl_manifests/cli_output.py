"""Output of the three command lines: lines, tables, JSON, progress bars; JSON lines about progress without a terminal.

Only this module prints: text from data passes `visible`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO, cast

from c2vl_manifests.errors import naming
from c2vl_manifests.events import Event, Note, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_JSON_EVERY = 2.0
"""Seconds between two JSON lines about the same task."""

_LINES, _BLANKS = 3, 2
"""Characters between two columns of a table, with and without a line."""

_FIGURES = 54
"""Characters of a bar, a count up to a million, a rate and a time."""

_WORD = 24
"""Characters of a word in a table up to which it is never cut; paths are longer."""


_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 and C1 controls, DEL, line separators, controls of the direction of writing, bytes of a name that is not UTF-8."""


def visible(text: str) -> str:
    """Return one line of text with escapes in place of control characters, which could rewrite what a terminal shows."""
    return text if text.isprintable() else _HIDDEN.sub(lambda at: ascii(at[0])[1:-1], text)


class _VisibleStream:
    """Standard error for all that others write: usage errors of typer, warnings of libraries, tracebacks."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write("\n".join(map(visible, text.split("\n"))))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guard_stderr() -> None:
    """Let all that is written to standard error from now on pass `visible`."""
    if not isinstance(sys.stderr, _VisibleStream):
        sys.stderr = cast(TextIO, _VisibleStream(sys.stderr))


def say_error(text: str, colour: str = "\033[31m") -> None:
    """Print one line to standard error, in colour on a terminal."""
    line, stream = visible(text), getattr(sys.stderr, "stream", sys.stderr)
    plain = not colour or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or "NO_COLOR" in os.environ
    print(line if plain else f"{colour}{line}\033[0m", file=stream)  # without rich: memory may have run out


def show_table(
    title: str, columns: list[str], rows: list[list[str]], caption: str | None = None, spare: Sequence[str] = ()
) -> None:
    """Print a table without its empty columns; columns with figures are right-aligned.

    On a narrow terminal it is as wide as its words.

    Args:
        title: stands above.
        columns: their heads.
        rows: cells.
        caption: stands below.
        spare: heads of columns that are left out, the first one first, until each row fits into one line.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title, columns, rows = visible(title), [*map(visible, columns)], [[*map(visible, row)] for row in rows]
    filled = [n for n in range(len(columns)) if n == 0 or not rows or any(row[n] for row in rows)]
    columns, *rows = ([cells[n] for n in filled] for cells in (columns, *rows))
    spare = [column for column in spare if column in columns]
    console = Console()
    room = console.width if console.is_terminal else 140  # a pipe or a log file has no width
    left_out: list[str] = []
    while (lacking := _room_needed(columns, rows, _LINES) > room) and len(left_out) < len(spare):
        if _room_needed(columns, rows, _BLANKS) <= room:
            break
        left_out.append(spare[len(left_out)])
        at = columns.index(left_out[-1])
        columns, *rows = ([*cells[:at], *cells[at + 1 :]] for cells in (columns, *rows))
    if left_out:
        caption = f"{caption or ''} Left out, as the terminal is narrow: {', '.join(dict.fromkeys(left_out))}.".strip()
    # plain text: names, titles and search queries may contain rich markup
    table = Table(
        box=box.SIMPLE_HEAD if lacking else box.HEAVY_HEAD,
        padding=(0, 1, 0, 0) if lacking else (0, 1),
        pad_edge=not lacking,
    )
    widths = [
        min(max((len(word) for text in texts for word in text.split()), default=1), _WORD)
        for texts in zip(columns, *rows, strict=True)
    ]
    for number, (column, width, *cells) in enumerate(zip(columns, widths, *rows, strict=True)):
        figures = number > 0 and any(re.match(r"[<>+−-]? ?\d", cell) for cell in cells)
        table.add_column(Text(column), justify="right" if figures else "left", overflow="fold", min_width=width)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(width=max(room, sum(widths) + _LINES * len(widths) + 1))
    console.print(Text(title, style="italic"))
    console.print(table, crop=False)
    if caption is not None:
        console.print(Text(visible(caption), style="dim italic"))


def _room_needed(columns: list[str], rows: list[list[str]], between: int) -> int:
    """Return the width of a table whose rows are one line each."""
    return sum(max(map(len, texts)) + between for texts in zip(columns, *rows, strict=True)) + 1


def link(path: Path) -> str:
    """Return the address of a file, which terminals open by a click."""
    return path.resolve().as_uri()


def next_steps(*commands: Sequence[str | Path]) -> str:
    """Return the commands to run next, as the shell takes them: `next: a; then: b`."""
    words = ["next", *["then"] * len(commands)]
    return "; ".join(f"{word}: {shlex.join(map(str, command))}" for word, command in zip(words, commands, strict=False))


def say(text: str) -> None:
    """Print one line of output."""
    _print(visible(text))


def say_json(value: Any, indent: int | None = 1) -> None:
    """Print a value as JSON with control characters as JSON's own escapes: a reader gets the same value back."""
    whole = "utf" in (sys.stdout.encoding or "").lower()
    text = json.dumps(value, indent=indent, ensure_ascii=not whole)
    _print(_HIDDEN.sub(lambda at: at[0] if at[0] == "\n" else f"\\u{ord(at[0]):04x}", text))


def _print(text: str) -> None:
    with naming(Path("standard output")):
        print(text, flush=True)


class Reporter:
    """Draw events on a terminal, print JSON lines elsewhere: `with Reporter() as emit: run(…, emit=emit)`.

    Args:
        prefix: stands before the names of tasks on a terminal, e.g. `stage 3 of 6: `.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}
        self._started: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Handle one event."""
        if isinstance(event, Note):
            self._note(event)
        elif self._live:
            self._draw(event)
        else:
            self._log(event)

    def _note(self, event: Note) -> None:
        if not self._live:
            say_json({"event": event.level, "text": event.text}, indent=None)
            return
        from rich.console import Console
        from rich.text import Text

        console = self._bars.console if self._bars is not None else Console()
        console.print(Text(visible(event.text), "yellow" if event.level == "warning" else ""))

    def _log(self, event: Progress) -> None:
        now = time.monotonic()
        first = event.task not in self._started
        began, at = self._started.setdefault(event.task, (now, event.done))
        finished = event.done >= event.total
        if not (first or finished or now - self._last.get(event.task, 0.0) >= _JSON_EVERY):
            return
        self._last[event.task] = now
        line: dict[str, Any] = {
            "event": "progress",
            "task": event.task,
            "done": event.done,
            "total": event.total,
            "unit": event.unit,
        }
        rate = (event.done - at) / (now - began) if now > began else 0.0
        if rate > 0:
            line |= {"rate": round(rate, 2), "eta_s": round((event.total - event.done) / rate, 1)}
        say_json(line | {k: _short(v) for k, v in event.info.items()}, indent=None)

    def _draw(self, event: Progress) -> None:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress
            from rich.table import Column

            # on a narrow terminal the text behind the bar gives way, then the name; the figures never
            console = Console()
            name = max(8, min(console.width // 3, console.width - _FIGURES))
            self._bars = RichProgress(
                TextColumn(
                    "{task.description}",
                    "bold",
                    markup=False,
                    table_column=Column(max_width=name, no_wrap=True, overflow="ellipsis"),
                ),
                BarColumn(bar_width=16),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True)),
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
                TextColumn(
                    "{task.fields[info]}",
                    style="dim",
                    markup=False,
                    table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
                ),
                console=console,
                expand=True,
            )
            self._bars.start()
        if event.task not in self._tasks:
            self._tasks[event.task] = self._bars.add_task(
                visible(self._prefix + event.task), total=event.total, completed=event.done, rate="", info=""
            )
        speed = self._bars.tasks[self._bars.task_ids.index(self._tasks[event.task])].speed
        self._bars.update(
            self._tasks[event.task],
            completed=event.done,
            total=event.total,
            rate=f"{speed:.1f} {event.unit}/s" if speed else event.unit,
            info=visible("  ".join(f"{k} {_short(v)}" for k, v in event.info.items())),
        )


def _short(value: float | int | str) -> float | int | str:
    return float(f"{value:.4g}") if isinstance(value, float) else value
