"""MLTFR: multi-LLM token filtering and routing.

Paper: https://arxiv.org/abs/2604.18200. A plug-in for any id-based backbone: item vectors are enriched
with the token-embedding tables of several language models. No item text is read.

    interest   = mean of E over items (not padding, not [MASK])       [M, d]
    expert_m   = filter and cross-attention over table m              [B, L, d]   (_expert.py)
    G          = softmax(E W_gate + b)                                [B, L, n]   eq. 11
    W_base     = sum_m G_m expert_m                                   [B, L, d]
    W_output   = alpha * W_SC + W_base, zero at padding                           eq. 15
    x          = E + cap(W_output)                                                eq. 18
    scores     = h E^T, the plain table                                           eq. 17

W_SC is there in Round 2 alone (_consensus.py, training/rounds.py); with several widths it is the mean over
their consensus experts. E is what another item encoder makes (`items`), by default the id embedding.

Differences from the paper and its release (options name theirs; preset=paper and preset=release are sets of
them): the interest of a position is the mean of the items up to it (prefix), since the mean of the whole row
leaks the targets of causal training; attention is per user; the choice gets its gradient through the
attention logits, and that gradient stays off the item vectors; noise in training only, against a learnable
logit_scale; one softmax in the gate, with one bias an expert; frozen tables, scaled so that a row's norm is
about 1; the mixture is capped at a share of the item vector's length; experts of one width start alike, so
that their average means something.

Dimension key: B batch, L positions, M interests, U units, Q queries a unit, K tokens, E experts, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lexrec import registry
from lexrec.data.batch import Batch, Places
from lexrec.errors import ConfigError
from lexrec.item_encoders._consensus import Consensus, groups
from lexrec.item_encoders._expert import Ready, TokenExpert
from lexrec.item_encoders._interest import Anchors, Interests, prefix_means, row_means
from lexrec.item_encoders._mltfr_config import MltfrConfig
from lexrec.item_encoders._side_by_side import ahead, side_by_side
from lexrec.item_encoders._table_options import prepared_tables
from lexrec.item_encoders._together import Together
from lexrec.item_encoders.base import Catalogue, Embedded, ExpertView, ItemEncoder, ScoringTable
from lexrec.kernels.dense import added_linear
from lexrec.kernels.gated_mixture import capped, gated_mixture
from lexrec.tokens.table import TokenTable


class Mltfr(ItemEncoder):
    """An item encoder's vectors plus a gated mixture of token experts."""

    config: MltfrConfig

    def __init__(self, config: MltfrConfig, catalogue: Catalogue) -> None:
        super().__init__()
        n_own, n_given = len(config.tables), len(catalogue.tables)
        if n_given != len(config.table_names):
            raise ConfigError(f"mltfr: {len(config.table_names)} tables named, {n_given} given")
        if catalogue.dim % config.n_heads:
            raise ConfigError(f"mltfr: n_heads {config.n_heads} does not divide model.dim {catalogue.dim}")
        self.config = config
        inner = registry.load("item_encoders", config.items.name)  # type: ignore[attr-defined]
        self.items: ItemEncoder = inner(config.items, replace(catalogue, tables=catalogue.tables[n_own:]))
        self.causal = config.interest == "prefix" and self.items.causal
        self.n_items = catalogue.n_items
        self.anchors = Anchors(config.refresh) if config.refresh else None
        tables = prepared_tables(catalogue.tables[:n_own], config)
        self.table_names = tuple(table.name for table in tables)
        self.experts = nn.ModuleList(TokenExpert(t.weight_VW, catalogue.dim, config) for t in tables)
        self.gate = nn.Linear(catalogue.dim, len(tables))
        _init(self, [table.width for table in tables])
        self.consensus = _consensus(config, tables, catalogue.dim)
        self._together: Together | None = None

    def lookup(self, item: Tensor) -> Tensor:
        return self.items.lookup(item)

    def scoring(self) -> ScoringTable:
        return self.items.scoring()

    def forward(self, batch: Batch) -> Embedded:
        ready_E = self._ready()
        plain = self.items(batch)
        e_BLD = plain.x_BLD
        asked, places = self._interests(batch, e_BLD)
        added_UQD = self._added(asked, ready_E)
        added_BLD = added_UQD.view_as(e_BLD) if places is None else places.unpack(added_UQD[:, 0])
        if places is None or places.slot_N is None:
            # Backbones that mix positions freely would carry what stands at padding into the items.
            added_BLD = added_BLD * batch.is_item_BL[:, :, None]
        if self.config.inject == "input":
            return Embedded(e_BLD + added_BLD, plain.aux, plain.after_block0_BLD)
        if plain.after_block0_BLD is not None:
            added_BLD = added_BLD + plain.after_block0_BLD
        return Embedded(e_BLD, plain.aux, added_BLD)

    def _ready(self) -> Sequence[Ready | None] | None:
        """What experts can make before they know their batch, where they can make something.

        None where they have made all they can, and are asked as one.
        """
        if self._together is not None and self._is_frozen():
            return None
        experts: list[TokenExpert] = list(self.experts)  # type: ignore[arg-type]
        if not all(expert.reads_once() for expert in experts):
            return [None] * len(experts)
        return ahead([expert.ahead for expert in experts], self.gate.weight)

    def averaged(self) -> list[str]:
        """Names of the trained parameters that the consensus averages, as `experts.M.NAME`."""
        own = dict(self.named_parameters())
        names = [
            f"experts.{m}.{name}"
            for consensus in self.consensus
            for m in consensus.members  # type: ignore[union-attr]
            for name, _ in consensus.named_parameters()
        ]
        return [name for name in names if own[name].requires_grad]

    def agree(self, first_round: "Mltfr", importance: Mapping[str, Tensor]) -> None:
        """Set the consensus experts from the experts of Round 1.

        Args:
            first_round: the trained encoder; its tables are this one's.
            importance: Fisher importance of each parameter of `averaged()`: its shape, or one number.
        """
        experts = list(first_round.experts)
        weight_E: list[dict[str, Tensor]] = [{} for _ in experts]
        for key, weight in importance.items():
            _, m, name = key.split(".", 2)
            weight_E[int(m)][name] = weight
        for consensus in self.consensus:
            consensus.agree(experts, weight_E)  # type: ignore[operator]

    def _added(self, asked: Interests, ready_E: Sequence[Ready | None] | None) -> Tensor:
        """What the experts, and in Round 2 their consensus, add to each query (eq. 15).

        What experts add is much alike for all users and positions. Unbounded, it outgrows the item vectors
        eightfold within two epochs, and what dropout does to it drowns them: hence the cap.
        """
        gate_RE = self._gate(asked.query_UQD).flatten(0, 1)
        cap, vector_RD = self.config.cap, asked.query_UQD.flatten(0, 1)
        if ready_E is None:
            assert self._together is not None
            out_ERD = self._together(asked).flatten(1, 2)
            return gated_mixture(gate_RE, out_ERD, vector_RD, cap).view_as(asked.query_UQD)
        out_EUQD, chosen_E = zip(*side_by_side(list(self.experts), asked, ready_E), strict=True)
        out_ERD = torch.stack(out_EUQD).flatten(1, 2)
        if not self.consensus:
            return gated_mixture(gate_RE, out_ERD, vector_RD, cap).view_as(asked.query_UQD)
        added_UQD = gated_mixture(gate_RE, out_ERD, vector_RD, None).view_as(asked.query_UQD)
        for consensus in self.consensus:
            assert self.config.consensus is not None
            alpha = self.config.consensus.alpha / len(self.consensus)
            added_UQD = added_UQD + alpha * consensus(asked, list(self.experts), chosen_E)
        return added_UQD if cap is None else capped(added_UQD, asked.query_UQD, cap)

    def _gate(self, query_UQD: Tensor) -> Tensor:
        """Logits of the gate."""
        gate_NE = added_linear(query_UQD.flatten(0, 1), self.gate.weight, self.gate.bias, None, 0.0)
        gate_UQE = gate_NE.view(*query_UQD.shape[:2], -1)
        return gate_UQE.softmax(dim=-1) if self.config.gate == "double_softmax" else gate_UQE

    def _interests(self, batch: Batch, e_BLD: Tensor) -> tuple[Interests, Places | None]:
        # What no gradient passes needs no backward pass.
        vector_BLD = e_BLD if self.config.bends_items else e_BLD.detach()
        if self.config.interest == "sequence":
            return self._whole_rows(e_BLD, row_means(batch, vector_BLD, self.mask_index)), None
        places = Places.of(batch)
        e_ND = places.pack(e_BLD)
        interest_ND = places.pack(prefix_means(batch, vector_BLD, self.mask_index))
        if self.anchors is None:
            return Interests(e_ND[:, None], interest_ND, None), places
        unit_N, interest_MD = self.anchors(places, batch, interest_ND)
        return Interests(e_ND[:, None], interest_MD, unit_N), places

    def _whole_rows(self, query_BQD: Tensor, interest_BD: Tensor) -> Interests:
        """One unit a row, or one for all rows where they pool their tokens."""
        if self.config.pool == "batch":
            query_BQD = query_BQD.flatten(0, 1)[None]
        return Interests(query_BQD, interest_BD, None)

    def freeze(self) -> None:
        self.items.freeze()
        experts: list[TokenExpert] = list(self.experts)  # type: ignore[arg-type]
        for expert in experts:
            expert.freeze()
        self._together = Together.of(experts)
        for expert in experts if self._together is None else ():
            expert.shorten()

    def _is_frozen(self) -> bool:
        """True while no expert has dropped its constants, and nobody asks for a gradient."""
        return not torch.is_grad_enabled() and all(expert.is_frozen for expert in self.experts)

    def thaw(self) -> None:
        self._together = None
        self.items.thaw()
        for expert in self.experts:
            expert.thaw()  # type: ignore[operator]

    @torch.no_grad()
    def inspect(self, batch: Batch) -> list[ExpertView]:
        e_BLD = self.items(batch).x_BLD
        mean_BLD = prefix_means(batch, e_BLD, self.mask_index)
        interest_BD = mean_BLD[:, -1] if self.anchors is None else self.anchors.newest(batch, mean_BLD)
        query_B1D = e_BLD[:, -1:]
        gate_BE = self._gate(query_B1D)[:, 0].softmax(dim=-1)
        asked = self._whole_rows(query_B1D, interest_BD)
        views = []
        for m, expert in enumerate(self.experts):
            _, chosen, attention_UHQK = expert.explained(*asked)  # type: ignore[operator]
            weight_BK = attention_UHQK.mean(1).flatten(0, 1)
            token_BK = chosen.token_MK.expand_as(weight_BK)
            views.append(ExpertView(self.table_names[m], gate_BE[:, m], token_BK, weight_BK))
        return [*views, *self.items.inspect(batch)]


def _init(encoder: Mltfr, width_E: Sequence[int]) -> None:
    """Linear weights from N(0, .02): the mixture starts smaller than the item vectors. Biases zero."""
    if encoder.config.init == "torch":
        return
    for part in (*encoder.experts, encoder.gate):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    if encoder.config.init == "shared":
        # The average of independent starts keeps only a fifth of what an expert's output varies.
        for first, *others in groups(width_E):
            for other in others:
                _copy_weights(encoder.experts[first], encoder.experts[other])


@torch.no_grad()
def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    given = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        if name != "table_VW":
            parameter.copy_(given[name])


def _consensus(config: MltfrConfig, tables: Sequence[TokenTable], dim: int) -> nn.ModuleList:
    """One consensus expert for each width that at least two tables share; none in Round 1.

    Raises:
        ConfigError: no two tables are equally wide, or their rows cannot be averaged.
    """
    if config.consensus is None:
        return nn.ModuleList()
    widths = [table.width for table in tables]
    found = groups(widths)
    if not found:
        raise ConfigError(
            f"mltfr: a consensus needs two tables of one width, these have {', '.join(map(str, widths))}; "
            f"item_encoder.pca={min(widths)} makes them alike, "
            "rounds=null item_encoder.consensus=null trains without one"
        )
    if config.consensus.source == "mean" and any(table.n_tokens < config.k for table in tables):
        raise ConfigError(
            f"mltfr: consensus.source=mean pairs the k-th choices, and a table has fewer than {config.k} "
            "tokens; use consensus.source=concat or a smaller item_encoder.k"
        )
    return nn.ModuleList(
        Consensus(members, widths[members[0]], dim, config, config.consensus) for members in found
    )
