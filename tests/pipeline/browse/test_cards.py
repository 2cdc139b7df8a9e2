"""Samples as cards: what is read, what is counted, which commands lead on."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np

from c2vl_manifests.manifest import read_shard
from c2vl_pipeline.browse import cards
from c2vl_pipeline.browse.reader import RowReader
from c2vl_pipeline.browse.selection import Filters
from c2vl_pipeline.workspace import load, shard_path
from support.pages import rewrite


def test_commands_are_words_of_a_shell_and_pages_name_no_folder():
    work, words = Path("/home/some one/it's work"), Filters(samples=("a b", "$c"), subject=3).options()
    assert words == ["--sample", "a b", "--sample", "$c", "--subject", "3"]
    full = cards.command(work, "inspect", *words, page=False)
    assert shlex.split(full) == ["c2vl-pipeline", "inspect", *words, "--work", str(work)]
    assert shlex.split(cards.command(work, "inspect", *words))[-1] == "it's work"
    assert "/home" not in cards.command(work, "inspect", *words)


def test_cards_of_ids_are_found_wherever_a_work_folder_names_them(odd, tmp_path):
    ids = load(odd).table["sample_id"].to_pylist()
    found = cards.of_ids(odd, [ids[7], "stranger", ids[2]])
    assert {key: one.sample_id for key, one in found.items()} == {i: i for i in (ids[7], ids[2])}
    assert all(len(one.crops) == one.slots == 4 and one.bodies for one in found.values())
    assert cards.of_ids(tmp_path, ids) == {}


def test_a_few_samples_are_of_all_kinds_and_one_of_them_is_not_ok(odd):
    made, notes = cards.few(odd, 8)
    assert notes == []
    assert len({one.sample_id for one in made}) == len(made) == 8
    assert {one.name for one in made} == set(load(odd).classes)
    assert any(list(one.status) != ["ok"] for one in made)
    assert cards.few(odd, 8) == (made, notes)


def test_a_damaged_shard_leaves_its_part_out_with_a_note(copied):
    path = shard_path(copied, "crops", 0)
    path.write_bytes(path.read_bytes()[:-100])
    made, (note,) = cards.few(copied, 32)
    assert note.startswith("shard-00000.parquet of crops cannot be read and is skipped")
    assert note.endswith("; `c2vl-pipeline verify --repair` makes it again.")
    assert [bool(one.crops) for one in made] == [n >= 8 for n in range(32)]
    assert all(one.captions for one in made)


def test_captions_that_are_missing_cut_or_repeated_are_counted(copied):
    def cut(rows):
        for row in rows[:4]:
            row["truncated"] = True

    (before,) = cards.cards(load(copied), RowReader(load(copied)), [0])
    repeated = 4 - len({caption["text"] for caption in before.captions})
    assert before.poor == repeated
    rewrite(copied, "embeddings", read_shard(shard_path(copied, "embeddings", 0)).schema, cut)
    (after,) = cards.cards(load(copied), RowReader(load(copied)), np.array([0]))
    assert after.poor == 4
