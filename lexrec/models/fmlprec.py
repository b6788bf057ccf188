"""FMLP-Rec: learnable filters in the frequency domain over item histories.

Paper: Zhou et al. 2022, Filter-enhanced MLP is All You Need for Sequential Recommendation,
https://arxiv.org/abs/2202.13556

    x_t = drop(LN(E[item_t] + P[t]))                  eq. 2; the newest item has the last row of P
    X   = rfft(x) over positions, orthonormal         eq. 3
    F   = LN(x + drop(irfft(W * X)))                  eq. 4-6, one complex number a bin and channel
    x'  = LN(F + drop(W2 gelu(W1 F + b1) + b2))       eq. 7-8, W1 four times as wide
    r_i = <x'_L, E[i]>                                eq. 9

A filter is a circular convolution over the whole row: every position sees every other, so the model is not
causal, trains at the last position of prefixes (objectives/last_item.py) and needs rows of exactly max_len.
Padding takes part as a zero vector at its position, as in the official code.

Differences from the official code: the loss is chosen in objectives/ (there: one sampled negative); LN has
eps 1e-5 and GELU is exact; the filter is stored as pairs of real numbers.

Dimension key: B batch, L positions, F frequency bins (L // 2 + 1), D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lexrec.data.batch import Batch
from lexrec.item_encoders.base import ItemEncoder
from lexrec.models._layers import Dropout, LayerNorm, Linear, init_normal
from lexrec.models.base import Encoded, ModelConfig, SequenceModel


class FMLPRecConfig(ModelConfig):
    """Sizes of FMLP-Rec."""

    name: Literal["fmlprec"] = "fmlprec"
    n_layers: int = Field(2, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)


class FMLPRec(SequenceModel):
    """Filter layers over item vectors with learned positions."""

    causal = False
    layout = "fixed"

    config: FMLPRecConfig

    def __init__(self, config: FMLPRecConfig, items: ItemEncoder) -> None:
        super().__init__()
        self.config = config
        self.items = items
        self.max_len = config.max_len
        self.position = nn.Embedding(config.max_len, config.dim)
        nn.init.normal_(self.position.weight, std=0.02)
        self.input_norm = LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layers))

    def forward(self, batch: Batch) -> Encoded:
        return self._states(batch, self.max_len)

    def encode_next(self, batch: Batch) -> Encoded:
        """The state that predicts the next item, [B, 1, D]; the last block computes no other."""
        return self._states(batch, 1)

    def _states(self, batch: Batch, n_newest: int) -> Encoded:
        """States of the newest positions, so many of each row."""
        embedded = self.items(batch)
        x_BLD = self.dropout(self.input_norm(embedded.x_BLD + self.position.weight))
        for i, block in enumerate(self.blocks, 1):
            n_asked = n_newest if i == len(self.blocks) else self.max_len
            x_BLD = block(x_BLD, n_asked)
            if i == 1 and embedded.after_block0_BLD is not None:
                x_BLD = x_BLD + embedded.after_block0_BLD[:, -n_asked:]
        return Encoded(x_BLD, embedded.aux)


class _Block(nn.Module):
    """A filter, then a position-wise feed-forward layer, each normalised after its residual."""

    def __init__(self, config: FMLPRecConfig) -> None:
        super().__init__()
        n_bins = config.max_len // 2 + 1
        self.filter_1FD2 = nn.Parameter(0.02 * torch.randn(1, n_bins, config.dim, 2))
        self.filter_norm = LayerNorm(config.dim)
        self.up = Linear(config.dim, 4 * config.dim)
        self.down = Linear(4 * config.dim, config.dim)
        self.ffn_norm = LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        init_normal(self)

    def forward(self, x_BLD: Tensor, n_asked: int) -> Tensor:
        """States of the newest `n_asked` positions of each row; the filter reads all."""
        filtered_BLD = self._filtered(x_BLD)[:, -n_asked:]
        x_BLD = self.filter_norm(x_BLD[:, -n_asked:] + self.dropout(filtered_BLD))
        out_BLD: Tensor = self.ffn_norm(x_BLD + self.dropout(self.down(F.gelu(self.up(x_BLD)))))
        return out_BLD

    def _filtered(self, x_BLD: Tensor) -> Tensor:
        # No cast: a LayerNorm's output is float32 under autocast as well, and a transform knows no bf16.
        bins_BFD = torch.fft.rfft(x_BLD, dim=1, norm="ortho")
        filtered_BFD = bins_BFD * torch.view_as_complex(self.filter_1FD2)
        y_BLD: Tensor = torch.fft.irfft(filtered_BFD, n=x_BLD.shape[1], dim=1, norm="ortho")
        return y_BLD
