"""BSARec: self-attention beside a frequency rescaler.

Paper: Shin et al. 2024, An Attentive Inductive Bias for Sequential Recommendation beyond the
Self-Attention, https://arxiv.org/abs/2312.10325

    x_t  = drop(LN(E[item_t] + P[t]))                      the newest item has the last row of P
    low  = irfft(rfft(x), bins from c // 2 + 1 on zeroed)  over positions, orthonormal; high = x - low
    dsp  = LN(x + drop(low + beta^2 * high))               beta: one number a channel
    gsp  = LN(x + drop(W_O MHA(x)))                        causal softmax attention
    A    = alpha dsp + (1 - alpha) gsp
    x'   = LN(A + drop(W2 gelu(W1 A + b1) + b2))           W1 four times as wide
    r_i  = <x'_L, E[i]>

The attention is causal, the transform is not: every position sees every other, so the model trains at the
last position of prefixes (objectives/last_item.py) and needs rows of exactly max_len. As in the official
code padding takes part in the transform, as a zero vector at its position.

Differences from the official code: a padded position attends to itself alone (there: to every
position); LN has eps 1e-5 and GELU is exact.

Dimension key: B batch, L positions, F frequency bins (L // 2 + 1), D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lexrec.data.batch import Batch
from lexrec.item_encoders.base import ItemEncoder
from lexrec.models._layers import (
    Attention,
    Dropout,
    LayerNorm,
    Linear,
    Newest,
    Rows,
    causal_mask,
    init_normal,
)
from lexrec.models.base import Encoded, ModelConfig, SequenceModel


class BSARecConfig(ModelConfig):
    """Sizes of BSARec, and the balance of its two halves."""

    name: Literal["bsarec"] = "bsarec"
    n_layers: int = Field(2, ge=1)
    n_heads: int = Field(2, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    alpha: float = Field(0.9, ge=0, le=1)
    """Share of the frequency rescaler; the rest is attention."""
    c: int = Field(3, ge=0)
    """Where low frequencies end: the first c // 2 + 1 bins are low."""


class BSARec(SequenceModel):
    """Blocks that mix a frequency rescaler with causal self-attention."""

    causal = False
    layout = "fixed"

    config: BSARecConfig

    def __init__(self, config: BSARecConfig, items: ItemEncoder) -> None:
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
        """States of the newest positions, so many of each row: one, or all."""
        embedded = self.items(batch)
        x_BLD = self.dropout(self.input_norm(embedded.x_BLD + self.position.weight))
        # Padding holds values that the transform reads, so no position may be skipped.
        padded = batch._replace(slot_N=None)
        every, last = Rows.causal(padded), _newest(padded) if n_newest == 1 else Rows.causal(padded)
        for i, block in enumerate(self.blocks, 1):
            x_BLD = block(x_BLD, last if i == len(self.blocks) else every)
            if i == 1 and embedded.after_block0_BLD is not None:
                x_BLD = x_BLD + embedded.after_block0_BLD[:, -x_BLD.shape[1] :]
        return Encoded(x_BLD, embedded.aux)


def _newest(padded: Batch) -> Newest:
    """The newest position of each row, which looks where `Rows.causal` lets it, also in an empty row."""
    return Newest.of(padded)._replace(may_look=causal_mask(padded.is_item_BL)[:, :, -1:])


class _Block(nn.Module):
    """The mix of both halves, then a position-wise feed-forward layer."""

    def __init__(self, config: BSARecConfig) -> None:
        super().__init__()
        self.alpha = config.alpha
        self.n_low = config.c // 2 + 1
        self.beta_D = nn.Parameter(torch.randn(config.dim))
        self.dsp_norm = LayerNorm(config.dim)
        self.attention = Attention(config.dim, config.n_heads, config.dropout)
        self.gsp_norm = LayerNorm(config.dim)
        self.up = Linear(config.dim, 4 * config.dim)
        self.down = Linear(4 * config.dim, config.dim)
        self.ffn_norm = LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        init_normal(self)

    def forward(self, x_BLD: Tensor, rows: Rows | Newest) -> Tensor:
        """States of the positions that `rows` asks for; transform and attention read all."""
        attended_BLD = self.attention(x_BLD.flatten(0, 1), rows).view(len(x_BLD), -1, x_BLD.shape[2])
        n_asked = attended_BLD.shape[1]
        asking_BLD, rescaled_BLD = x_BLD[:, -n_asked:], self._rescaled(x_BLD)[:, -n_asked:]
        dsp_BLD = self.dsp_norm(asking_BLD + self.dropout(rescaled_BLD))
        gsp_BLD = self.gsp_norm(asking_BLD + self.dropout(attended_BLD))
        mixed_BLD = self.alpha * dsp_BLD + (1 - self.alpha) * gsp_BLD
        out_BLD: Tensor = self.ffn_norm(mixed_BLD + self.dropout(self.down(F.gelu(self.up(mixed_BLD)))))
        return out_BLD

    def _rescaled(self, x_BLD: Tensor) -> Tensor:
        # No cast: a LayerNorm's output is float32 under autocast as well, and a transform knows no bf16.
        bins_BFD = torch.fft.rfft(x_BLD, dim=1, norm="ortho")
        is_low_F1 = (torch.arange(bins_BFD.shape[1], device=x_BLD.device) < self.n_low)[:, None]
        low_BLD = torch.fft.irfft(bins_BFD * is_low_F1, n=x_BLD.shape[1], dim=1, norm="ortho")
        scaled_BLD: Tensor = low_BLD + self.beta_D.square() * (x_BLD - low_BLD)
        return scaled_BLD
