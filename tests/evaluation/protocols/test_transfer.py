"""Transfer to another dataset."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from c2vl_evaluation.protocols import finetuning, linear, transfer
from c2vl_manifests.errors import CheckpointError, ConfigError
from c2vl_training.dataset import PackedDataset
from support.evaluation import evaluated, logits, outcomes, told
from support.packed import STICK, write_packed


def test_an_encoder_meets_another_dataset_frozen_and_tuned(subject, elsewhere):
    there = replace(subject, packed=elsewhere)
    frozen, tuned = outcomes(transfer, there)
    assert [o.result.setting for o in (frozen, tuned)] == [
        "synthetic to elsewhere, xsub, frozen",
        "synthetic to elsewhere, xsub, tuned",
    ]
    np.testing.assert_array_equal(logits(frozen), logits(evaluated(linear, there)))
    config = there.recipe.evaluation.transfer.tune
    whole = there.recipe.model_copy(
        update={"evaluation": there.recipe.evaluation.model_copy(update={"finetune": config})}
    )
    np.testing.assert_array_equal(logits(tuned), logits(evaluated(finetuning, replace(there, recipe=whole))))


def test_a_transfer_to_its_own_data_is_refused(subject):
    with pytest.raises(ConfigError, match=r"was trained on clips of .* itself; give another dataset"):
        next(outcomes(transfer, subject))


def test_a_transfer_to_other_joints_names_the_mapping(subject, tmp_path):
    layout = type(STICK)("kite", ("hip", "chest", "tail"), (1, 1, 0))
    folder = write_packed(tmp_path / "packed", [np.zeros((5, 1, 3, 3))] * 4, layout=layout, labels=[0] * 4,
                          splits=[{"xsub": "train"}, {"xsub": "test"}] * 2)  # fmt: skip
    text = (folder / "packed.json").read_text()
    (folder / "packed.json").write_text(text.replace("f" * 32, "e" * 32))
    for encoder in ("frozen", "tuned"):
        some = told(subject, f"evaluation.transfer.encoder=['{encoder}']")
        with pytest.raises(CheckpointError, match=r"holds 'kite' \(3\); .* --layout stick`"):
            next(outcomes(transfer, replace(some, packed=PackedDataset(folder))))
