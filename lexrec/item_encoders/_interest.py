"""What tokens are chosen by: the mean item vector of a row, or of each of its prefixes.

Dimension key: B batch, L positions, N slots, M interests, U units, Q queries a unit, D width.
"""

from bisect import bisect_right
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lexrec.data.batch import Batch, Places
from lexrec.errors import ConfigError
from lexrec.kernels import means

_LONGEST = 8192
"""Longest row that anchors are known for."""


class Interests(NamedTuple):
    """What tokens are chosen by, and who asks for them."""

    query_UQD: Tensor
    interest_MD: Tensor
    unit_U: Tensor | None
    """Which interest each unit reads; None: unit u reads interest u."""


def prefix_means(batch: Batch, e_BLD: Tensor, mask_index: int) -> Tensor:
    """Mean item vector of each prefix, [B, L, D]; [MASK] counts only where nothing else has come yet.

    There all items so far are [MASK], and their mean is the vector that stands there.
    """
    return means.prefix_means(e_BLD, _is_known(batch, mask_index))


def row_means(batch: Batch, e_BLD: Tensor, mask_index: int) -> Tensor:
    """That of each whole row, [B, D]."""
    return means.row_means(e_BLD, _is_known(batch, mask_index))


def _is_known(batch: Batch, mask_index: int) -> Tensor:
    return batch.is_item_BL & (batch.item_BL != mask_index)


class Anchors(nn.Module):
    """The prefixes that choose tokens anew; those between two anchors keep the choice of the first."""

    is_anchor_L: Tensor

    def __init__(self, refresh: float) -> None:
        super().__init__()
        self.lengths = anchor_lengths(_LONGEST, refresh)
        is_anchor_L = torch.zeros(_LONGEST + 1, dtype=torch.bool)
        is_anchor_L[self.lengths] = True
        self.register_buffer("is_anchor_L", is_anchor_L, persistent=False)

    def forward(self, places: Places, batch: Batch, interest_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Interests at anchors only, and for each slot the latest anchor of its row.

        Slots stand in row order and every row's first item is an anchor, so a prefix sum never crosses rows.
        How many anchors there can be follows from the shape alone, so nothing waits for the device.
        """
        B, L, N = places.n_rows, places.length, len(interest_ND)
        _require_known(L)
        order_N = places.pack(batch.is_item_BL.cumsum(1)[..., None])[:, 0]
        is_anchor_N = self.is_anchor_L[order_N]
        if places.slot_N is not None:
            is_anchor_N = is_anchor_N & (places.slot_N < B * L)
        M = max(min(N, B * bisect_right(self.lengths, L)), 1)
        unit_N = (is_anchor_N.cumsum(0) - 1).clamp(min=0)
        place_N = torch.where(is_anchor_N, unit_N, M)
        interest_MD = interest_ND.new_zeros(M + 1, interest_ND.shape[1])
        return unit_N, interest_MD.index_copy(0, place_N, interest_ND)[:M]

    def newest(self, batch: Batch, mean_BLD: Tensor) -> Tensor:
        """The interest that each row's newest position goes by, [B, D]."""
        B, L = batch.item_BL.shape
        _require_known(L)
        length = torch.arange(L + 1, device=mean_BLD.device)
        anchor_of_length = (self.is_anchor_L[: L + 1] * length).cummax(0).values
        length_B = batch.is_item_BL.sum(1)
        place_B = L - 1 - (length_B - anchor_of_length[length_B])
        return mean_BLD[torch.arange(B, device=mean_BLD.device), place_B]


def anchor_lengths(n: int, refresh: float) -> list[int]:
    """Prefix lengths up to n where tokens are chosen anew: each at least (1 + refresh) times the last."""
    lengths, length = [], 1
    while length <= n:
        lengths.append(length)
        length = max(length + 1, int(length * (1 + refresh)))
    return lengths


def _require_known(length: int) -> None:
    if length > _LONGEST:
        raise ConfigError(
            f"mltfr: refresh reads rows of at most {_LONGEST} items, got {length}; "
            "set item_encoder.refresh=0 or a smaller model.max_len"
        )
