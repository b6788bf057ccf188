"""Pieces that several backbones share.

Dimension key: B batch, L positions, N slots, D width, H heads, K head width, G groups of rows, R rows of one
group, W places of each of them.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.data.batch import Batch, Places
from lexrec.kernels.attention import PackedRows, packed_attention
from lexrec.kernels.dense import Activation, Norm, added_linear, drop, layer_norm, linear, normed_linear
from lexrec.kernels.products import product

_NARROWEST = 8
"""Places of a row of the first group; each further one is twice as wide."""


class Heads(NamedTuple):
    """What attention mixes in one group of rows."""

    q_RHQK: Tensor
    k_RHWK: Tensor
    v_RHWK: Tensor
    may_look: Tensor
    """True where a query (row) may look at a place (column), [R or 1, 1, Q or 1, W]."""


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
    """Of each group, True where a place (row) may look at a place (column), [R or 1, 1, W or 1, W]."""
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

    @staticmethod
    def from_the_left(batch: Batch) -> "Rows":
        """Rows that begin with their oldest item, as a recurrence reads them."""
        if _may_group(batch):
            return Rows.causal(batch)
        B, L = batch.item_BL.shape
        place_M = torch.arange(B * L, device=batch.item_BL.device) if batch.slot_N is None else batch.slot_N
        row_M = (place_M // L).clamp(max=B - 1)
        moved_M = row_M * L + (place_M + batch.length_B[row_M]) % L
        moved_M = torch.where(place_M < B * L, moved_M, B * L)
        return Rows(Places(1, B * L, moved_M), ((B, L),), ())

    def grouped(self) -> "Rows":
        """The same rows with groups."""
        return self if self.packed is None else _padded(self.packed.batch, self.packed.rows.causal)

    def heads(self, qkv: nn.Linear, x_ND: Tensor, n_heads: int) -> Iterator[Heads]:
        """Queries, keys and values of each group."""
        for part_RWM, may_look in zip(self.lay(qkv(x_ND)), self.may_look, strict=True):
            q_RHWK, k_RHWK, v_RHWK = part_RWM.view(*part_RWM.shape[:2], 3, n_heads, -1).permute(2, 0, 3, 1, 4)
            yield Heads(q_RHWK, k_RHWK, v_RHWK, may_look)

    def join(self, parts_RHWK: Iterable[Tensor]) -> Tensor:
        """What came of each group's queries, as [N, D]."""
        return self.gather(part_RHWK.transpose(1, 2).flatten(2) for part_RHWK in parts_RHWK)

    def lay(self, x_ND: Tensor) -> list[Tensor]:
        """The slots of each group in their rows, [R, W, D], with finite numbers where nothing may look."""
        parts = [x_ND]
        if self.places.slot_N is not None:
            # The last part is that of unused slots.
            *parts, _ = torch.split(_filled(self.places, x_ND), [*(R * W for R, W in self.shapes), 1])
        return [part.view(*shape, -1) for part, shape in zip(parts, self.shapes, strict=True)]

    def gather(self, parts_RWD: Iterable[Tensor]) -> Tensor:
        """The slots out of the rows of each group, [N, D]."""
        return self.places.pack(torch.cat([part_RWD.flatten(0, 1) for part_RWD in parts_RWD])[None])

    def asking(self, x_ND: Tensor) -> Tensor:
        """The positions that `join` returns."""
        return x_ND


class Newest(NamedTuple):
    """The newest item of each row, which looks at its whole row: all that a last block needs to compute."""

    places: Places
    slot_B: Tensor
    """Slot of each row's newest item."""
    may_look: Tensor
    """As in `Heads`."""
    has_item_B1: Tensor

    @staticmethod
    def of(batch: Batch) -> "Newest":
        places = Places.of(batch)
        if batch.slot_N is None:
            slot_B = torch.arange(1, places.n_rows + 1, device=batch.item_BL.device) * places.length - 1
        else:
            slot_B = (batch.length_B.cumsum(0) - 1).clamp(min=0)
        is_item_BL = batch.is_item_BL
        return Newest(places, slot_B, key_mask(is_item_BL), is_item_BL[:, -1:])

    def heads(self, qkv: nn.Linear, x_ND: Tensor, n_heads: int) -> Iterator[Heads]:
        """Queries of the newest items, keys and values of all."""
        D = qkv.in_features
        q_BD = product(self.asking(x_ND), qkv.weight[:D], qkv.bias[:D])
        kv_MM = product(x_ND, qkv.weight[D:], qkv.bias[D:])
        if self.places.slot_N is not None:
            kv_MM = _filled(self.places, kv_MM)[:-1]
        kv_BLM = kv_MM.view(self.places.n_rows, self.places.length, -1)
        q_BHK = q_BD.view(self.places.n_rows, n_heads, -1)
        k_BHLK, v_BHLK = kv_BLM.view(*kv_BLM.shape[:2], 2, n_heads, -1).permute(2, 0, 3, 1, 4)
        yield Heads(q_BHK[:, :, None], k_BHLK, v_BHLK, self.may_look)

    def join(self, parts_BHJK: Iterable[Tensor]) -> Tensor:
        """What came of the queries, [B, D]."""
        (y_BHJK,) = parts_BHJK
        return y_BHJK[:, :, 0].flatten(1)

    def asking(self, x_ND: Tensor) -> Tensor:
        """[N, D] -> that of the newest items, [B, D]; anything for an empty row."""
        return x_ND.index_select(0, self.slot_B)

    def unpack(self, x_BD: Tensor) -> Tensor:
        """[B, D] -> [B, 1, D]; zero where the row is empty."""
        return x_BD.where(self.has_item_B1, 0)[:, None]

    def grouped(self) -> "Newest":
        """Itself: there is one group."""
        return self


def _filled(places: Places, x_ND: Tensor) -> Tensor:
    """[N, D] -> the flat places and one more, with finite numbers where nothing may look."""
    if torch.is_grad_enabled() or places.slot_N is None:
        return places.spread(x_ND)
    # One pass, where zeros and a copy into them would be three.
    slot_M = places.slot_N.new_zeros(places.n_rows * places.length + 1)
    slot_M.index_copy_(0, places.slot_N, torch.arange(len(x_ND), device=x_ND.device))
    return x_ND.index_select(0, slot_M)


def _may_ask(batch: Batch) -> bool:
    """Whether values may be read here: to ask a GPU would be to wait for it."""
    return not batch.item_BL.is_cuda


def _may_group(batch: Batch) -> bool:
    return batch.slot_N is not None and _may_ask(batch)


class Packed(NamedTuple):
    """Rows among the slots of a batch."""

    batch: Batch
    rows: PackedRows


def _ungrouped(batch: Batch, *, causal: bool) -> Rows:
    if batch.slot_N is None:
        return _padded(batch, causal)
    rows = PackedRows(batch.length_B, batch.item_BL.shape[1], causal)
    return Rows(Places.of(batch), (), (), Packed(batch, rows))


def _padded(batch: Batch, causal: bool) -> Rows:
    is_item_BL = batch.is_item_BL
    # Not with gradients: where they are taken sample by sample, rows are no rows to ask.
    if _may_ask(batch) and not torch.is_grad_enabled() and bool(is_item_BL.all()):
        is_item_BL = is_item_BL[:1]  # One mask serves all rows.
    may_look = causal_mask(is_item_BL) if causal else key_mask(is_item_BL)
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

    def forward(self, x_ND: Tensor, rows: Rows | Newest) -> Tensor:
        out_ND: Tensor = self.out(self.mix(x_ND, rows))
        return out_ND

    def mix(self, x_ND: Tensor, rows: Rows | Newest) -> Tensor:
        """What the heads find, side by side: all but the last projection."""
        if isinstance(rows, Rows) and rows.packed is not None:
            return self._among_slots(self.qkv(x_ND), rows.packed.rows)
        heads = rows.heads(self.qkv, x_ND, self.n_heads)
        return rows.join(attend(group, self._dropout) for group in heads)

    def mix_normed(self, norm: "LayerNorm", x_ND: Tensor, rows: Rows | Newest) -> tuple[Tensor, Tensor]:
        """`mix` of the normed x, and x itself, as in `Linear.after`."""
        if isinstance(rows, Rows) and rows.packed is not None:
            qkv_NM, x_ND = self.qkv.after(norm, x_ND)
            return self._among_slots(qkv_NM, rows.packed.rows), x_ND
        return self.mix(norm(x_ND), rows), x_ND

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def _among_slots(self, qkv_NM: Tensor, rows: PackedRows) -> Tensor:
        return packed_attention(qkv_NM, rows, self.n_heads, self._dropout)


def attend(heads: Heads, dropout: float) -> Tensor:
    """Softmax attention, `dropout` being the share of its weights that is dropped, [R, H, Q, K]."""
    q_RHQK, k_RHWK, v_RHWK, may_look = heads
    if q_RHQK.is_cuda or dropout == 0:
        return F.scaled_dot_product_attention(q_RHQK, k_RHWK, v_RHWK, attn_mask=may_look, dropout_p=dropout)
    # For a CPU there is no kernel with dropout, and what stands in for one takes twice as many passes.
    R, H, Q, K = q_RHQK.shape
    q_JQK, k_JWK, v_JWK = (part.flatten(0, 1) for part in (q_RHQK, k_RHWK, v_RHWK))
    hidden = torch.zeros(may_look.shape).masked_fill(~may_look, -torch.inf)
    hidden = hidden[0] if len(hidden) == 1 else hidden.expand(-1, H, -1, -1).flatten(0, 1)
    weight_JQW = torch.baddbmm(hidden, q_JQK, k_JWK.transpose(1, 2), alpha=K**-0.5).softmax(-1)
    return torch.bmm(drop(weight_JQW, dropout), v_JWK).view(R, H, Q, K)


class Linear(nn.Linear):
    """A linear layer whose gradients are quick on a GPU too, and whose values are on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return linear(x, self.weight, self.bias)
        return product(x, self.weight, self.bias)

    def after(self, norm: "LayerNorm", x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Of the normed x; and x, which further uses of it should read (see `normed_linear`)."""
        return normed_linear(x_ND, Norm(norm.weight, norm.bias, norm.eps), self.weight, self.bias)

    def onto(self, residual_NE: Tensor, x_ND: Tensor, dropout: float, activation: Activation = "") -> Tensor:
        """The residual plus what dropout leaves of this layer's output for activation(x)."""
        return added_linear(x_ND, self.weight, self.bias, residual_NE, dropout, activation)


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

    @property
    def share(self) -> float:
        """What is dropped now: nothing outside training."""
        return self.p if self.training else 0.0


def init_normal(module: nn.Module, std: float = 0.02) -> None:
    """Linear weights from N(0, std), biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
