"""What a command printed, and checks of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.training import BASE

PARTS = {"c2vl-pipeline": "c2vl_pipeline", "c2vl-train": "c2vl_training", "c2vl-eval": "c2vl_evaluation"}


@dataclass(frozen=True)
class Said:
    """What a command said: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> tuple[int, list[str], str]:
        """Exit code, lines on stdout that are no events, stderr."""
        return (self.code, [line for line in self.out.splitlines() if not line.startswith('{"event"')], self.err)


Cli = Callable[..., Said]


def refused(said: Said, *texts: str) -> None:
    """One red line: exit code 1, nothing like a traceback, every text in it."""
    assert said.code == 1, said
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.out + said.err
    for text in texts:
        assert text in said.err


def sets(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def pretrain(data: Path, out: Path, *more: str | Path) -> list[str | Path]:
    recipe = ["--recipe", "debug", *sets(*BASE)]
    return ["c2vl-train", "pretrain", "--data", data, "--benchmark", "xsub", "--out", out, *recipe, *more]
