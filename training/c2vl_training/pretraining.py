"""Cross-modal pre-training (Section III-D) as a method that `trainer.fit` trains."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.errors import DataError
from c2vl_manifests.recipe_training import PretrainConfig
from c2vl_training import beyond, distributed, objective, schedule
from c2vl_training.dataset import PackedDataset, Selection
from c2vl_training.encoders import Encoder
from c2vl_training.knowledge import Knowledge
from c2vl_training.methods import Method, StepOutput, one_group, prepare
from c2vl_training.model import CrossModal, Embedded
from c2vl_training.run_log import count_similarities, histogram_epoch
from c2vl_training.seeding import generator_of
from c2vl_training.teachers import EmbeddingMemory

_Skeletons = dict[str, Tensor]
"""Kind -> skeletons of one view as its head embeds them, (B, D)."""
_Guide = dict[str, tuple[Tensor, Tensor]]
"""Kind -> the teacher's embeddings of skeletons and prompts, (B, D) each."""


class Pretraining(Method):
    """Section III-D: projectors, knowledge from disk, soft targets, teacher.

    Beyond the paper: with two views the cross-modal loss is the mean over them, and `view_weight` adds their contrast.

    Raises:
        DataError: a vector is not finite.
    """

    def __init__(
        self,
        packed: PackedDataset,
        config: PretrainConfig,
        seed: int,
        encoder: Encoder,
        selection: Selection,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.device = config, device
        self.optimiser, self.epochs, self.batch_size = config.optimiser, config.epochs, config.batch_size
        self.views, self.kinds = config.views, kinds_of(config.knowledge)
        self.knowledge = {kind: _finite_knowledge(packed, selection, kind, config) for kind in self.kinds}
        widths = {kind: knowledge.dim for kind, knowledge in self.knowledge.items()}
        self.model: CrossModal = CrossModal(encoder, widths, config).to(device, dtype)
        count = len(selection.rows)
        self.heads = 1 if config.skeleton_heads == "shared" else len(self.kinds)
        if config.soft and config.teacher == "memory":
            width = (self.heads + len(self.kinds)) * config.projector_dim
            self.teacher = EmbeddingMemory(count, width, dtype).to(device)
        elif config.soft and config.teacher != "self":
            self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.network = prepare(self.model, device)
        self.pairs = pairing(count, seed) if config.pairs == "shuffled" else torch.arange(count)
        self.vectors: dict[str, Tensor] = {}  # of the present epoch
        self.unit_vectors: dict[str, Tensor] = {}  # the same with length 1, if equal prompts are looked for
        self.groups = self._groups()

    def _groups(self) -> list[dict[str, Any]]:
        """Give temperatures and biases a group of their own, without weight decay."""
        o = self.optimiser
        scales = [*self.model.scales.parameters(), *self.model.biases.values()]
        known = {id(p) for p in scales}
        groups = one_group([p for p in self.model.parameters() if id(p) not in known], o)
        if scales:
            groups.append({"params": scales, "weight_decay": 0.0, "factor": self.config.temperature.lr / o.lr})
        return groups

    def begin_epoch(self, epoch: int, generator: torch.Generator, resumed: bool) -> None:
        """Draw the knowledge vectors of the epoch, and renew the teacher of `previous_epoch`."""
        for kind, knowledge in self.knowledge.items():
            self.vectors[kind] = knowledge.epoch(generator)[self.pairs].to(self.device)
            if self.config.equal_prompts != "negatives":
                self.unit_vectors[kind] = F.normalize(self.vectors[kind], dim=1)
        if self.teacher is not None and self.config.teacher == "previous_epoch" and not resumed:
            self.teacher.load_state_dict(self.model.state_dict())

    def loss(self, clips: Tensor, places: Tensor, epoch: int) -> StepOutput:
        """Align the whole batch, see `objective.loss`."""
        others = self.vectors if self.config.negatives == "all" else {}
        embedded = self._embed(self.network, clips, places, others)
        views, prompts = self._parts(embedded.batch, self.views)
        guides, known = self._guides(embedded.batch, clips, places)
        with torch.autocast(self.device.type, enabled=False):  # embeddings are exact, and so must their products be
            total, figures = self._align(embedded, views, prompts, guides, known, places, epoch)
            figures = {name: float(value) for name, value in figures.items()}
            output = StepOutput(total, figures)
            if histogram_epoch(epoch, self.epochs):
                for kind in self.kinds:
                    pairs, rest = count_similarities(views[0][kind], prompts[kind])
                    output.counts |= {f"{kind}/positive": pairs, f"{kind}/negative": rest}
        return output

    def _align(
        self,
        embedded: Embedded,
        views: list[_Skeletons],
        prompts: dict[str, Tensor],
        guides: list[_Guide | None],
        known: Tensor | None,
        places: Tensor,
        epoch: int,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the mean loss of the views and their weighted contrast, and figures for the log."""
        config, scales = self.config, embedded.scales
        targets, alpha = schedule.of_epoch(config.targets, epoch, self.epochs)
        keys = {kind: self._prompts(kind, places, embedded) for kind in self.kinds}
        losses = []
        for S, guide in zip(views, guides, strict=True):
            teacher = guide or dict.fromkeys(self.kinds)
            sides = {
                kind: objective.Side(S[kind], prompts[kind], scales[kind], teacher[kind], known, keys[kind])
                for kind in self.kinds
            }
            losses.append(objective.loss(sides, targets=targets, alpha=alpha, directions=config.directions))
        figures: dict[str, Any] = {"alpha": alpha}
        figures |= {f"tau/{kind}": 1 / float(scale.detach()) for kind, scale in scales.items()}
        figures |= {f"bias/{kind}": bias.detach() for kind, bias in embedded.biases.items()}
        for name in (*losses[0].parts, *losses[0].similarity):
            figures[name] = sum(float((one.parts | one.similarity)[name]) for one in losses) / self.views
        total = sum((one.total for one in losses[1:]), losses[0].total) / self.views
        if config.view_weight > 0:
            both = [torch.cat([S[kind] for kind in self.kinds[: self.heads]], dim=1) / self.heads**0.5 for S in views]
            contrast = beyond.view_contrast(both[0], both[1], config.view_temperature)
            figures["views"] = contrast.detach()
            total = total + config.view_weight * contrast
        return total, figures

    def _embed(
        self, module: nn.Module, clips: Tensor, places: Tensor, others: Mapping[str, Tensor] | None = None
    ) -> Embedded:
        """Embed this rank's part and gather the batch."""
        local = distributed.local_rows(places)
        embedded: Embedded = module(clips, {kind: self.vectors[kind][local] for kind in self.kinds}, others or {})
        return embedded._replace(batch=distributed.gather(embedded.batch))

    def _parts(self, batch: Tensor, views: int) -> tuple[list[_Skeletons], dict[str, Tensor]]:
        """Split embeddings of a batch: skeletons of each view, and prompts, by kind. A shared head serves all kinds."""
        parts = batch.split(self.config.projector_dim, dim=1)
        prompts = dict(zip(self.kinds, parts[views * self.heads :], strict=True))
        skeletons = []
        for view in range(views):
            heads = parts[view * self.heads : (view + 1) * self.heads]
            skeletons.append(dict(zip(self.kinds, heads * (len(self.kinds) // self.heads), strict=True)))
        return skeletons, prompts

    def _of_first_view(self, batch: Tensor) -> Tensor:
        """Return embeddings of a batch without the skeletons of further views."""
        parts = batch.split(self.config.projector_dim, dim=1)
        return torch.cat([*parts[: self.heads], *parts[self.views * self.heads :]], dim=1)

    @torch.no_grad()
    def _guides(self, batch: Tensor, clips: Tensor, places: Tensor) -> tuple[list[_Guide | None], Tensor | None]:
        """Return the teacher's pairs of embeddings for each view (None: the student's), and which samples it knows."""
        known, views = None, self.views
        if self.teacher is None:
            return [None] * views, known
        if isinstance(self.teacher, EmbeddingMemory):
            mine = self._of_first_view(batch)
            (batch, known), views = self.teacher.recall(places), 1
            self.teacher.store(places, mine)
        else:
            batch = self._embed(self.teacher, clips, places).batch
        skeletons, prompts = self._parts(batch, views)
        guides: list[_Guide | None] = [{kind: (S[kind], prompts[kind]) for kind in self.kinds} for S in skeletons]
        return guides * (self.views // views), known

    @torch.no_grad()
    def _prompts(self, kind: str, places: Tensor, embedded: Embedded) -> objective.Prompts:
        """Return what the objective needs to know of prompts: equal ones, further ones, and the bias of logits."""
        config, units = self.config, self.unit_vectors.get(kind)
        same = hidden = None
        if units is not None:
            same = beyond.equal_prompts(units[places], units[places])
        if config.negatives == "all":
            hidden = torch.zeros(len(places), len(self.vectors[kind]), dtype=torch.bool, device=self.device)
            hidden[:, places] = True
            if units is not None:
                hidden |= beyond.equal_prompts(units[places], units)
        bias = embedded.biases.get(kind, 0.0)
        return objective.Prompts(same, config.equal_prompts == "positives", embedded.others.get(kind), hidden, bias)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the teacher of `ema` towards the student."""
        if self.teacher is None or self.config.teacher != "ema":
            return
        pairs = zip(self.teacher.state_dict().values(), self.model.state_dict().values(), strict=True)
        for teacher, student in pairs:
            if teacher.is_floating_point():
                teacher.lerp_(student, 1 - self.config.ema)
            else:
                teacher.copy_(student)

    def projectors(self) -> dict[str, Tensor]:
        """Return all trained tensors except the encoder's, with the centre and scale of each kind of knowledge."""
        tensors = {k: v for k, v in self.model.state_dict().items() if not k.startswith("encoder.")}
        for kind, knowledge in self.knowledge.items():
            tensors[f"centre.{kind}"] = torch.as_tensor(knowledge.centre)
            tensors[f"scale.{kind}"] = torch.as_tensor(knowledge.scale)
        return tensors


def kinds_of(knowledge: str) -> tuple[str, ...]:
    """Return the kinds of knowledge that `both`, `vision`, `language` or the empty word name."""
    return ("vision", "language") if knowledge == "both" else (knowledge,) if knowledge else ()


def pairing(count: int, seed: int) -> Tensor:
    """Return a permutation without fixed points: each sample gets another one's knowledge, the same in every epoch."""
    order = torch.randperm(count, generator=generator_of(seed, -1 % (1 << 20)))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


def _finite_knowledge(packed: PackedDataset, selection: Selection, kind: str, config: PretrainConfig) -> Knowledge:
    knowledge = Knowledge(packed, selection.rows, kind, config)
    if (place := knowledge.broken()) is not None:
        (name,) = packed.sample_ids(selection.rows[place : place + 1])
        raise DataError(
            f"sample {name} of {packed.folder} holds NaN or infinite {kind} vectors; run `c2vl-pipeline pack` again"
        )
    return knowledge
