"""Pieces that several backbones share.

Dimension key: B batch, L positions, N slots, D width, H heads, K head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.data.batch import Places


def causal_mask(is_item_BL: Tensor) -> Tensor:
    """True where position l may look at position m, [B, 1, L, L]. Padding looks at itself (no NaN)."""
    L = is_item_BL.shape[1]
    causal_LL = torch.ones(L, L, dtype=torch.bool, device=is_item_BL.device).tril()
    itself_LL = torch.eye(L, dtype=torch.bool, device=is_item_BL.device)
    return (causal_LL & is_item_BL[:, None, :] | itself_LL)[:, None]


def key_mask(is_item_BL: Tensor) -> Tensor:
    """True where every position may look, [B, 1, 1, L]: at items. An empty row looks everywhere (no NaN)."""
    is_empty_B1 = ~is_item_BL.any(dim=1, keepdim=True)
    return (is_item_BL | is_empty_B1)[:, None, None]


class Attention(nn.Module):
    """Multi-head self-attention whose projections run on packed slots."""

    def __init__(self, dim: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_ND: Tensor, places: Places, may_look_B1LL: Tensor) -> Tensor:
        qkv_BLM = places.unpack(self.qkv(x_ND))
        q_BHLK, k_BHLK, v_BHLK = (
            part.view(*part.shape[:2], self.n_heads, -1).transpose(1, 2) for part in qkv_BLM.chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        y_BHLK = F.scaled_dot_product_attention(
            q_BHLK, k_BHLK, v_BHLK, attn_mask=may_look_B1LL, dropout_p=dropout
        )
        out_ND: Tensor = self.out(places.pack(y_BHLK.transpose(1, 2).flatten(2)))
        return out_ND


def init_normal(module: nn.Module, std: float = 0.02) -> None:
    """Linear weights from N(0, std), biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
