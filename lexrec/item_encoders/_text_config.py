"""Options of text_tokens."""

from typing import Literal

from pydantic import Field, model_validator

from lexrec.item_encoders._comparable import TableScale
from lexrec.item_encoders.base import ItemEncoderConfig


class TextTokensConfig(ItemEncoderConfig):
    """Which text of an item is read, through which tables, and how it becomes a vector."""

    name: Literal["text_tokens"] = "text_tokens"
    tables: tuple[str, ...] = Field(("wordllama", "minilm"), min_length=1)
    """Every text is read through each of them."""
    columns: tuple[str, ...] = Field(("title", "category"), min_length=1)
    """Columns of the item table."""
    per_column: bool = True
    """A map of its own for each column; false: columns are joined to one text first."""
    text_len: int = Field(64, ge=1)
    """Tokens of a text that are read."""
    lowercase: bool = False
    """Read texts in lower case, so that a cased vocabulary has one token for both spellings."""
    pool: Literal["mean", "attention"] = "mean"
    """How a text's tokens become one vector; mean is taken once, attention is learned and costs more."""
    weighting: Literal["uniform", "idf"] = "uniform"
    """Of mean: weight tokens equally, or by how few items have them."""
    whiten: float | None = Field(0.1, gt=0)
    """Of mean: decorrelate features over items, directions below this share of the mean variance damped.
    null leaves them as they are."""
    normalise: bool = True
    """Of mean: give every item's features the same length."""
    feature_scale: float = Field(1.0, gt=0)
    """Of mean: length of an item's features. The map learns faster the longer they are."""
    n_heads: int = Field(4, ge=1)
    """Of attention: heads, each with a query of its own."""
    hidden: int = Field(0, ge=0)
    """Inner width of the map to item vectors; 0: it is linear."""
    text_scale: float = Field(1.0, gt=0)
    """Size of the text vector at the start, in sizes of the id vector."""
    norm: Literal["none", "text", "sum"] = "none"
    """What is layer-normalised: nothing, the text vector, or the sum with the id vector."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of features (mean) or tokens (attention) left out in training."""
    use_id: bool = True
    """false: the item vector is that of its text alone."""
    id_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of id vectors left out in training, so that the text learns to stand alone."""
    centre: bool = False
    """Remove each table's mean vector."""
    table_scale: TableScale = "unit"
    """Scale each table as a whole so that a row's norm is about 1 (unit) or its entries' size is (rms)."""
    random_seed: int | None = None
    """Control: the same tokens, but their vectors are noise of the same shape and scale drawn with this
    seed, so that all that is left is which items share a word."""

    @model_validator(mode="after")
    def _fits(self) -> "TextTokensConfig":
        if not self.use_id and self.id_dropout:
            raise ValueError("id_dropout belongs to use_id=true")
        if self.pool == "attention" and self.weighting == "idf":
            raise ValueError("weighting belongs to pool=mean; attention learns its weights")
        return self
