"""Options of MLTFR. The defaults are ours; each of the paper's and the release's choices has a name."""

from typing import Literal

from pydantic import Field, model_validator

from lexrec.item_encoders.base import ItemEncoderConfig


class MltfrConfig(ItemEncoderConfig):
    """How token tables are filtered, attended to and mixed."""

    name: Literal["mltfr"] = "mltfr"
    tables: tuple[str, ...] = Field(("wordllama", "minilm"), min_length=1)
    """One expert a table."""
    k: int = Field(50, ge=1)
    """Tokens an expert chooses."""
    n_heads: int = Field(4, ge=1)
    """Heads of an expert's cross-attention."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On attention weights and on an expert's output."""
    interest: Literal["prefix", "sequence"] = "prefix"
    """prefix: a position chooses by the items up to itself; sequence: all by the whole row (the paper)."""
    refresh: float = Field(0.0, ge=0)
    """Prefix form: choose anew only when the prefix has grown by this share; 0: at every position."""
    logit_scale: float = Field(20.0, gt=0)
    """Start of the learnable factor on the cosine; 1 is the paper, where noise decides everything."""
    tau: float = Field(0.5, gt=0)
    """Temperature of the softmax of estimator paper and release."""
    estimator: Literal["log_bias", "paper", "release"] = "log_bias"
    """How the choice gets its gradient."""
    filter: Literal["learned", "frozen"] = "learned"
    """frozen: the filter keeps its random start, a control."""
    pool: Literal["user", "batch"] = "user"
    """batch: every user attends to the tokens of the whole batch (the release)."""
    eval_noise: bool = False
    """Noise at evaluation too (the release): results are then random."""
    gate: Literal["softmax", "double_softmax"] = "softmax"
    """double_softmax: the release's gate."""
    tune_tables: bool = False
    """Train the tables too (the release does, for the rows it selects)."""
    inject: Literal["input", "after_block0"] = "input"
    """Where the result is added."""
    cap: float | None = Field(0.3, gt=0)
    """Longest the mixture may be, in lengths of the item vector it joins; null: unbounded (the paper)."""
    bends_items: bool = False
    """Let the gradient of the choice reach the item vectors through the interest (the paper)."""
    max_tokens: int | None = Field(None, ge=1)
    """Keep only the first tokens of each table; vocabularies are roughly in order of frequency."""
    centre: bool = False
    """Remove each table's mean vector."""
    table_scale: Literal["unit", "rms", "raw"] = "unit"
    """Scale each table as a whole so that a row's norm is about 1 (unit) or its entries' size is (rms)."""
    random_seed: int | None = None
    """Control: replace each table by noise of the same shape and scale, drawn with this seed."""

    @model_validator(mode="after")
    def _fits(self) -> "MltfrConfig":
        if self.pool == "batch" and self.interest != "sequence":
            raise ValueError("pool=batch needs interest=sequence")
        if self.refresh and self.interest != "prefix":
            raise ValueError("refresh belongs to interest=prefix")
        return self
