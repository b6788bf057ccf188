"""A token table added to item vectors as it is: the controls LLM-TE and LLM-RE of MLTFR's first figure.

    A       = table W_align + b                                        [V, d]
    I_i     = the K rows of A nearest to E_i by cosine                 [K]
    x_i     = E_i + cap(mean over tables of mean over I_i of A)        [d]
    scores  = h E^T, the plain table

The paper (https://arxiv.org/abs/2604.18200) adds a token table to the sequence and does not say how [V, d] is
added to [L, d]; this operation is ours. Of an MLTFR expert it has only the choice: no interest, no noise, no
attention, no gate. Gradients reach W_align through the mean. Unbounded (cap=null) what is added soon outgrows
the item vectors, and is much the same for all of them.

LLM-TE reads real tables; LLM-RE (`random_seed`) tables of the same shapes drawn from N(0, .02). Real ones are
scaled, each as a whole, to entries of that size, so the two differ by what the tables say alone.

Dimension key: B batch, L positions, N slots or items, I item indexes, V tokens, W LLM width, K chosen tokens,
D width.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lexrec.data.batch import PAD, Batch, Places
from lexrec.errors import ConfigError
from lexrec.item_encoders._comparable import comparable
from lexrec.item_encoders.base import Catalogue, Embedded, ItemEncoder, ItemEncoderConfig, ScoringTable
from lexrec.item_encoders.id_embedding import id_table, table_scoring
from lexrec.kernels.token_filter import choose_tokens

_RMS = 0.02
"""Of a table's entries, real or random; item vectors start alike."""


class LlmTableConfig(ItemEncoderConfig):
    """Which tables are added, and how many of their rows."""

    name: Literal["llm_table"] = "llm_table"
    tables: tuple[str, ...] = Field(("wordllama", "minilm"), min_length=1)
    """Tables that are added; their mean, where there are several."""
    k: int = Field(50, ge=1)
    """Rows of each table that an item gets the mean of."""
    cap: float | None = Field(0.3, gt=0)
    """Longest what is added may be, in lengths of the item vector it joins, as in mltfr; null: unbounded."""
    random_seed: int | None = None
    """LLM-RE: tables of N(0, .02) in place of the real ones, drawn with this seed."""


class LlmTable(ItemEncoder):
    """Id vector plus the mean of the nearest rows of each projected table."""

    config: LlmTableConfig

    def __init__(self, config: LlmTableConfig, catalogue: Catalogue) -> None:
        super().__init__()
        if len(catalogue.tables) != len(config.tables):
            raise ConfigError(f"llm_table: {len(config.tables)} tables named, {len(catalogue.tables)} given")
        self.config = config
        self.n_items = catalogue.n_items
        self.embedding = id_table(catalogue)
        self.align = nn.ModuleList(nn.Linear(table.width, catalogue.dim) for table in catalogue.tables)
        for align in self.align:
            # PyTorch's own start is ten times an item vector, and the same for all of them.
            nn.init.zeros_(align.bias)  # type: ignore[arg-type]
        for i, table in enumerate(catalogue.tables):
            if config.random_seed is not None:
                table = table.random_like(config.random_seed + i)
            weight_VW = comparable(table, centre=False, scale="rms").weight_VW * _RMS
            self.register_buffer(f"table_{i}_VW", weight_VW, persistent=False)
        self._constant_ID: Tensor | None = None
        # Whatever changes the weights makes the constants lies: loading, moving, training.
        self.register_load_state_dict_pre_hook(lambda *_: self.thaw())  # type: ignore[no-untyped-call]

    def lookup(self, item: Tensor) -> Tensor:
        vector: Tensor = self.embedding(item)
        return vector

    def forward(self, batch: Batch) -> Embedded:
        if self._constant_ID is not None:
            return Embedded(F.embedding(batch.item_BL, self._constant_ID), {})
        e_BLD, places = self.lookup(batch.item_BL), Places.of(batch)
        added_BLD = places.unpack(self._added(places.pack(e_BLD)))
        return Embedded(e_BLD + added_BLD * batch.is_item_BL[..., None], {})

    def scoring(self) -> ScoringTable:
        return table_scoring(self.embedding, self.n_items)

    @torch.no_grad()
    def freeze(self) -> None:
        """Compute every item's vector once."""
        self.thaw()
        weight_ID = self.embedding.weight
        is_item_I1 = torch.arange(len(weight_ID), device=weight_ID.device)[:, None] != PAD
        self._constant_ID = weight_ID + self._added(weight_ID) * is_item_I1

    def thaw(self) -> None:
        self._constant_ID = None

    def train(self, mode: bool = True) -> "LlmTable":
        if mode:
            self.thaw()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LlmTable":
        self.thaw()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _added(self, e_ND: Tensor) -> Tensor:
        """What the tables add to item vectors, [N, D]."""
        added_ND = torch.zeros_like(e_ND)
        for i, align in enumerate(self.align):
            table_VW = self.get_buffer(f"table_{i}_VW")
            if not torch.is_autocast_enabled(table_VW.device.type):
                table_VW = table_VW.to(self.embedding.weight.dtype)
            aligned_VD = align(table_VW)
            near_VD = F.normalize(aligned_VD.detach(), dim=-1)
            token_NK = choose_tokens(e_ND.detach(), near_VD, min(self.config.k, len(near_VD)))
            added_ND = added_ND + F.embedding(token_NK, aligned_VD).mean(1)
        added_ND = added_ND / len(self.align)
        if self.config.cap is None:
            return added_ND
        longest_N1 = self.config.cap * e_ND.detach().norm(dim=-1, keepdim=True)
        capped_ND: Tensor = added_ND * (
            longest_N1 / added_ND.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        ).clamp(max=1)
        return capped_ND
