"""SASRec: causal self-attention over item histories.

Paper: Kang & McAuley 2018, Self-Attentive Sequential Recommendation, https://arxiv.org/abs/1808.09781

    x_t = E[item_t] + P[t]                          eq. 1; the newest item has the last row of P
    S   = softmax(Q K^T / sqrt(d/h), causal) V      eq. 2-4
    F   = W2 relu(W1 S + b1) + b2                   eq. 5
    r_i = <F_t, E[i]>                               eq. 7, one table for input and output

Differences from the official code: several losses instead of BCE alone (objectives/); norm="pre"
normalises the input of each sub-layer as the paper writes it (the code keeps the normalised query as its
residual), norm="post" as BERT does; embeddings start from N(0, .02) and are not multiplied by sqrt(d).

The block of LiGR (LinkedIn 2025, https://arxiv.org/abs/2502.03417) is norm="pre", gated=true; the one that
eSASRec (https://arxiv.org/abs/2508.06450) takes from it has activation="swiglu" too (recipe sasrec_ligr):

    x'  = x + sigmoid(W_g x + b_g) * f(norm(x))     f: attention, then the feed-forward layer; a gate each
    f   = W2 (silu(W_a n + b_a) * (W_b n + b_b)) + b2                     the feed-forward layer as SwiGLU

Differences from eSASRec's code: linear layers of SwiGLU have biases; no dropout inside it.

Dimension key: B batch, L positions, N slots, D width.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from lexrec.data.batch import Batch, Places
from lexrec.item_encoders.base import ItemEncoder
from lexrec.kernels.dense import Activation, activated
from lexrec.kernels.place import placed
from lexrec.models._layers import Attention, Dropout, LayerNorm, Linear, Newest, Rows, init_normal
from lexrec.models.base import Encoded, ModelConfig, SequenceModel


class SASRecConfig(ModelConfig):
    """Sizes of SASRec."""

    name: Literal["sasrec"] = "sasrec"
    n_layers: int = Field(2, ge=1)
    n_heads: int = Field(2, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    norm: Literal["pre", "post"] = "pre"
    """Where each block normalises: the input of its sub-layers, or their sum with the residual."""
    input_norm: bool = False
    """Normalise the input of the first block too: faster at first (post always does)."""
    ffn_factor: int = Field(1, ge=1)
    """Inner width of the feed-forward layer, in multiples of dim."""
    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    """swiglu has one matrix more: half as many parameters again."""
    gated: bool = False
    """Each sub-layer's residual passes a gate that reads the input (LiGR); needs norm=pre."""

    @model_validator(mode="after")
    def _gates_fit(self) -> Self:
        if self.gated and self.norm != "pre":
            raise ValueError(f"gated residuals go with norm=pre, got norm={self.norm}")
        return self


class SASRec(SequenceModel):
    """Causal Transformer over item vectors with learned positions."""

    causal = True
    layout = "packed"

    config: SASRecConfig

    def __init__(self, config: SASRecConfig, items: ItemEncoder) -> None:
        super().__init__()
        self.config = config
        self.items = items
        self.max_len = config.max_len
        self.position = nn.Embedding(config.max_len, config.dim)
        nn.init.normal_(self.position.weight, std=0.02)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layers))
        is_pre_norm = config.norm == "pre"
        has_input_norm = config.input_norm or not is_pre_norm
        self.input_norm = LayerNorm(config.dim) if has_input_norm else nn.Identity()
        self.final_norm = LayerNorm(config.dim) if is_pre_norm else nn.Identity()

    def forward(self, batch: Batch) -> Encoded:
        x_ND, aux = self.encode_slots(batch)
        return Encoded(Places.of(batch).unpack(x_ND), aux)

    def encode_slots(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self._states(batch, [Rows.causal(batch)] * len(self.blocks))

    def encode_next(self, batch: Batch) -> Encoded:
        """The state that predicts the next item, [B, 1, D]; the last block computes no other."""
        rows, newest = Rows.causal(batch), Newest.of(batch)
        x_BD, aux = self._states(batch, [rows] * (len(self.blocks) - 1) + [newest])
        return Encoded(newest.unpack(x_BD), aux)

    def _states(self, batch: Batch, rows: Sequence[Rows | Newest]) -> tuple[Tensor, dict[str, Tensor]]:
        """States of what the rows of the last block ask for, and auxiliary losses."""
        embedded = self.items(batch)
        places = Places.of(batch)
        if isinstance(self.input_norm, nn.Identity):
            x_ND = placed(embedded.x_BLD, self.position.weight, places, self.dropout.share)
        else:
            x_ND = placed(embedded.x_BLD, self.position.weight, places, 0.0)
            x_ND = self.dropout(self.input_norm(x_ND))
        for i, block in enumerate(self.blocks):
            x_ND = block(x_ND, rows[i])
            if i == 0 and embedded.after_block0_BLD is not None:
                x_ND = x_ND + rows[i].asking(places.pack(embedded.after_block0_BLD))
        return self.final_norm(x_ND), embedded.aux


class _Block(nn.Module):
    """Self-attention, then a position-wise feed-forward layer, each with a residual."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        dim, inner = config.dim, config.ffn_factor * config.dim
        self.is_pre_norm = config.norm == "pre"
        self.activation: Literal["relu", "gelu", "swiglu"] = config.activation
        self.attention = Attention(dim, config.n_heads, config.dropout)
        self.attention_norm = LayerNorm(dim, narrow=self.is_pre_norm)
        self.up = Linear(dim, 2 * inner if config.activation == "swiglu" else inner)
        self.down = Linear(inner, dim)
        self.ffn_norm = LayerNorm(dim, narrow=self.is_pre_norm)
        self.dropout = Dropout(config.dropout)
        self.attention_gate = Linear(dim, dim) if config.gated else None
        self.ffn_gate = Linear(dim, dim) if config.gated else None
        init_normal(self)

    def forward(self, x_ND: Tensor, rows: Rows | Newest) -> Tensor:
        if self.is_pre_norm:
            mixed_ND, x_ND = self.attention.mix_normed(self.attention_norm, x_ND, rows)
            x_ND = self._added(self.attention.out, self.attention_gate, rows.asking(x_ND), mixed_ND)
            inner_NM, x_ND = self.up.after(self.ffn_norm, x_ND)
            return self._added(self.down, self.ffn_gate, x_ND, *self._activated(inner_NM))
        mixed_ND = self.attention.mix(x_ND, rows)
        x_ND = self.attention_norm(self.attention.out.onto(rows.asking(x_ND), mixed_ND, self.dropout.share))
        inner_NM, activation = self._activated(self.up(x_ND))
        out_ND: Tensor = self.ffn_norm(self.down.onto(x_ND, inner_NM, self.dropout.share, activation))
        return out_ND

    def _activated(self, inner_NM: Tensor) -> tuple[Tensor, Activation]:
        """What the last layer reads, and the activation that is left to it."""
        if self.activation != "swiglu":
            return inner_NM, self.activation
        gate_NM, value_NM = inner_NM.chunk(2, dim=-1)
        return F.silu(gate_NM) * value_NM, ""

    def _added(
        self, last: Linear, gate: Linear | None, x_ND: Tensor, inner_NM: Tensor, activation: Activation = ""
    ) -> Tensor:
        """The residual x plus a sub-layer, through its gate where there is one."""
        if gate is None:
            return last.onto(x_ND, inner_NM, self.dropout.share, activation)
        out_ND: Tensor = x_ND + gate(x_ND).sigmoid() * self.dropout(last(activated(inner_NM, activation)))
        return out_ND
