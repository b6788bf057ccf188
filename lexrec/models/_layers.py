"""Pieces that several backbones share.

Dimension key: B batch, L positions, N slots, D width, H heads, K head width, G groups of rows, R rows of one
group, W places of each of them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.data.batch import Batch, Places
from lexrec.kernels.attention import PackedRows, packed_attention
from lexrec.kernels.dense import drop, layer_norm, linear

_NARROWEST = 8
"""Places of a row of the first group; each further one is twice as wide."""


class Rows(NamedTuple):
    """The rows in which attention mixes positions, and which of them may look at which.

    Without slots: the padded rows of the batch, as one group. On a GPU, where shapes must not change from
    batch to batch: no group, a kernel finds each row among the slots. On a CPU: rows of like length together,
    each at the left of a row of 8, 16, 32 ... places, so that a history of five items costs 8 x 8 pairs and
    not 50 x 50.
    """

    places: Places
    """Where each slot stands in the groups, one after the other."""
    shapes: tuple[tuple[int, int], ...]
    """(R, W) of each group."""
    may_look: tuple[Tensor, ...]
    """Of each group, True where a place (row) may look at a place (column); broadcasts to [R, H, W, W]."""
    packed: "Packed | None" = None
    """Rows among the slots, in place of groups."""

    @staticmethod
    def causal(batch: Batch) -> "Rows":
        """Each item looks at itself and at those before it."""
        if not _may_group(batch):
            return _ungrouped(batch, causal=True)
        groups = _Groups.of(batch)
        # At the left of its row an item has only items before it: padding needs no mask.
        masks = (torch.ones(1, 1, W, W, dtype=torch.bool).tril() for _, W in groups.shapes)
        return Rows(groups.places, groups.shapes, tuple(masks))

    @staticmethod
    def open(batch: Batch) -> "Rows":
        """Each item looks at every item; a row of `may_look` is the same for every place."""
        if not _may_group(batch):
            return _ungrouped(batch, causal=False)
        groups = _Groups.of(batch)
        return Rows(groups.places, groups.shapes, groups.is_item())

    def grouped(self) -> "Rows":
        """The same rows with groups."""
        return self if self.packed is None else _padded(self.packed.batch, self.packed.rows.causal)

    def unpack(self, x_ND: Tensor) -> list[Tensor]:
        """[N, D] -> each group's [R, W, D]; zero where there is no item."""
        if len(self.shapes) == 1:
            R, W = self.shapes[0]
            return [self.places.unpack(x_ND).view(R, W, -1)]
        parts = torch.split(self.places.unpack(x_ND)[0], [R * W for R, W in self.shapes])
        return [part.view(R, W, -1) for part, (R, W) in zip(parts, self.shapes, strict=True)]

    def pack(self, parts_RWD: list[Tensor]) -> Tensor:
        """Each group's [R, W, D] -> [N, D]."""
        if len(parts_RWD) == 1:
            return self.places.pack(parts_RWD[0])
        return self.places.pack(torch.cat([part_RWD.flatten(0, 1) for part_RWD in parts_RWD])[None])


def _may_group(batch: Batch) -> bool:
    return batch.slot_N is not None and not batch.slot_N.is_cuda


class Packed(NamedTuple):
    """Rows among the slots of a batch."""

    batch: Batch
    rows: PackedRows


def _ungrouped(batch: Batch, *, causal: bool) -> Rows:
    if batch.slot_N is None:
        return _padded(batch, causal)
    start_B = batch.length_B.cumsum(0) - batch.length_B
    rows = PackedRows(start_B, batch.length_B, batch.item_BL.shape[1], causal)
    return Rows(Places.of(batch), (), (), Packed(batch, rows))


def _padded(batch: Batch, causal: bool) -> Rows:
    may_look = causal_mask(batch.is_item_BL) if causal else key_mask(batch.is_item_BL)
    return Rows(Places.of(batch), (tuple(batch.item_BL.shape),), (may_look,))  # type: ignore[arg-type]


class _Groups(NamedTuple):
    """Rows of like length, on the CPU: their number is asked for."""

    places: Places
    shapes: tuple[tuple[int, int], ...]
    length_B: Tensor
    """Items of each row, in the order of the groups."""

    @staticmethod
    def of(batch: Batch) -> "_Groups":
        assert batch.slot_N is not None
        B, L = batch.item_BL.shape
        width_G = _widths(L)
        group_B = torch.bucketize(batch.length_B, torch.tensor(width_G))
        n_rows_G = torch.bincount(group_B, minlength=len(width_G)).tolist()
        order_B = group_B.argsort(stable=True)
        width_B = torch.tensor(width_G)[group_B[order_B]]
        first_B = torch.empty_like(order_B)
        first_B[order_B] = width_B.cumsum(0) - width_B
        # A slot's place: where its row begins, and its distance from the row's oldest item.
        row_N = (batch.slot_N // L).clamp(max=B - 1)
        place_N = first_B[row_N] + batch.slot_N % L - (L - batch.length_B[row_N])
        n_places = int(width_B.sum())
        place_N = torch.where(batch.slot_N < B * L, place_N, n_places)
        shapes = tuple((R, W) for R, W in zip(n_rows_G, width_G, strict=True) if R)
        return _Groups(Places(1, n_places, place_N), shapes, batch.length_B[order_B])

    def is_item(self) -> tuple[Tensor, ...]:
        """True where a group's places hold an item; everywhere in an empty row, [R, 1, 1, W]."""
        length_parts = torch.split(self.length_B, [R for R, _ in self.shapes])
        return tuple(
            ((torch.arange(W) < length_R[:, None]) | (length_R[:, None] == 0))[:, None, None]
            for length_R, (_, W) in zip(length_parts, self.shapes, strict=True)
        )


def _widths(length: int) -> list[int]:
    widths = []
    width = _NARROWEST
    while width < length:
        widths.append(width)
        width *= 2
    return [*widths, length]


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
        self.qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)

    def forward(self, x_ND: Tensor, rows: Rows) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if rows.packed is not None:
            y_ND = packed_attention(self.qkv(x_ND), rows.packed.rows, self.n_heads, dropout)
            return self.out(y_ND)  # type: ignore[no-any-return]
        mixed = []
        for qkv_RWM, may_look in zip(rows.unpack(self.qkv(x_ND)), rows.may_look, strict=True):
            qkv_3RHWK = qkv_RWM.view(*qkv_RWM.shape[:2], 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
            y_RHWK = attend(qkv_3RHWK, may_look, dropout)
            mixed.append(y_RHWK.transpose(1, 2).flatten(2))
        out_ND: Tensor = self.out(rows.pack(mixed))
        return out_ND


def attend(qkv_3RHWK: Tensor, may_look: Tensor, dropout: float) -> Tensor:
    """Softmax attention with dropout on its weights, [R, H, W, K].

    Args:
        qkv_3RHWK: queries, keys and values.
        may_look: True where a place (row) may look at a place (column), [R or 1, 1, W or 1, W].
        dropout: share of the weights that is dropped.
    """
    if qkv_3RHWK.is_cuda or dropout == 0:
        q_RHWK, k_RHWK, v_RHWK = qkv_3RHWK.unbind()
        return F.scaled_dot_product_attention(q_RHWK, k_RHWK, v_RHWK, attn_mask=may_look, dropout_p=dropout)
    # For a CPU there is no kernel with dropout, and what stands in for one takes twice as many passes.
    _, R, H, W, K = qkv_3RHWK.shape
    q_JWK, k_JWK, v_JWK = qkv_3RHWK.reshape(3, R * H, W, K)
    hidden = torch.zeros(may_look.shape).masked_fill(~may_look, -torch.inf)
    hidden = hidden[0] if len(hidden) == 1 else hidden.expand(-1, H, -1, -1).flatten(0, 1)
    weight_JWW = torch.baddbmm(hidden, q_JWK, k_JWK.transpose(1, 2), alpha=K**-0.5).softmax(-1)
    return torch.bmm(drop(weight_JWW, dropout), v_JWK).view(R, H, W, K)


class Linear(nn.Linear):
    """A linear layer whose gradients are quick on a GPU too."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """A layer norm whose gradients are quick on a GPU too.

    Args:
        dim: width.
        narrow: what comes out only goes into linear layers, so it may have the 16 bits that they take.
    """

    def __init__(self, dim: int, *, narrow: bool = False) -> None:
        super().__init__(dim)
        self.narrow = narrow

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps, self.narrow)


class Dropout(nn.Dropout):
    """Dropout whose draws are quick on a CPU too."""

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.p) if self.training else x


def init_normal(module: nn.Module, std: float = 0.02) -> None:
    """Linear weights from N(0, std), biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
