"""Attention among the items of each row, read from packed slots.

    y = dropout(softmax(q k' / sqrt(K))) v        over the items of a row, causal or not

On a GPU, in 16 bits and for rows that fit one tile, this is `_attention_triton.py`; elsewhere rows are laid
side by side at the longest one's length and PyTorch's attention does the rest.

Dimension key: N slots, M = 3 x D, B rows, L places of a row, D width, H heads, K head width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PackedRows(NamedTuple):
    """Where rows stand among the slots: one after the other from the first slot, each oldest item first."""

    length_B: Tensor
    """int64 items of each row, 0 or more."""
    longest: int
    """No row is longer."""
    causal: bool
    """True where an item looks at itself and at those before it only."""

    @property
    def start_B(self) -> Tensor:
        """int64 first slot of each row."""
        return self.length_B.cumsum(0) - self.length_B


def packed_attention(qkv_NM: Tensor, rows: PackedRows, n_heads: int, dropout: float) -> Tensor:
    """Heads side by side, [N, D]; zero at slots of no row.

    Args:
        qkv_NM: queries, keys and values of the slots side by side, each all heads.
        rows: who may look at whom.
        n_heads: heads that D is cut into.
        dropout: share of the weights that is dropped.
    """
    if qkv_NM.is_cuda:
        from lexrec.kernels import _attention_triton

        if _attention_triton.fits(rows.longest, qkv_NM.shape[1] // 3 // n_heads, qkv_NM.dtype):
            return _attention_triton.packed_attention(qkv_NM, rows, n_heads, dropout)
    return _side_by_side(qkv_NM, rows, n_heads, dropout)


def _side_by_side(qkv_NM: Tensor, rows: PackedRows, n_heads: int, dropout: float) -> Tensor:
    N, L = len(qkv_NM), rows.longest
    place_L = torch.arange(L, device=qkv_NM.device)
    is_item_BL = place_L < rows.length_B[:, None]
    slot_BL = torch.where(is_item_BL, rows.start_B[:, None] + place_L, N)
    qkv_BLM = F.pad(qkv_NM, (0, 0, 0, 1)).index_select(0, slot_BL.flatten())
    q_BHLK, k_BHLK, v_BHLK = qkv_BLM.view(*slot_BL.shape, 3, n_heads, -1).permute(2, 0, 3, 1, 4).unbind()
    # The first place is looked at in any case: a softmax over nothing is not a number.
    may_look = (is_item_BL | (place_L == 0))[:, None, None]
    if rows.causal:
        may_look = may_look & (place_L <= place_L[:, None])
    y_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, attn_mask=may_look, dropout_p=dropout)
    y_MD = y_BHLK.transpose(1, 2).flatten(2).flatten(0, 1)
    return y_MD.new_zeros(N + 1, y_MD.shape[1]).index_copy(0, slot_BL.flatten(), y_MD)[:-1]
