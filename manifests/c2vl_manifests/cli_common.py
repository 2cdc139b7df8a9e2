"""Shared parts of the three command lines: options, the application, errors as one red line.

Only this module, `cli_output` and the `cli` modules import typer and rich.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2vl_manifests import machine
from c2vl_manifests.cli_output import guard_stderr, say, say_error
from c2vl_manifests.errors import (
    C2VLError,
    ConfigError,
    address_space_limited,
    disk_error,
    gpu_failed,
    memory_ran_out,
    one_line,
)

if TYPE_CHECKING:
    pass

_INTERRUPTED = 130


def optional(flag: str, help_text: str, **settings: Any) -> Any:
    """Return an option whose default, nothing, is not shown in its help."""
    return typer.Option(flag, help=help_text, show_default=False, **settings)


RecipeOption = Annotated[
    str | None,
    optional(
        "--recipe",
        "Built-in recipe (paper, modern, small, light, heuristic, c2vl-plus, video-only, demo, debug) or a TOML file.",
    ),
]
PackedOption = Annotated[
    Path, typer.Option("--data", help="Folder that `c2vl-pipeline pack` wrote (or the work folder around it).")
]
SetOption = Annotated[
    list[str] | None, optional("--set", "Override one value of the recipe; may be repeated.", metavar="KEY=VALUE")
]


class _Commands(typer.core.TyperGroup):
    """Commands whose summaries are whole in the list of a help page, which wraps them."""

    def get_command(self, ctx: Any, name: str) -> Any:
        """Return a command by name."""
        command = super().get_command(ctx, name)
        if command is not None and command.help and not command.short_help:
            command.short_help = " ".join(command.help.partition("\n\n")[0].split())
        return command


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"c2vl {version('c2vl')}")
        raise typer.Exit()


def application(help_text: str) -> typer.Typer:
    """Return a typer application without completion commands, tracebacks and rich help pages.

    Importing rich to draw a help page doubles its time; plain text answers in a tenth of a second.
    """
    app = typer.Typer(
        cls=_Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
    )

    @app.callback(help=help_text)
    def shared(
        version: Annotated[
            bool,
            typer.Option(
                "--version", callback=_print_version, is_eager=True, show_default=False, help="Print the version."
            ),
        ] = False,
    ) -> None:
        pass

    return app


def main(app: typer.Typer, *, threads: bool = True) -> None:
    """Run an application; errors that users can fix become one red line and exit code 1 (usage errors: 2).

    Args:
        app: the application.
        threads: False if its worker processes share the cores themselves.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    machine.open_streams()
    guard_stderr()
    machine.share_cores(threads)
    try:
        _check_system()
        with _terminable():
            app(args=_expanded(sys.argv[1:]))
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:  # typer's exit code after Ctrl-C
            say_error("interrupted; run the same command again to resume", colour="")
        raise
    except C2VLError as error:
        _exit_with(str(error))
    except Exception as error:
        if memory_ran_out(error):
            limit = " (this shell limits it: `ulimit -v`)" if address_space_limited() else ""
            _exit_with(
                f"memory ran out ({one_line(error.__cause__ or error, named=True)}); choose a smaller batch_size, fewer --workers or a device "
                f"with more free memory{limit}; finished work is kept"
            )
        elif gpu_failed(error):
            _exit_with(
                f"the GPU cannot be used or failed ({one_line(error, named=True)}); go on without it by --set "
                "training.device=cpu (a true error in the data is then named), or install a torch that fits the GPU and "
                "its driver (`nvidia-smi` shows both; https://pytorch.org/get-started); finished work is kept"
            )
        elif isinstance(error, OSError):
            _exit_with(disk_error(error))
        raise


def _check_system() -> None:
    """Raise ConfigError on a system without the calls that the commands need."""
    try:
        import fcntl  # noqa: F401
        import resource  # noqa: F401 - now, as it is asked for when memory has run out
    except ImportError:
        raise ConfigError(
            "C2VL runs on Linux and macOS; on Windows install it inside WSL: https://learn.microsoft.com/windows/wsl/install"
        ) from None


_HOME = re.compile(r"(^|=)(~[\w.-]*|\$HOME|\$\{HOME\})(?=/|$)")


def _expanded(words: list[str]) -> list[str]:
    """Return the words of a command line with `~` and `$HOME` in full where a path or `KEY=path` begins with them.

    Shells leave them as they are in `--data=~/x`, `--set captioner.model=~/x` and between quotes.
    """
    home = os.path.expanduser("~")
    if home == "~" and (word := next((w for w in words if _HOME.search(w)), None)):
        raise ConfigError(f"{word}: this user has no home folder; set HOME, or give the whole path")
    return [_HOME.sub(lambda at: at[1] + os.path.expanduser(at[2] if at[2][0] == "~" else "~"), word) for word in words]


@contextmanager
def _terminable() -> Iterator[None]:
    """Handle SIGTERM (`kill`, Slurm, a shutdown) like Ctrl-C: workers end, finished shards stay, one line is printed."""
    # torchrun sends SIGTERM to the survivors of a dead process, which report that death themselves
    if threading.current_thread() is not threading.main_thread() or "TORCHELASTIC_RUN_ID" in os.environ:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit_with(message: str) -> None:
    say_error(f"error: {' '.join(message.split())}")
    sys.exit(1)
