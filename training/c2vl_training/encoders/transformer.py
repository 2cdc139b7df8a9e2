"""The two-branch transformer of UmURL (Sun et al. 2023): frames as tokens, and joints as tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.layouts import Layout
from c2vl_training.encoders.base import Encoder

FRAMES, WIDTH = 64, 1024


def positions(count: int, width: int) -> Tensor:
    """Return sinusoids of `count` positions: sines in even places, cosines in odd ones. Shape: -> (count, width)."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angle = torch.arange(count)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


class Branch(nn.Module):
    """Embed tokens, let them attend to each other once, take the maximum over them.

    Args:
        token: numbers per token.
        width: width of embedding, attention (one head) and feed-forward layer.
    """

    def __init__(self, token: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(token, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))
        self.fuse = nn.Linear(width, width, bias=False)
        self.attend = nn.TransformerEncoderLayer(width, 1, width, dropout=0.0, batch_first=True)

    def forward(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Shape: (N, L, token), (L, width) -> (N, width)."""
        h = self.fuse(self.embed(tokens))
        attended: Tensor = self.attend(h if places is None else h + places.to(h.dtype))
        return attended.amax(dim=1)


class Transformer(Encoder):
    """One token per frame (every joint of every body) and one token per joint (its whole trajectory), in two branches.

    Frames carry their position, joints do not: swapping bodies changes nothing in that branch.

    *Reading:* the published encoder takes joints, bones and motion at once, averages their embeddings and fuses them
    by a linear map. With one stream it is this network: that stream's embedding, the fusion, the attention, 17.2 M
    parameters with 25 joints and two bodies; a clip of 64 frames takes 0.99 GMACs. A joint's token is 64 frames long;
    clips of another length are resized in time for that branch.

    Args:
        layout: of the joints.
        channels: coordinates per joint.
        bodies: bodies per clip.
        width: width of each branch.
        frames: frames of a joint's token.

    Raises:
        ConfigError: an odd width.
    """

    def __init__(
        self, layout: Layout, *, channels: int = 3, bodies: int = 2, width: int = WIDTH, frames: int = FRAMES
    ) -> None:
        super().__init__()
        if width % 2:
            raise ConfigError(f"width = {width} is odd; positions in time need an even one")
        self.dim = 2 * width
        self.frames = frames
        self.temporal = Branch(bodies * layout.joints * channels, width)
        self.spatial = Branch(frames * channels, width)

    def forward(self, x: Tensor) -> Tensor:
        """Encode clips.

        Shape: (N, C, T, V, M) -> (N, D)
        """
        N, C, T, V, M = x.shape
        places = positions(T, self.dim // 2).to(x.device)
        in_time = self.temporal(x.permute(0, 2, 4, 3, 1).reshape(N, T, M * V * C), places)
        courses = x.permute(0, 4, 3, 1, 2)
        if self.frames != T:
            courses = F.interpolate(courses.reshape(N, M * V * C, T), size=self.frames, mode="linear")
        courses = courses.reshape(N, M * V, C, self.frames).transpose(2, 3)
        return torch.cat([in_time, self.spatial(courses.reshape(N, M * V, self.frames * C))], dim=1)
