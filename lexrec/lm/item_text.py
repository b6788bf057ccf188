"""Item vectors that the language model makes of an item's text: two baselines of IDIOMoE.

    Text-Attr LLM   x_i = E_i + t_i        t_i: states of i's text in the pretrained language model, fixed
    Title-LLM       x_i = h(text of i)     h: the state after a history, here one of a single event

Paper: https://arxiv.org/abs/2510.05125, which names both and does not say how states are pooled. Ours: t_i is
the mean of the last layer's states over i's text, each entry standardised over the items (a few entries of a
language model's states are a hundred times larger than all others, and the same for every text) and of the
size that E_i starts with. h is the state at the last token, the one that has seen all others.

Dimension key: B batch, L positions, I item indexes 0..n + 1, N items asked for, T tokens of a text, S slots,
W width (here also D).
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lexrec.data.batch import PAD, Batch
from lexrec.item_encoders.base import Embedded, ExpertView, ItemEncoder, ScoringTable
from lexrec.item_encoders.id_embedding import STD
from lexrec.lm import loading
from lexrec.lm.prompt import Prompt
from lexrec.lm.settings import LmConfig
from lexrec.lm.sources import find
from lexrec.lm.stream import Reach, packed
from lexrec.tokens import cache

_TEXTS_AT_ONCE = 512
_TEMPERATURE = 0.05
"""Of cosines between histories and items."""


class TextAdded(ItemEncoder):
    """Another encoder's item vectors plus fixed ones, for input and for scoring.

    Args:
        plain: what is trained.
        text_ID: zero at PAD and at MASK.
    """

    text_ID: Tensor

    def __init__(self, plain: ItemEncoder, text_ID: Tensor) -> None:
        super().__init__()
        self.plain = plain
        self.n_items = plain.n_items
        self.causal = plain.causal
        self.register_buffer("text_ID", text_ID, persistent=False)

    def lookup(self, item: Tensor) -> Tensor:
        return self.plain.lookup(item) + self.text_ID[item]

    def forward(self, batch: Batch) -> Embedded:
        embedded = self.plain(batch)
        added: Embedded = embedded._replace(x_BLD=embedded.x_BLD + self.text_ID[batch.item_BL])
        return added

    def scoring(self) -> ScoringTable:
        table, text_ID = self.plain.scoring(), self.text_ID
        return replace(
            table,
            rows=lambda first, last: table.rows(first, last) + text_ID[first:last],
            take=lambda item: table.take(item) + text_ID[item],
        )

    def freeze(self) -> None:
        self.plain.freeze()

    def thaw(self) -> None:
        self.plain.thaw()

    def inspect(self, batch: Batch) -> list[ExpertView]:
        return self.plain.inspect(batch)


class TextItems(ItemEncoder):
    """No item vectors of its own: an event enters as a marker, and items are scored by what is read of them.

    Args:
        n_items: of the catalogue.
        marker_D: what stands before each text.
        read: items [N] -> the states after their texts, [N, D], as the model reads now.
    """

    marker_D: Tensor

    def __init__(self, n_items: int, marker_D: Tensor, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.n_items = n_items
        self.register_buffer("marker_D", marker_D, persistent=False)
        self._read = read
        self._constant_ID: Tensor | None = None
        self.register_load_state_dict_pre_hook(lambda *_: self.thaw())  # type: ignore[no-untyped-call]

    def lookup(self, item: Tensor) -> Tensor:
        if self._constant_ID is not None:
            return self._constant_ID[item]
        state_ND = self._read(item.flatten())
        return state_ND.view(*item.shape, -1) * (item != PAD)[..., None]

    def forward(self, batch: Batch) -> Embedded:
        return Embedded(self.marker_D * batch.is_item_BL[..., None], {})

    def scoring(self) -> ScoringTable:
        return ScoringTable(self.n_items, self._rows, self.lookup, scale=1 / _TEMPERATURE, normalise=True)

    def _rows(self, first: int, last: int) -> Tensor:
        return self.lookup(torch.arange(first, last, device=self.marker_D.device))

    def freeze(self) -> None:
        """Read every item once."""
        self.thaw()
        with torch.no_grad():
            ends = [*range(0, self.n_items + 2, _TEXTS_AT_ONCE), self.n_items + 2]
            pieces = [self._rows(first, last) for first, last in pairwise(ends)]
            self._constant_ID = torch.cat(pieces)

    def thaw(self) -> None:
        self._constant_ID = None

    def train(self, mode: bool = True) -> "TextItems":
        if mode:
            self.thaw()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TextItems":
        self.thaw()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def text_vectors(config: LmConfig, texts: Prompt) -> Tensor:
    """Fixed vectors of items from their texts, float32 [I, W]; zero where there is no text.

    They are read once and kept in the cache, by the hash of the language model's weights and of the texts.

    Raises:
        LmError: the language model cannot be had.
    """
    path = _place(config, texts)
    try:
        kept: Tensor = load_file(path)["text_ID"]
        return kept
    except (OSError, SafetensorError, KeyError):
        text_ID = _standardised(_read_all(config, texts), texts.length_I > 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    os.close(handle)
    save_file({"text_ID": text_ID}, partial)
    Path(partial).replace(path)
    return text_ID


def _place(config: LmConfig, texts: Prompt) -> Path:
    said = hashlib.sha256(f"mean of states 1 {find(config.model).sha256} {config.dtype}".encode())
    for tensor in (texts.token_IT, texts.length_I):
        said.update(f"{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return cache.folder() / "lm" / "states" / f"{said.hexdigest()[:32]}.safetensors"


@torch.no_grad()
def _read_all(config: LmConfig, texts: Prompt) -> Tensor:
    """Mean state of each text in the language model as it was pretrained, [I, W]."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lm = loading.load(config).to(device).eval()
    reach, means = Reach(None, lm.window), []
    for first in range(0, len(texts.token_IT), _TEXTS_AT_ONCE):
        token_NT = texts.token_IT[first : first + _TEXTS_AT_ONCE].to(device)
        length_N = texts.length_I[first : first + _TEXTS_AT_ONCE].to(device)
        N, T = token_NT.shape
        position_NT = torch.arange(T, device=device).expand(N, T)
        is_token_NT = position_NT < length_N[:, None]
        history_NT = torch.arange(N, device=device)[:, None].expand(N, T)
        stream = packed(history_NT.flatten(), position_NT.flatten(), is_token_NT.flatten(), T, reach)
        state_NTW = lm.decode(lm.embed_text(token_NT).float().flatten(0, 1)[None], stream).view(N, T, -1)
        total_NW = (state_NTW * is_token_NT[..., None]).sum(1)
        means.append((total_NW / length_N[:, None].clamp(min=1)).cpu())
    return torch.cat(means)


def _standardised(mean_ID: Tensor, has_text_I: Tensor) -> Tensor:
    known_ND = mean_ID[has_text_I]
    centred_ID = (mean_ID - known_ND.mean(0)) * has_text_I[:, None]
    standardised_ID: Tensor = F.normalize(centred_ID, dim=0) * STD * len(known_ND) ** 0.5
    return standardised_ID
