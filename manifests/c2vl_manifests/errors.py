"""The errors users meet: one flat family, each message giving value, expectation and remedy in one line."""

from __future__ import annotations


def one_line(error: BaseException, *, named: bool = False, limit: int = 160) -> str:
    """Return the first line of an error's text, or its class name where it has none.

    Args:
        error: any exception.
        named: join all lines and put the class name before them, for errors of other libraries.
        limit: characters kept.
    """
    if named:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:limit]}".removesuffix(": ")
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


class C2VLError(Exception):
    """Anything a user can mend. The command line prints it as one red line and exits with code 1."""


class ConfigError(C2VLError):
    """A recipe, an override or a dataset description that does not hold together."""


class DataError(C2VLError):
    """A file that cannot be read as the format it claims to be (`file:line: reason` where there are lines)."""


class StageError(C2VLError):
    """A stage that cannot run: its predecessor is missing, unfinished, or of another configuration."""


class EngineError(C2VLError):
    """A model back-end that is not installed or whose checkpoint cannot be found or loaded."""


class CheckpointError(C2VLError):
    """A run folder or weight file that is absent, damaged, or of another model or dataset."""
