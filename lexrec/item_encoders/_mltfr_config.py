"""Options of MLTFR. The defaults are ours; each of the paper's and the release's choices has a name."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from lexrec.config import Config, component_config
from lexrec.item_encoders._comparable import TableScale
from lexrec.item_encoders.base import ItemEncoderConfig
from lexrec.item_encoders.id_embedding import IdEmbeddingConfig

_COMMON: dict[str, Any] = {
    "interest": "sequence",
    "logit_scale": 1.0,
    "learn_scale": False,
    "tau": 0.5,
    "cap": None,
    "bends_items": True,
    "table_scale": "raw",
}
"""What the paper and its release have in common and ours has not."""
PRESETS: dict[str, dict[str, Any]] = {
    "paper": _COMMON
    | {
        "bias": False,
        "dropout": 0.0,
        "estimator": "paper",
        "init": "independent",
        "consensus": {"alpha": 0.2, "source": "mean", "average": "all"},
    },
    "release": _COMMON
    | {
        "k": 1,
        "estimator": "release",
        "pool": "batch",
        "eval_noise": True,
        "gate": "double_softmax",
        "tune_tables": True,
        "inject": "after_block0",
        "init": "torch",
        "consensus": {"source": "mean", "average": "attention"},
    },
}
"""Options each preset stands for; what a recipe says itself goes before. A preset's `consensus` fills in that
section where there is one: whether there is a Round 2 is said by the recipe."""


class ConsensusConfig(Config):
    """The consensus expert of Round 2: the average of the experts of one width, frozen."""

    alpha: float = Field(0.2, ge=0)
    """Weight of what the consensus expert adds (eq. 18)."""
    source: Literal["concat", "mean"] = "concat"
    """What it reads: the tokens of all its experts side by side, or the mean of their k-th rows (release)."""
    average: Literal["attention", "all"] = "attention"
    """attention: it reads what its experts chose; all (eq. 14): it has their average filter too, and chooses
    from each of their tables itself."""


class MltfrConfig(ItemEncoderConfig):
    """How token tables are filtered, attended to and mixed."""

    name: Literal["mltfr"] = "mltfr"
    preset: Literal["paper", "release"] | None = None
    """Start from the paper's or the release's options instead of ours; options given beside it win."""
    tables: tuple[str, ...] = Field(("wordllama", "minilm"), min_length=1)
    """One expert a table."""
    items: SerializeAsAny[Config] = IdEmbeddingConfig()
    """The item encoder that is enriched, with a `name` and its own options."""
    consensus: ConsensusConfig | None = None
    """The consensus expert of Round 2; null: no such expert. Needs `rounds`."""
    k: int = Field(50, ge=1)
    """Tokens an expert chooses."""
    n_heads: int = Field(4, ge=1)
    """Heads of an expert's cross-attention."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On attention weights and on an expert's output (none in the paper's equations)."""
    bias: bool = True
    """Biases in the cross-attention (none in the paper's equations)."""
    init: Literal["shared", "independent", "torch"] = "shared"
    """shared: experts of one width start alike, weights from N(0, .02), biases zero; independent: each from
    its own draw; torch: from PyTorch's own draw, biases too (the release)."""
    interest: Literal["prefix", "sequence"] = "prefix"
    """prefix: a position chooses by the items up to itself; sequence: all by the whole row (the paper)."""
    refresh: float = Field(0.0, ge=0)
    """Prefix form: choose anew only when the prefix has grown by this share; 0: at every position."""
    logit_scale: float = Field(20.0, gt=0)
    """Start of the factor on the cosine; 1 is the paper, where noise decides everything."""
    learn_scale: bool = True
    """Learn that factor (the paper has none)."""
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
    """double_softmax: the gate of most of the release's models."""
    tune_tables: bool = False
    """Train the tables too (the release does, for the rows it selects)."""
    inject: Literal["input", "after_block0"] = "input"
    """Where the result is added; after_block0: the release."""
    cap: float | None = Field(0.3, gt=0)
    """Longest the mixture may be, in lengths of the item vector it joins; null: unbounded (the paper)."""
    bends_items: bool = False
    """Let the gradient of the choice reach the item vectors through the interest (the paper)."""
    max_tokens: int | None = Field(None, ge=1)
    """Keep only the first tokens of each table; vocabularies are roughly in order of frequency."""
    pca: int | None = Field(None, ge=1)
    """Reduce each table to its strongest principal directions: experts of one width can have a consensus."""
    centre: bool = False
    """Remove each table's mean vector."""
    table_scale: TableScale = "unit"
    """Scale each table as a whole so that a row's norm is about 1 (unit) or its entries' size is (rms)."""
    random_seed: int | None = None
    """Control: replace each table by noise of the same shape and scale, drawn with this seed."""
    source: Literal["tables", "constant"] = "tables"
    """Control: constant replaces each table by k rows of noise. Every choice is then the same k rows: nothing
    is filtered, nothing of a language model is left, and the number of parameters stays."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, section: Any) -> Any:
        if not isinstance(section, Mapping) or section.get("preset") not in PRESETS:
            return section
        options, given = dict(PRESETS[section["preset"]]), dict(section)
        agreed = options.pop("consensus")
        if isinstance(given.get("consensus"), Mapping):
            given["consensus"] = agreed | dict(given["consensus"])
        return options | given

    @field_validator("items", mode="before")
    @classmethod
    def _items_by_name(cls, section: Any) -> Any:
        return component_config("item_encoder", section)

    @model_validator(mode="after")
    def _fits(self) -> "MltfrConfig":
        if self.pool == "batch" and self.interest != "sequence":
            raise ValueError("pool=batch needs interest=sequence")
        if self.refresh and self.interest != "prefix":
            raise ValueError("refresh belongs to interest=prefix")
        return self

    @property
    def table_names(self) -> tuple[str, ...]:
        return self.tables + self.items.table_names  # type: ignore[attr-defined, no-any-return]
