"""The recurrent encoder of PCM3 and CMD (Zhang et al. 2023; Mao et al. 2022): three layers of two GRUs each."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from c2vl_manifests.layouts import Layout
from c2vl_training.encoders.base import Encoder

LAYERS, WIDTH = 3, 1024


class BiGRU(Encoder):
    """Recurrent network over whole frames, without its classifier; the feature is its state at the last frame.

    *Reading:* called bidirectional, the published network gets one frame per call and carries its state, so that its
    backward half never sees more than the present frame: both halves run forwards. That is the network behind published
    numbers and the one implemented here, written as two forward GRUs per layer over the whole sequence.

    With 25 joints and two bodies it has 45.0 M parameters; a clip of 64 frames takes 2.88 GMACs.

    Args:
        layout: of the joints.
        channels: coordinates per joint.
        bodies: bodies per clip; the joints of a frame are concatenated.
        width: hidden units of a GRU.
    """

    def __init__(self, layout: Layout, *, channels: int = 3, bodies: int = 2, width: int = WIDTH) -> None:
        super().__init__()
        self.dim = 2 * width
        flat = bodies * layout.joints * channels
        self.data_norm = nn.BatchNorm1d(flat)
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.GRU(2 * width if layer else flat, width, batch_first=True) for _ in range(2))
            for layer in range(LAYERS)
        )
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Encode clips.

        Shape: (N, C, T, V, M) -> (N, D)
        """
        N, T = x.shape[0], x.shape[2]
        h: Tensor = self.data_norm(x.permute(0, 2, 4, 3, 1).reshape(N * T, -1)).view(N, T, -1)
        for pair in self.layers:
            h = torch.cat([gru(h)[0] for gru in cast("nn.ModuleList", pair)], dim=2)
        return h[:, -1]
