"""BERT4Rec: bidirectional self-attention over item histories, read at a [MASK].

Paper: Sun et al. 2019, BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations
from Transformer, https://arxiv.org/abs/1904.06690

    x_t = LN(E[item_t] + P[t])                        eq. 6; the newest position has the last row of P
    A   = LN(x + MHA(x))                              eq. 1-2, every position looks at every item
    x'  = LN(A + W2 gelu(W1 A + b1) + b2)             eq. 3-4, W1 four times as wide
    h   = LN(gelu(W_P x + b_P))                       eq. 7; its LN is the code's
    r_i = <h_t, E[i]> + b_i                           eq. 7, one table for input and output

The next item is predicted at a [MASK] after the newest item; a full row gives up its oldest item for it.
Trained by objectives/cloze.py, or by last_item, which then masks the newest item of every prefix.

Differences from the official code: positions are counted from the newest item, so that [MASK] always
stands at the same one; LN has eps 1e-5 and GELU is exact; the output transform is part of the hidden
state; all weights start from N(0, .02), not from its truncated form.

Dimension key: B batch, L positions, N slots, D width, I items.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lexrec.data.batch import Batch, Places, with_slots
from lexrec.item_encoders.base import ItemEncoder, ScoringTable
from lexrec.kernels.place import placed
from lexrec.models._layers import Attention, Dropout, LayerNorm, Linear, Newest, Rows, init_normal
from lexrec.models.base import Encoded, ModelConfig, SequenceModel, append


class BERT4RecConfig(ModelConfig):
    """Sizes of BERT4Rec."""

    name: Literal["bert4rec"] = "bert4rec"
    n_layers: int = Field(2, ge=1)
    n_heads: int = Field(2, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)


class BERT4Rec(SequenceModel):
    """Post-norm Transformer encoder over item vectors with learned positions."""

    causal = False
    layout = "packed"
    reads_mask = True

    config: BERT4RecConfig

    def __init__(self, config: BERT4RecConfig, items: ItemEncoder) -> None:
        super().__init__()
        self.config = config
        self.items = items
        self.max_len = config.max_len
        self.position = nn.Embedding(config.max_len, config.dim)
        nn.init.normal_(self.position.weight, std=0.02)
        self.input_norm = LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            _Block(config, self.make_attention(config)) for _ in range(config.n_layers)
        )
        self.transform = nn.Sequential(Linear(config.dim, config.dim), nn.GELU(), LayerNorm(config.dim))
        init_normal(self.transform)
        self.bias_I = nn.Parameter(torch.zeros(items.n_items))

    @staticmethod
    def make_attention(config: BERT4RecConfig) -> nn.Module:
        """What mixes the positions of a block: called with (x_ND, rows)."""
        return Attention(config.dim, config.n_heads, config.dropout)

    def forward(self, batch: Batch) -> Encoded:
        x_ND, aux = self.encode_slots(batch)
        return Encoded(Places.of(batch).unpack(x_ND), aux)

    def encode_slots(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self._states(batch, [Rows.open(batch)] * len(self.blocks))

    def encode_next(self, batch: Batch) -> Encoded:
        """The state at a [MASK] after each history, [B, 1, D]: the last block computes no other."""
        batch = self._with_mask(batch)
        rows, newest = Rows.open(batch), Newest.of(batch)
        x_BD, aux = self._states(batch, [rows] * (len(self.blocks) - 1) + [newest])
        return Encoded(newest.unpack(x_BD), aux)

    def _states(self, batch: Batch, rows: Sequence[Rows | Newest]) -> tuple[Tensor, dict[str, Tensor]]:
        """States of what the rows of the last block ask for, and auxiliary losses."""
        embedded = self.items(batch)
        places = Places.of(batch)
        x_ND = placed(embedded.x_BLD, self.position.weight, places, 0.0)
        x_ND = self.dropout(self.input_norm(x_ND))
        for i, block in enumerate(self.blocks):
            x_ND = block(x_ND, rows[i])
            if i == 0 and embedded.after_block0_BLD is not None:
                x_ND = x_ND + rows[i].asking(places.pack(embedded.after_block0_BLD))
        return self.transform(x_ND), embedded.aux

    def scoring(self) -> ScoringTable:
        return self.items.scoring().with_(bias_I=self.bias_I)

    def _with_mask(self, batch: Batch) -> Batch:
        """[MASK] after the newest item, at its time. A row that has max_len places loses its oldest one."""
        mask_B = torch.full_like(batch.length_B, self.items.mask_index)
        time_B = None if batch.time_BL is None else batch.time_BL[:, -1]
        masked = append(batch, mask_B, time_B, self.max_len)
        if batch.slot_N is None:
            return masked
        return with_slots(masked, min(len(batch.slot_N) + len(mask_B), masked.item_BL.numel()))


class _Block(nn.Module):
    """Attention, then a position-wise feed-forward layer, each normalised after its residual."""

    def __init__(self, config: BERT4RecConfig, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = LayerNorm(config.dim)
        self.up = Linear(config.dim, 4 * config.dim)
        self.down = Linear(4 * config.dim, config.dim)
        self.ffn_norm = LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        init_normal(self)

    def forward(self, x_ND: Tensor, rows: Rows | Newest) -> Tensor:
        x_ND = self.attention_norm(rows.asking(x_ND) + self.dropout(self.attention(x_ND, rows)))
        out_ND: Tensor = self.ffn_norm(self.down.onto(x_ND, self.up(x_ND), self.dropout.share, "gelu"))
        return out_ND
