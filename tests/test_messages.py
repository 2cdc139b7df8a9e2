"""What users read, word for word: help of all commands and typical refusals, as tests/messages.txt holds them.

Elsewhere tests ask for values, remedies and exit codes. After a change of wording:
`C2VL_WRITE_MESSAGES=1 pytest tests/test_messages.py`, then read the difference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.main

from c2vl_manifests.recipe import Recipe
from c2vl_training.trainer import train
from support.cli import PARTS, Cli
from support.factory import start
from support.packed import sticks
from support.training import run

GOLDEN = Path(__file__).with_name("messages.txt")
PROMPTS = "c2vl-pipeline prompts --dataset synthetic --data {raw} --work {new} --recipe debug"
PRETRAIN = "c2vl-train pretrain --data {sticks} --benchmark xsub --out {new} --recipe debug"
REFUSED = (
    "c2vl-pipeline index --dataset ntu-60 --data {raw} --work {new}",
    "c2vl-pipeline index --dataset ntu60 --data nowhere --work {new}",
    "c2vl-pipeline index --dataset synthetic --data {empty} --work {new}",
    "c2vl-pipeline index --dataset generic --data {empty} --work {new}",
    "c2vl-pipeline index --dataset utd-mhad --data {empty} --work {new}",
    "c2vl-pipeline crop --work nowhere",
    "c2vl-pipeline crop --work {begun} --engine yolo",
    "c2vl-pipeline caption --work {begun}",
    "c2vl-pipeline embed --work {begun}",
    "c2vl-pipeline pack --work {begun}",
    "c2vl-pipeline prompts --work nowhere",
    "c2vl-pipeline status --work nowhere",
    "c2vl-pipeline verify --work nowhere",
    "c2vl-pipeline inspect --work {work} --out {new}/p.html --class nothing",
    "c2vl-pipeline inspect --work {work} --out {new}/p.html --class drink --text wavng",
    "c2vl-pipeline explain nobody --work {work}",
    "c2vl-pipeline audit --work nowhere",
    f"{PROMPTS.removesuffix('debug')}tiny",
    f"{PROMPTS} --set pipeline.frame=3",
    f"{PROMPTS} --set crop.margin=0.2",
    f"{PROMPTS} --set pipeline.frames",
    f"{PROMPTS} --set pipeline.frames=many",
    f"{PROMPTS} --set pipeline.frames=0",
    "c2vl-train pretrain --data nowhere --benchmark xsub --out {new}",
    f"{PRETRAIN.replace('xsub', 'xset')}",
    f"{PRETRAIN} --set training.device=gpu",
    f"{PRETRAIN} --set training.encoder.name=resnet",
    f"{PRETRAIN} --set training.pretrain.targets=soft",
    f"{PRETRAIN} --set training.pretrain.batch_size=1",
    f"{PRETRAIN} --set training.pretrain.knowledge=sound",
    f"{PRETRAIN} --set training.pretrain.exclude_classes=[0,1,2]",
    f"{PRETRAIN} --set training.pretrain.exclude_classes=wave",
    "c2vl-train export --run {empty} --out {new}",
    "c2vl-eval run knn --run {empty} --data {sticks}",
    "c2vl-eval run guess --run {floor} --data {sticks}",
    "c2vl-eval run knn --run {floor} --data {sticks} --benchmark xset",
    "c2vl-eval run transfer --run {floor} --data {sticks} --recipe debug",
    "c2vl-eval compare {floor} {floor}",
    "c2vl-eval zeroshot --run {floor} --data {sticks} --recipe debug",
    "c2vl-eval zeroshot --run {floor} --data {sticks} --recipe debug --split 55/5",
    "c2vl-eval features --run {floor} --data {sticks} --recipe debug --split 0 --split 0 --out {new}",
    "c2vl-eval retrieval --run {floor} --data {sticks} --recipe debug",
    "c2vl-eval predict {empty} --run {floor} --data {sticks} --recipe debug",
    "c2vl-eval benchmark --data {sticks} --benchmark xsub --out {new} --recipe debug --targets soft",
    "c2vl-eval benchmark --data {sticks} --benchmark xsub --out {new} --recipe debug --variants nowhere.toml",
    "c2vl-eval benchmark --data {sticks} --benchmark xsub --out {new} --recipe debug --protocol guess",
    "c2vl-eval report --out {empty} --data {sticks}",
    "c2vl-eval paper --work {empty} --out {new}",
)


def helps() -> Iterator[str]:
    """Yield the texts of every command, from what it declares: no width of a terminal changes them."""
    for name, part in PARTS.items():
        yield from _help(typer.main.get_command(import_module(f"{part}.cli").app), name)


def _help(command: Any, name: str) -> Iterator[str]:
    lines = [f"$ {name} --help", *_words(command.help)]
    for one in command.params:
        said = " ".join(_words(getattr(one, "help", None)))
        default = "" if one.default is None or callable(one.default) else f" [{one.default}]"
        lines.append(f"  {' '.join([*one.opts, *one.secondary_opts])}: {said}{default}")
    yield "\n".join(lines)
    for below, inner in getattr(command, "commands", {}).items():
        yield from _help(inner, f"{name} {below}")


def _words(text: str | None) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in (text or "").split("\n\n")]


@pytest.fixture(scope="module")
def places(raw: Path, work: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that the refused commands name."""
    root = tmp_path_factory.mktemp("messages")
    (root / "empty").mkdir()
    packed = sticks(root / "sticks")
    train(run(packed, root / "floor", kind="random"))
    folders = {"raw": raw, "work": work, "begun": start(raw, root / "begun"), "sticks": packed}
    return folders | {"floor": root / "floor", "empty": root / "empty", "new": root / "new"}


def refusal(cli: Cli, places: dict[str, Path], words: str) -> str:
    said = cli(*(word.format(**places) for word in words.split()))
    assert said.code == 1, said
    text = said.err
    for name, folder in places.items():
        text = text.replace(str(folder), f"{{{name}}}")
    return f"$ {words}\n{text.rstrip()}"


def test_users_read_what_the_golden_file_says(
    cli: Cli, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [*helps(), *(refusal(cli, places, words) for words in REFUSED)]
    if os.environ.get("C2VL_WRITE_MESSAGES"):
        GOLDEN.write_text("\n\n".join(texts) + "\n", "utf-8")
    golden = GOLDEN.read_text("utf-8").removesuffix("\n").split("\n\n$ ")
    assert texts == [golden[0], *(f"$ {text}" for text in golden[1:])]
