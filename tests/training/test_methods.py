"""Pre-training and supervision: pairs, losses, parameter groups, teachers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from c2vl_manifests.targets import TABLE_VII
from c2vl_training import checkpoint, methods, objective
from c2vl_training.model import CrossModal
from c2vl_training.run_folder import Result
from c2vl_training.run_log import read_metrics
from c2vl_training.trainer import train
from support.packed import COUNT, sticks
from support.training import method_of, run, same, tensors

# ----------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_shuffled_pairs_are_a_permutation_without_fixed_points(count, seed):
    partner = methods.pairing(count, seed)
    assert sorted(partner.tolist()) == list(range(count))
    assert (partner != torch.arange(count)).all()


@pytest.mark.parametrize("pairs", ["true", "shuffled"])
def test_each_skeleton_meets_its_own_knowledge_or_always_the_same_other(tmp_path, monkeypatch, pairs):
    # skeletons that stand at n + 1, vision that points along axis n
    joints = [np.full((6, 1, 5, 3), n + 1, np.float32) for n in range(COUNT)]
    vision = np.repeat(np.eye(COUNT)[:, None], 4, axis=1)
    folder = sticks(tmp_path / "packed", joints=joints, vision=vision)
    met: list[tuple[int, int]] = []

    class Spy(CrossModal):
        def skeletons(self, clips):
            self.seen = clips[:, 0, 0, 0, 0].round().long() - 1
            return super().skeletons(clips)

        def knowledge(self, kind, vectors):
            self.told = vectors.argmax(dim=1)
            return super().knowledge(kind, vectors)

    def loss(*args, **more):
        met.extend(zip(models[0].seen.tolist(), models[0].told.tolist(), strict=True))
        return real(*args, **more)

    models: list[Spy] = []
    monkeypatch.setattr(methods, "CrossModal", lambda *args: models.append(Spy(*args)) or models[0])
    real = objective.loss
    monkeypatch.setattr(objective, "loss", loss)
    more = ("training.pretrain.knowledge=vision", "training.input.augmentation.rotation=0.0")
    train(run(folder, tmp_path / "run", *more, f"training.pretrain.pairs='{pairs}'"))
    assert len(met) == 4 * 10
    assert all((skeleton == told) == (pairs == "true") for skeleton, told in met)
    partners = dict(met)
    assert all(partners[skeleton] == told for skeleton, told in met)
    assert all(skeleton % 4 and told % 4 for skeleton, told in met)  # training samples only


# ------------------------------------------------------------------------------------------- settings


def last_loss(result: Result) -> float:
    return result.last["loss"]


@pytest.mark.parametrize("targets", TABLE_VII)
def test_every_row_of_table_vii_trains_with_finite_loss(data, tmp_path, targets):
    result = train(run(data, tmp_path / "run", f"training.pretrain.targets={targets}", "training.pretrain.epochs=1"))
    assert math.isfinite(last_loss(result))
    kinds = {"hard", "intra", "inter"} & {targets} or {"intra", "inter"}
    assert {key.split("/")[1] for key in result.last if key.startswith("s2v/")} == kinds


@pytest.mark.parametrize("knowledge", ["vision", "language", "both"])
def test_only_the_knowledge_asked_for_has_a_projector_and_a_loss(data, tmp_path, knowledge):
    result = train(run(data, tmp_path / "run", f"training.pretrain.knowledge={knowledge}"))
    kinds = {"vision", "language"} if knowledge == "both" else {knowledge}
    names = tensors(tmp_path / "run", checkpoint.CHECKPOINT)
    assert {n.split(".")[2] for n in names if n.startswith("model.projectors.")} == kinds
    assert {k.split("/")[1] for k in result.last if k.startswith("tau/")} == kinds
    assert {k.split("/")[0] for k in result.last if k.endswith("/positive")} == kinds
    assert math.isfinite(last_loss(result))


def test_bfloat16_trains_and_is_not_float32(data, tmp_path):
    losses = [
        last_loss(train(run(data, tmp_path / precision, f"training.precision={precision}")))
        for precision in ("float32", "bfloat16")
    ]
    assert math.isfinite(losses[1])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.3)
    assert all(t.dtype != torch.bfloat16 for t in tensors(tmp_path / "bfloat16").values())


def test_learnable_temperature_has_its_own_group_without_weight_decay(data, tmp_path):
    method = method_of(run(data, tmp_path, "training.pretrain.temperature={mode='learnable',lr=0.02}"))
    scales = [id(p) for name, p in method.model.named_parameters() if name.startswith("scales.")]
    rest, own = method.groups
    assert [id(p) for p in own["params"]] == scales
    assert len(scales) == 2
    assert not {id(p) for p in rest["params"]} & {*scales}
    assert len(rest["params"]) + 2 == len(list(method.model.parameters()))
    assert (own["weight_decay"], own["factor"]) == (0.0, pytest.approx(0.02 / 0.1))
    assert (rest["weight_decay"], rest["factor"]) == (5e-4, 1.0)
    assert len(method_of(run(data, tmp_path, "training.pretrain.temperature.mode=fixed")).groups) == 1


def test_a_running_temperature_is_clamped_and_a_fixed_one_stays(data, tmp_path):
    out = tmp_path / "free"
    more = ("training.pretrain.temperature={mode='learnable',lr=1e4}", "training.pretrain.epochs=8")
    train(run(data, out, *more, "training.pretrain.targets=hard"))
    taus = {line[f"tau/{kind}"] for line in read_metrics(out) for kind in ("vision", "language")}
    assert all(0.0099 <= tau <= 1.0001 for tau in taus)
    assert any(tau == pytest.approx(bound) for tau in taus for bound in (0.01, 1.0))
    train(run(data, tmp_path / "fixed", "training.pretrain.temperature={mode='fixed',tau=0.2}"))
    assert {round(line["tau/vision"], 6) for line in read_metrics(tmp_path / "fixed")} == {0.2}


def test_the_moving_average_teacher_follows_the_student_by_its_share(data, tmp_path):
    method = method_of(run(data, tmp_path, "training.pretrain.teacher=ema", "training.pretrain.ema=0.75"))
    assert method.teacher is not None
    before = {k: v.clone() for k, v in method.teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.add_(1.0)
    method.after_step()
    for name, parameter in method.teacher.named_parameters():
        torch.testing.assert_close(parameter.data, before[name] + 0.25)
    assert not any(p.requires_grad for p in method.teacher.parameters())


def test_the_previous_epochs_teacher_is_the_student_as_the_epoch_began(data, tmp_path):
    method = method_of(run(data, tmp_path, "training.pretrain.teacher=previous_epoch"))
    assert method.teacher is not None
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.add_(1.0)
    method.begin_epoch(1, torch.Generator(), False)
    began = {k: v.clone() for k, v in method.model.state_dict().items()}
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.add_(1.0)
    method.after_step()
    assert same(dict(method.teacher.state_dict()), began)
