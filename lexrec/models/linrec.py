"""LinRec: BERT4Rec's encoder with attention whose cost is linear in the length of the history.

Paper: Liu et al. 2023, LinRec: Linear Attention Mechanism for Long-term Sequential Recommender Systems,
https://arxiv.org/abs/2411.01537

    q_t = elu(W_Q x_t) / |elu(W_Q x_t)|               L2 norm over the width K of one head
    k_t = elu(W_K x_t) / |elu(W_K x_t)|
    y_t = q_t (sum over items s of k_s^T v_s) / sqrt(K)      no softmax: the sum is one [K, K] matrix a head
    A   = LN(x + W_O y)                               then the feed-forward layer and head of BERT4Rec

Differences from the official code: keys and values are zero at padding, which it lets in; the norms have
a floor, so that a zero vector stays zero; it is trained by cloze and read at a [MASK] (models/bert4rec.py).

Dimension key: B batch, L positions, N slots, D width, H heads, K head width of keys, V of values.
"""

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.models._layers import Linear, Newest, Rows
from lexrec.models.bert4rec import BERT4Rec, BERT4RecConfig

_SMALLEST_NORM = 1e-6


class LinRecConfig(BERT4RecConfig):
    """Sizes of LinRec."""

    name: Literal["linrec"] = "linrec"  # type: ignore[assignment]


class LinRec(BERT4Rec):
    """BERT4Rec with linear attention."""

    config: LinRecConfig

    @staticmethod
    def make_attention(config: BERT4RecConfig) -> nn.Module:
        return LinearAttention(config.dim, config.n_heads)


def linear_attention(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLV: Tensor, is_key_B1L1: Tensor) -> Tensor:
    """Every query against the sum of all keys and values, [B, H, L, V]; never a matrix of L x L.

    Args:
        q_BHLK: queries as projected.
        k_BHLK: keys as projected.
        v_BHLV: values.
        is_key_B1L1: True where keys and values count.
    """
    q_BHLK = F.normalize(F.elu(q_BHLK), dim=-1, eps=_SMALLEST_NORM)
    k_BHLK = F.normalize(F.elu(k_BHLK), dim=-1, eps=_SMALLEST_NORM) * is_key_B1L1
    memory_BHKV = k_BHLK.transpose(-1, -2) @ (v_BHLV * is_key_B1L1)
    y_BHLV: Tensor = (q_BHLK @ memory_BHKV) / math.sqrt(q_BHLK.shape[-1])
    return y_BHLV


class LinearAttention(nn.Module):
    """Multi-head linear attention whose projections run on packed slots."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)

    def forward(self, x_ND: Tensor, rows: Rows | Newest) -> Tensor:
        rows, mixed = rows.grouped(), []
        for q_RHQK, k_RHWK, v_RHWK, may_look in rows.heads(self.qkv, x_ND, self.n_heads):
            # What one place may look at, all may.
            mixed.append(linear_attention(q_RHQK, k_RHWK, v_RHWK, may_look.transpose(-1, -2)))
        out_ND: Tensor = self.out(rows.join(mixed))
        return out_ND
