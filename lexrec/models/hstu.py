"""HSTU: pointwise aggregated attention, gated, with biases of position and time.

Paper: Zhai et al. 2024, Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for
Generative Recommendations, https://arxiv.org/abs/2402.17152

    x_t = sqrt(d) E[item_t] + P[t]                        the newest item has the last row of P
    [u | v | q | k] = silu(LN(x) W)                       eq. 1, no bias
    A_ts = silu(q_t k_s + p[t - s] + w[bucket_ts]) / n    eq. 2, s <= t, no softmax; n = max_len
    x'  = x + W_o drop(u * LN(A v)) + b_o                 eq. 3
    r_i = <x'_t, E[i]> / (|x'_t| |E[i]| temperature)

    bucket_ts = min(128, floor(ln(max(1, |now_t - time_s|)) / .301))

n is max_len however long the row is, so that trimming and packing change nothing. Without times (a data set
that has none, or a history served without them) the time bias is left out.

What `now_t` is: the time at which position t is asked for its next item. With now="next" (the official
code) it is the time of event t + 1; the newest position of a row has no next event and uses its own time, in
training and when it serves, as though it were asked at once. The official code hands it the target's time.
With now="own" every position uses the time of its own event, so the newest position is like all others.
Either way no time enters that is later than the row's newest event. Times are in the data set's unit:
microseconds for timestamps, else the integers as given; `time_scale` makes seconds of them. Buckets are
logarithmic and reach e^38, so that a wrong scale only shifts them.

Differences from the official code: positions are counted from the newest item; W_o starts from N(0, .02).
The LN have no weights and eps 1e-6, and each block has its own biases, as there.

Dimension key: B batch, L positions (query), M positions (key), N slots, H heads, K head width, D width;
G groups of rows (`Rows`), R rows of one, W places of each.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lexrec.data.batch import Batch, Places
from lexrec.item_encoders.base import ItemEncoder, ScoringTable
from lexrec.models._layers import Dropout, Linear, Rows, init_normal
from lexrec.models.base import Encoded, ModelConfig, SequenceModel

N_BUCKETS = 129
_BUCKET_WIDTH = 0.301
_EPS = 1e-6


class HSTUConfig(ModelConfig):
    """Sizes of HSTU, its head, and how it reads times."""

    name: Literal["hstu"] = "hstu"
    n_layers: int = Field(2, ge=1)
    n_heads: int = Field(1, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    temperature: float = Field(0.05, gt=0)
    """Divides the cosine of a state and an item."""
    time_scale: float = Field(1.0, gt=0)
    """Seconds in one unit of the data set's times: 1e-6 where they were timestamps."""
    now: Literal["next", "own"] = "next"
    """When a position is asked for its next item: at the next event's time, or at its own."""


class HSTU(SequenceModel):
    """Gated attention without softmax over item vectors with learned positions."""

    causal = True
    layout = "packed"

    config: HSTUConfig

    def __init__(self, config: HSTUConfig, items: ItemEncoder) -> None:
        super().__init__()
        self.config = config
        self.items = items
        self.max_len = config.max_len
        self.position = nn.Embedding(config.max_len, config.dim)
        nn.init.normal_(self.position.weight, std=config.dim**-0.5)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layers))

    def forward(self, batch: Batch) -> Encoded:
        embedded = self.items(batch)
        places, scale = Places.of(batch), math.sqrt(self.config.dim)
        x_BLD = scale * embedded.x_BLD + self.position.weight[-places.length :]
        x_ND = self.dropout(places.pack(x_BLD))
        rows = Rows.causal(batch).grouped()
        bucket_GRWW = self._buckets(batch, rows)
        for i, block in enumerate(self.blocks):
            x_ND = block(x_ND, rows, bucket_GRWW)
            if i == 0 and embedded.after_block0_BLD is not None:
                x_ND = x_ND + scale * places.pack(embedded.after_block0_BLD)
        return Encoded(places.unpack(x_ND), embedded.aux)

    def scoring(self) -> ScoringTable:
        return self.items.scoring().with_(scale=1 / self.config.temperature, normalise=True)

    def _buckets(self, batch: Batch, rows: Rows) -> Sequence[Tensor | None]:
        """Of each group of rows, the bucket of each pair of places; none without times."""
        if batch.time_BL is None:
            return [None] * len(rows.shapes)
        now_BL = asked_at(batch.time_BL, self.config.now)
        times_N2 = Places.of(batch).pack(torch.stack([now_BL, batch.time_BL], dim=-1))
        scale = self.config.time_scale
        return [time_buckets(part[..., 0], part[..., 1], scale) for part in rows.lay(times_N2)]


def asked_at(time_BL: Tensor, now: Literal["next", "own"]) -> Tensor:
    """When each position is asked for its next item."""
    return time_BL if now == "own" else torch.cat([time_BL[:, 1:], time_BL[:, -1:]], dim=1)


def time_buckets(now_BL: Tensor, time_BL: Tensor, time_scale: float) -> Tensor:
    """Bucket of the time from each position's item to when each other position is asked, [B, L, M]."""
    # Integers are subtracted as they are: float32 holds no microsecond of this century.
    seconds_BLM = (now_BL[:, :, None] - time_BL[:, None, :]).abs().float() * time_scale
    bucket_BLM = (seconds_BLM.clamp(min=1).log() / _BUCKET_WIDTH).floor().long()
    return bucket_BLM.clamp(max=N_BUCKETS - 1)


class _Block(nn.Module):
    """Gates, values, queries and keys from one projection; attention without softmax; a residual."""

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.max_len = config.max_len
        self.uvqk = Linear(config.dim, 4 * config.dim, bias=False)
        self.out = Linear(config.dim, config.dim)
        self.position_bias = nn.Parameter(0.02 * torch.randn(config.max_len))
        self.time_bias = nn.Parameter(0.02 * torch.randn(N_BUCKETS))
        self.dropout = Dropout(config.dropout)
        init_normal(self)

    def forward(self, x_ND: Tensor, rows: Rows, bucket_GRWW: Sequence[Tensor | None]) -> Tensor:
        dim = x_ND.shape[-1]
        uvqk_NM = F.silu(self.uvqk(F.layer_norm(x_ND, (dim,), eps=_EPS)))
        groups = zip(rows.lay(uvqk_NM[:, dim:]), rows.may_look, bucket_GRWW, strict=True)
        y_ND = rows.gather(self._mixed(*group) for group in groups)
        gated_ND = uvqk_NM[:, :dim] * F.layer_norm(y_ND, (dim,), eps=_EPS)
        out_ND: Tensor = x_ND + self.out(self.dropout(gated_ND))
        return out_ND

    def _mixed(self, vqk_RWM: Tensor, may_look: Tensor, bucket_RWW: Tensor | None) -> Tensor:
        """What each place makes of the values it looks at, [R, W, D]."""
        R, W, _ = vqk_RWM.shape
        v_RHWK, q_RHWK, k_RHWK = vqk_RWM.view(R, W, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        logit_RHWW = q_RHWK @ k_RHWK.transpose(-1, -2) + self._bias(W, bucket_RWW)
        weight_RHWW = F.silu(logit_RHWW) / self.max_len * may_look
        mixed_RWD: Tensor = (weight_RHWW @ v_RHWK).transpose(1, 2).flatten(2)
        return mixed_RWD

    def _bias(self, length: int, bucket_BLM: Tensor | None) -> Tensor:
        """Bias of each pair, the same for every head, [1 or B, 1, L, M]."""
        age_L = torch.arange(length, device=self.position_bias.device)
        bias_LM = self.position_bias[(age_L[:, None] - age_L).clamp(min=0)]
        if bucket_BLM is None:
            return bias_LM[None, None]
        # A bucket takes the gradients of many pairs: an embedding adds them in parallel, indexing one by one.
        time_BLM = F.embedding(bucket_BLM, self.time_bias[:, None])[..., 0]
        return bias_LM + time_BLM[:, None]
