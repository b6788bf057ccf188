"""Item text as the mean of its tokens' vectors: taken once, for all tables and columns together.

    f_p  = unit(whiten(mean_t w_t table_p[token_t]))                one part p: a table and a column
    text = map([f_1, ..., f_P]),  the same as a sum over parts of maps of their own while it is linear

Whitening multiplies the centred features by (C + eps mean(diag C))^-1/2, C their covariance over items.
That square root is one and the same whichever eigenvectors a machine finds, so a saved map fits it.

Dimension key: I item indexes 0..n + 1, N texts, T tokens of a text, V tokens of a table, R of them that
occur, W width of a table, F features of all parts, D width.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.item_encoders._item_text import Part, Text, TextTokens
from lexrec.item_encoders._text_config import TextTokensConfig


class PooledText(nn.Module):
    """Frozen features of each item and a learned map of them."""

    feature_IF: Tensor

    def __init__(self, parts: Sequence[Part], texts: Sequence[Text], dim: int, config: TextTokensConfig):
        super().__init__()
        self.config = config
        tokens = [part.read(texts, config) for part in parts]
        self.pools = [_Pool(part, read, config) for part, read in zip(parts, tokens, strict=True)]
        feature_NF = self._features(parts, tokens)
        # Item 1 stands in row 1; padding and MASK have no text.
        self.register_buffer("feature_IF", F.pad(feature_NF, (0, 0, 1, 1)).bfloat16(), persistent=False)
        self.map = _map(feature_NF.shape[1], dim, config.hidden)

    def last_maps(self) -> list[nn.Linear]:
        """The linear maps that set the size of the text vector."""
        return [m for m in self.map if isinstance(m, nn.Linear)][-1:]

    def forward(self, item: Tensor | slice) -> Tensor:
        """Text vectors of some items, [*item.shape, D]; zero where there is no text."""
        return self._mapped(self.feature_IF[item])

    def of_texts(self, parts: Sequence[Part], texts: Sequence[Text]) -> Tensor:
        """Text vectors of texts that no item had, [N, D]."""
        feature_NF = self._features(parts, [part.read(texts, self.config) for part in parts])
        return self._mapped(feature_NF.bfloat16().to(self.feature_IF.device))

    def _features(self, parts: Sequence[Part], tokens: Sequence[TextTokens]) -> Tensor:
        found = [
            pool.features(part, read) for pool, part, read in zip(self.pools, parts, tokens, strict=True)
        ]
        return torch.cat(found, dim=1) * (self.config.feature_scale / math.sqrt(len(parts)))

    def _mapped(self, feature_NF: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(feature_NF.device.type):  # autocast would only cast it back
            feature_NF = feature_NF.to(next(self.map.parameters()).dtype)
        mapped: Tensor = self.map(F.dropout(feature_NF, self.config.dropout, self.training))
        return mapped


class _Pool:
    """The mean of one part's tokens, and what makes such means comparable between items."""

    def __init__(self, part: Part, tokens: TextTokens, config: TextTokensConfig) -> None:
        self.config = config
        self.weight_V = _token_weights(tokens, part.table.n_tokens, config)
        self.mean_W, self.whitening_WW = None, None
        if config.whiten is not None:
            raw_NW, has_text_N = self._means(part, tokens)
            self.mean_W = (
                raw_NW[has_text_N].mean(0) if has_text_N.any() else raw_NW.new_zeros(part.table.width)
            )
            self.whitening_WW = _whitening(raw_NW[has_text_N] - self.mean_W, config.whiten)

    def features(self, part: Part, tokens: TextTokens) -> Tensor:
        """One row a text, of length about 1; zero where a text has no tokens, [N, W]."""
        feature_NW, has_text_N = self._means(part, tokens)
        if self.mean_W is not None and self.whitening_WW is not None:
            feature_NW = (feature_NW - self.mean_W) @ self.whitening_WW
        if self.config.normalise:
            feature_NW = F.normalize(feature_NW, dim=1)
        return feature_NW * has_text_N[:, None]

    def _means(self, part: Part, tokens: TextTokens) -> tuple[Tensor, Tensor]:
        """Weighted mean token vector of each text, and where there is one."""
        used_R, token_NT = torch.unique(tokens.token_NT, return_inverse=True)
        weight_NT = self.weight_V[tokens.token_NT] * tokens.is_token_NT
        weight_NT = weight_NT / weight_NT.sum(1, keepdim=True).clamp(min=1e-9)
        row_RW = part.table.weight_VW[used_R].float()
        mean_NW = F.embedding_bag(token_NT, row_RW, per_sample_weights=weight_NT, mode="sum")
        return mean_NW, tokens.is_token_NT.any(1)


def _map(width: int, dim: int, hidden: int) -> nn.Sequential:
    """From features to item vectors. Without biases, so that no text is no vector."""
    if not hidden:
        return nn.Sequential(nn.Linear(width, dim, bias=False))
    first = nn.Linear(width, hidden, bias=False)
    nn.init.normal_(first.weight)  # features have length 1: what enters the GELU is of its size
    return nn.Sequential(first, nn.GELU(), nn.Linear(hidden, dim, bias=False))


def _token_weights(tokens: TextTokens, n_tokens: int, config: TextTokensConfig) -> Tensor:
    """1, or log((1 + n) / (1 + items with the token)), [V]."""
    if config.weighting == "uniform":
        return torch.ones(n_tokens)
    n_texts, longest = tokens.token_NT.shape
    text_NT = torch.arange(n_texts)[:, None].expand(-1, longest)
    pair = torch.unique((text_NT * n_tokens + tokens.token_NT)[tokens.is_token_NT])
    count_V = torch.bincount(pair % n_tokens, minlength=n_tokens)
    return torch.log((1 + n_texts) / (1 + count_V.float()))


def _whitening(centred_NW: Tensor, damping: float) -> Tensor:
    """The symmetric matrix that makes features uncorrelated, [W, W]."""
    W = centred_NW.shape[1]
    wide_NW = centred_NW.double()
    covariance_WW = wide_NW.T @ wide_NW / max(len(wide_NW), 1)
    value_W, vector_WW = torch.linalg.eigh(covariance_WW)
    least = max(damping * float(value_W.mean()), 1e-12)
    scale_W = (value_W.clamp(min=0) + least).rsqrt() * W**-0.5
    whitening_WW: Tensor = ((vector_WW * scale_W) @ vector_WW.T).float()
    return whitening_WW
