"""A teacher without a network: what the embeddings of each sample were in the previous epoch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EmbeddingMemory(nn.Module):
    """The last embeddings of every training sample; saved in checkpoints like any other teacher.

    *Reading:* "the two soft targets are dynamically updated at each epoch by the teacher network", at no cost in memory
    or computation. The self-distillation that the paper cites (PS-KD, ICCV 2021) takes as the teacher the model's own
    outputs of the previous epoch, stored by sample. A sample occurs once in an epoch, so its row is read before it is
    replaced, and a run that resumes within an epoch reads what an uninterrupted one would.

    In processes that share a batch each holds the same memory of all samples, of 4 N width bytes.

    Args:
        samples: N.
        width: numbers per sample.
        dtype: of the embeddings.
    """

    embeddings: Tensor
    known: Tensor

    def __init__(self, samples: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(samples, width, dtype=dtype))
        self.register_buffer("known", torch.zeros(samples, dtype=torch.bool))

    def recall(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of some samples (zero where none are known), and whether they are known.

        Shape: (B,) -> (B, width), (B,)
        """
        return self.embeddings[places], self.known[places]

    @torch.no_grad()
    def store(self, places: Tensor, embeddings: Tensor) -> None:
        """Replace the embeddings of some samples. Shape: (B,), (B, width)."""
        self.embeddings[places] = embeddings.to(self.embeddings.dtype)
        self.known[places] = True
