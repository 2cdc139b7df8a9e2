"""Pre-training: pairs, losses, parameter groups, teachers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from c2vl_manifests.targets import TABLE_VII, Hard
from c2vl_training import checkpoint, objective, pretraining, trainer
from c2vl_training.clips import Clips
from c2vl_training.inference import load_joint_embedding
from c2vl_training.methods import StepOutput
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
    partner = pretraining.pairing(count, seed)
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
        def skeletons(self, clips, kinds):
            self.seen = clips[:, 0, 0, 0, 0].round().long() - 1
            return super().skeletons(clips, kinds)

        def knowledge(self, kind, vectors):
            self.told = vectors.argmax(dim=1)
            return super().knowledge(kind, vectors)

    def loss(*args, **more):
        met.extend(zip(models[0].seen.tolist(), models[0].told.tolist(), strict=True))
        return real(*args, **more)

    models: list[Spy] = []
    monkeypatch.setattr(pretraining, "CrossModal", lambda *args: models.append(Spy(*args)) or models[0])
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


# --------------------------------------------------------------------- what the objective is given, step by step


class Steps:
    """Takes the steps of some epochs without an optimiser, and keeps what each gave to the objective."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, *settings: str) -> None:
        self.run = run(data, out, *(f"training.pretrain.{one}" for one in settings))
        self.method, self.precision = method_of(self.run), "float32"
        self.clips = Clips(self.run.packed, self.run.select().rows, self.run.recipe.training.input, torch.device("cpu"))
        self.calls: list[Mapping[str, objective.Side]] = []
        real = objective.loss

        def loss(sides, **more):
            self.calls.append(sides)
            return real(sides, **more)

        monkeypatch.setattr(objective, "loss", loss)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, StepOutput]]:
        order, draws = trainer.begin_epoch(self.method, self.clips, 0, epoch)
        for places in order.split(5)[:2]:
            self.calls.clear()
            yield places, trainer.forward(self.method, self.clips, draws, places, epoch, self.precision)
            with torch.no_grad():  # as an optimiser would, so that epochs differ
                for parameter in self.method.model.parameters():
                    parameter.mul_(1.01).add_(0.01)


@pytest.mark.parametrize("views", [1, 2])
def test_a_memory_gives_each_samples_embeddings_of_the_epoch_before_and_at_first_hard_targets(
    data, tmp_path, monkeypatch, views
):
    settings = ("teacher=memory", "targets={kind='inter',inter_hard=0.2}", f"views={views}")
    steps = Steps(monkeypatch, data, tmp_path, *settings)
    kept: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
    for epoch in range(3):
        seen: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
        for places, output in steps.epoch(epoch):
            calls = [*steps.calls]
            assert len(calls) == views
            for row, place in enumerate(places.tolist()):
                seen[place] = {kind: (side.S[row].detach(), side.V[row].detach()) for kind, side in calls[0].items()}
                for kind, side in (item for sides in calls for item in sides.items()):
                    assert side.teacher is not None
                    assert side.known is not None
                    assert bool(side.known[row]) == (place in kept)
                    for given, was in zip(side.teacher, kept[place][kind] if place in kept else (), strict=False):
                        assert torch.equal(given[row], was)
            if epoch == 0:
                hard = [{k: side._replace(teacher=None, known=None) for k, side in sides.items()} for sides in calls]
                losses = [objective.loss(sides, targets=Hard(), alpha=1.0).total for sides in hard]
                torch.testing.assert_close(output.loss, sum(losses) / views)
        kept |= seen
    assert steps.method.teacher is not None
    assert sum(t.numel() for t in steps.method.teacher.buffers()) == 12 * (3 * 8 + 1)
    assert not list(steps.method.teacher.parameters())


def test_heads_of_their_own_give_each_knowledge_other_skeletons(data, tmp_path, monkeypatch):
    shared, own = (
        Steps(monkeypatch, data, tmp_path, f"skeleton_heads={heads}", "teacher=previous_epoch")
        for heads in ("shared", "per_kind")
    )
    for steps, equal in ((shared, True), (own, False)):
        next(steps.epoch(0))
        vision, language = (steps.calls or shared.calls)[0].values()
        assert torch.equal(vision.S, language.S) == equal
        for side in (vision, language):
            assert side.teacher is not None
            assert torch.allclose(side.teacher[1], side.V)  # the model as the epoch began is the model now
        own.calls, shared.calls = [], []
    names = {name for name, _ in own.method.model.named_parameters() if name.startswith("skeleton.")}
    assert names == {f"skeleton.{kind}.{one}" for kind in ("vision", "language") for one in ("weight", "bias")}


def test_negatives_of_all_are_the_prompts_of_every_training_sample_but_the_batchs(data, tmp_path, monkeypatch):
    steps = Steps(monkeypatch, data, tmp_path, "negatives=all")
    for places, _ in steps.epoch(0):
        for kind, side in steps.calls[0].items():
            others, hidden = side.prompts.others, side.prompts.others_hidden
            assert others is not None
            assert hidden is not None
            torch.testing.assert_close(others[places], side.V)
            assert others.requires_grad
            assert len(others) == 12
            assert torch.equal(hidden.all(0), torch.isin(torch.arange(12), places)), kind
            assert torch.equal(hidden.all(0), hidden.any(0))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])  # which must not make near prompts equal
@pytest.mark.parametrize("meaning", ["negatives", "ignored", "positives"])
def test_equal_prompts_of_a_batch_are_found_and_given_their_meaning(tmp_path, monkeypatch, meaning, precision):
    said = np.arange(COUNT) % 3
    things = np.ones(5) + 0.05 * np.random.default_rng(0).normal(size=(3, 1, 5))  # cosines above 0.995
    folder = sticks(tmp_path / "packed", language=np.repeat(things[said], 4, axis=1))
    steps = Steps(monkeypatch, folder, tmp_path, f"equal_prompts={meaning}", "negatives=all")
    steps.precision = precision
    told = torch.from_numpy(said[steps.run.select().rows])
    for places, _ in steps.epoch(0):
        vision, language_side = (side.prompts for side in steps.calls[0].values())
        same = told[places][:, None] == told[places]
        if meaning == "negatives":
            assert language_side.same is None
        else:
            assert language_side.same is not None
            assert vision.same is not None
            assert language_side.others_hidden is not None
            assert torch.equal(language_side.same, same)
            assert torch.equal(vision.same, torch.eye(5).bool())
            alike = told[places][:, None] == told
            assert torch.equal(language_side.others_hidden, alike | torch.isin(torch.arange(12), places))
        assert language_side.positive == (meaning == "positives")


@pytest.mark.parametrize("heads", ["shared", "per_kind"])
def test_two_views_share_prompts_and_add_their_contrast(data, tmp_path, monkeypatch, heads):
    settings = ("views=2", "view_weight=0.7", "view_temperature=0.2", f"skeleton_heads={heads}", "targets=hard")
    steps = Steps(monkeypatch, data, tmp_path, *settings)
    for _, output in steps.epoch(0):
        first, second = steps.calls
        assert all(torch.equal(first[kind].V, second[kind].V) for kind in first)
        assert not any(torch.allclose(first[kind].S, second[kind].S) for kind in first)
        single = [objective.loss(sides, targets=Hard(), alpha=1.0).total for sides in (first, second)]
        kinds = ["vision"] if heads == "shared" else ["vision", "language"]
        cosine = sum(
            torch.cat([first[kind].S, second[kind].S]) @ torch.cat([first[kind].S, second[kind].S]).T for kind in kinds
        ) / len(kinds)
        logits = (cosine / 0.2).fill_diagonal_(-math.inf)
        contrast = torch.nn.functional.cross_entropy(logits, torch.arange(10).roll(5))
        torch.testing.assert_close(output.loss, (single[0] + single[1]) / 2 + 0.7 * contrast)
        assert output.figures["views"] == pytest.approx(float(contrast.detach()), rel=1e-5)


def test_a_second_view_does_not_change_the_first(data, tmp_path, monkeypatch):
    one = Steps(monkeypatch, data, tmp_path, "targets=hard")
    two = Steps(monkeypatch, data, tmp_path, "targets=hard", "views=2")
    order, (draw,) = trainer.begin_epoch(one.method, one.clips, 0, 1)
    again, (same_draw, other) = trainer.begin_epoch(two.method, two.clips, 0, 1)
    assert torch.equal(order, again)
    assert torch.equal(draw.angles, same_draw.angles)
    assert not torch.equal(draw.angles, other.angles)


def test_the_bias_of_the_sigmoid_learns_as_temperatures_do_and_is_saved(data, tmp_path):
    made = run(data, tmp_path / "run", "training.pretrain.targets={kind='sigmoid',bias=-3.0}")
    method = method_of(made)
    own = [name for name, p in method.model.named_parameters() if any(p is q for q in method.groups[1]["params"])]
    assert {*own} == {"biases.vision", "biases.language"}
    assert method.groups[1]["weight_decay"] == 0.0
    train(made)
    bias = tensors(tmp_path / "run", checkpoint.PROJECTORS)["biases.vision"]
    assert -3.5 < float(bias) < -2.5
    assert float(bias) != -3.0
    assert load_joint_embedding(tmp_path / "run").model.biases["vision"].equal(bias)
