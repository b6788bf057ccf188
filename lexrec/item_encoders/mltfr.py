"""MLTFR: multi-LLM token filtering and routing, Round 1.

Paper: https://arxiv.org/abs/2604.18200. A plug-in for any id-based backbone: item vectors are enriched
with the token-embedding tables of several language models. No item text is read.

    interest   = mean of E over items (not padding, not [MASK])       [M, d]
    expert_m   = filter and cross-attention over table m              [B, L, d]   (_expert.py)
    G          = softmax(E W_gate + b)                                [B, L, n]   eq. 11
    x          = E + cap(sum_m G_m expert_m), zero at padding                     eq. 15, 18
    scores     = h E^T, the plain table                                           eq. 17

Differences from the paper and its release (options name theirs): the interest of a position is the mean
of the items up to it (prefix), since the mean of the whole row leaks the targets of causal training;
attention is per user; the choice gets its gradient through the attention logits, and that gradient stays off
the item vectors; noise in training only, against a learnable logit_scale; one softmax in the gate; frozen
tables, scaled so that a row's norm is about 1; the mixture is capped at a share of the item vector's length.

Dimension key: B batch, L positions, N slots, M interests, U units, Q queries a unit, K tokens, E experts,
D width.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lexrec.data.batch import Batch, Places
from lexrec.errors import ConfigError
from lexrec.item_encoders._expert import TokenExpert
from lexrec.item_encoders._mltfr_config import MltfrConfig
from lexrec.item_encoders._table_options import prepared_tables
from lexrec.item_encoders.base import Catalogue, Embedded, ExpertView, ItemEncoder, ScoringTable
from lexrec.item_encoders.id_embedding import id_table, table_scoring


class Interests(NamedTuple):
    """What tokens are chosen by, and who asks for them."""

    query_UQD: Tensor
    interest_MD: Tensor
    unit_U: Tensor | None
    """Which interest each unit reads; None: unit u reads interest u."""


class Mltfr(ItemEncoder):
    """Id embedding plus a gated mixture of token experts."""

    config: MltfrConfig

    def __init__(self, config: MltfrConfig, catalogue: Catalogue) -> None:
        super().__init__()
        if len(catalogue.tables) != len(config.tables):
            raise ConfigError(f"mltfr: {len(config.tables)} tables named, {len(catalogue.tables)} given")
        if catalogue.dim % config.n_heads:
            raise ConfigError(f"mltfr: n_heads {config.n_heads} does not divide model.dim {catalogue.dim}")
        self.config = config
        self.causal = config.interest == "prefix"
        self.n_items = catalogue.n_items
        self.embedding = id_table(catalogue)
        tables = prepared_tables(catalogue.tables, config)
        self.table_names = tuple(table.name for table in tables)
        self.experts = nn.ModuleList(TokenExpert(t.weight_VW, catalogue.dim, config) for t in tables)
        self.gate = nn.Linear(catalogue.dim, len(tables))
        _init(self)

    def lookup(self, item: Tensor) -> Tensor:
        vector: Tensor = self.embedding(item)
        return vector

    def scoring(self) -> ScoringTable:
        return table_scoring(self.embedding, self.n_items)

    def forward(self, batch: Batch) -> Embedded:
        e_BLD = self.lookup(batch.item_BL)
        asked, places = self._interests(batch, e_BLD)
        mixed_UQD = self._mix(asked)
        mixed_BLD = mixed_UQD if places is None else places.unpack(mixed_UQD[:, 0])
        # Backbones that mix positions freely would carry what stands at padding into the items.
        added_BLD = self._capped(mixed_BLD, e_BLD) * batch.is_item_BL[:, :, None]
        if self.config.inject == "after_block0":
            return Embedded(e_BLD, {}, added_BLD)
        return Embedded(e_BLD + added_BLD, {})

    def _mix(self, asked: Interests) -> Tensor:
        gate_UQE = self._gate(asked.query_UQD)
        mixed_UQD = torch.zeros_like(asked.query_UQD)
        for m, expert in enumerate(self.experts):
            out_UQD, _, _ = expert(*asked)
            mixed_UQD = mixed_UQD + gate_UQE[..., m, None] * out_UQD
        return mixed_UQD

    def _capped(self, mixed_BLD: Tensor, e_BLD: Tensor) -> Tensor:
        """The mixture, shortened where it would outgrow the item vector.

        What experts add is much alike for all users and positions. Unbounded, it outgrows the item vectors
        eightfold within two epochs, and what dropout does to it drowns them.
        """
        if self.config.cap is None:
            return mixed_BLD
        longest_BL1 = self.config.cap * e_BLD.detach().norm(dim=-1, keepdim=True)
        length_BL1 = mixed_BLD.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        capped_BLD: Tensor = mixed_BLD * (longest_BL1 / length_BL1).clamp(max=1)
        return capped_BLD

    def _gate(self, query_UQD: Tensor) -> Tensor:
        gate_UQE: Tensor = self.gate(query_UQD).softmax(dim=-1)
        return gate_UQE.softmax(dim=-1) if self.config.gate == "double_softmax" else gate_UQE

    def _interests(self, batch: Batch, e_BLD: Tensor) -> tuple[Interests, Places | None]:
        if self.config.interest == "sequence":
            return Interests(e_BLD, self._prefix_means(batch, e_BLD)[:, -1], None), None
        places = Places.of(batch)
        e_ND, interest_ND = places.pack(e_BLD), places.pack(self._prefix_means(batch, e_BLD))
        if not self.config.refresh:
            return Interests(e_ND[:, None], interest_ND, None), places
        order_BL = batch.is_item_BL.cumsum(1)
        unit_N, interest_MD = self._anchored(places, order_BL, interest_ND)
        return Interests(e_ND[:, None], interest_MD, unit_N), places

    def _prefix_means(self, batch: Batch, e_BLD: Tensor) -> Tensor:
        """Mean item vector of each prefix; [MASK] counts only where nothing else has come yet."""
        is_item_BL1 = batch.is_item_BL[..., None]
        is_known_BL1 = is_item_BL1 & (batch.item_BL != self.mask_index)[..., None]
        n_known_BL1 = is_known_BL1.cumsum(1)
        known_BLD = (e_BLD * is_known_BL1).cumsum(1) / n_known_BL1.clamp(min=1)
        any_BLD = (e_BLD * is_item_BL1).cumsum(1) / is_item_BL1.cumsum(1).clamp(min=1)
        return torch.where(n_known_BL1 > 0, known_BLD, any_BLD)

    def _anchored(self, places: Places, order_BL: Tensor, interest_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Interests at anchors only, and for each slot the latest anchor of its row.

        Slots stand in row order and every row's first item is an anchor, so a prefix sum never crosses rows.
        """
        order_N = places.pack(order_BL[..., None])[:, 0]
        is_anchor_N = _anchors(places.length, self.config.refresh, order_N.device)[order_N]
        unit_N = (is_anchor_N.cumsum(0) - 1).clamp(min=0)
        # On a GPU the shape must not depend on the data; elsewhere only real anchors are computed.
        N = len(order_N)
        M = N if order_N.is_cuda else max(int(is_anchor_N.sum()), 1)
        place_N = torch.where(is_anchor_N, unit_N, M)
        interest_MD = interest_ND.new_zeros(M + 1, interest_ND.shape[1])
        return unit_N, interest_MD.index_copy(0, place_N, interest_ND)[:M]

    def _newest_interest(self, batch: Batch, e_BLD: Tensor) -> Tensor:
        """What the newest position chooses by: its own prefix, or that of the latest anchor."""
        mean_BLD = self._prefix_means(batch, e_BLD)
        if not self.config.refresh:
            return mean_BLD[:, -1]
        B, L = batch.item_BL.shape
        is_anchor = _anchors(L, self.config.refresh, e_BLD.device)
        anchor_of_length = (is_anchor * torch.arange(L + 1, device=e_BLD.device)).cummax(0).values
        length_B = batch.is_item_BL.sum(1)
        place_B = L - 1 - (length_B - anchor_of_length[length_B])
        return mean_BLD[torch.arange(B, device=e_BLD.device), place_B]

    def freeze(self) -> None:
        for expert in self.experts:
            expert.freeze()  # type: ignore[operator]

    def thaw(self) -> None:
        for expert in self.experts:
            expert.thaw()  # type: ignore[operator]

    @torch.no_grad()
    def inspect(self, batch: Batch) -> list[ExpertView]:
        e_BLD = self.lookup(batch.item_BL)
        interest_BD = self._newest_interest(batch, e_BLD)
        query_B1D = e_BLD[:, -1:]
        gate_BE = self._gate(query_B1D)[:, 0]
        views = []
        for m, expert in enumerate(self.experts):
            _, chosen, attention_BHQK = expert(query_B1D, interest_BD, None)
            weight_BK = attention_BHQK[:, :, 0].mean(1)
            views.append(ExpertView(self.table_names[m], gate_BE[:, m], chosen.token_MK, weight_BK))
        return views


@lru_cache(maxsize=8)
def _anchors(n: int, refresh: float, device: torch.device) -> Tensor:
    """True at prefix lengths where tokens are chosen anew: each at least (1 + refresh) times the last."""
    is_anchor = torch.zeros(n + 1, dtype=torch.bool)
    length = 1
    while length <= n:
        is_anchor[length] = True
        length = max(length + 1, int(length * (1 + refresh)))
    return is_anchor.to(device)


def _init(encoder: Mltfr) -> None:
    """Linear weights from N(0, .02): the mixture starts smaller than the item vectors. Biases zero."""
    for part in (*encoder.experts, encoder.gate):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
