"""ID decoder: the architecture of a language model over item ids, trained from scratch.

Paper: "Architecture is all you need", https://arxiv.org/abs/2506.15833: a language model's decoder with fewer
and narrower layers, one token an item. Only the abstract's contract is followed; sizes and loss are ours.

    x_t = s E[item_t]                              s: what the family scales its token vectors by
    a   = x + W_O attention(rope(q), rope(k), v)   q, k, v = W norm(x); causal, k and v with n_kv_heads heads
    x'  = a + W_down (act(W_gate n) * W_up n)      n = norm(a)
    r_i = <norm(x'_t), E[i]>                       one table for input and output

That is the family `llama`, with RMSNorm, silu and no biases; which language model's architecture is used is
a setting. `qwen3` normalises q and k of each head; `gemma3_text` does, and normalises what each sub-layer
adds, scales by s = sqrt(d) and has a tanh GELU. The blocks are those of Hugging Face transformers, built from
a configuration and fed vectors; token embeddings are removed, so that no parameter is without use.

Differences from the families: dropout on the input and on what each sub-layer adds (theirs is of attention
weights alone, and off); the feed-forward layer is 8/3 as wide as the model; a head is dim / n_heads wide;
a sliding window is as long as the history, that is, none. Norms are computed in float32, as there.

Positions are counted from the oldest item of a row. On a CPU rows of like length are computed together
(`Rows`), on a GPU all at full length.

Dimension key: B batch, L positions, D width.
"""

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from lexrec.data.batch import Batch, Places
from lexrec.errors import ConfigError
from lexrec.item_encoders.base import ItemEncoder
from lexrec.models._layers import Dropout, Rows, causal_mask
from lexrec.models.base import Encoded, ModelConfig, SequenceModel

_KEY_OF = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "ffn_dim": "intermediate_size",
    "max_len": "max_position_embeddings",
    "dropout": "attention_dropout",
}
"""What transformers calls our settings."""
_BRANCH_ENDS = ("o_proj", "down_proj")
"""The last layer of attention and of the feed-forward layer, in Llama and what follows it."""


class IdDecoderConfig(ModelConfig):
    """Which language model's architecture, and its sizes."""

    name: Literal["id_decoder"] = "id_decoder"
    family: str = "llama"
    """A decoder's model_type in transformers: llama, qwen3, gemma3_text, mistral, qwen2, olmo2 ..."""
    n_layers: int = Field(2, ge=1)
    n_heads: int = Field(2, ge=1)
    n_kv_heads: int | None = Field(None, ge=1)
    """Heads of keys and values, each shared by n_heads / n_kv_heads queries; null: as many as n_heads."""
    ffn_dim: int | None = Field(None, ge=1)
    """Inner width of the feed-forward layer; null: 8/3 dim, rounded up to a multiple of 8."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """On the input, on attention weights and on what each sub-layer adds."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """transformers' implementation: eager is slower, and some families have no other (gemma2)."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Further settings of the family's configuration, such as {rms_norm_eps: 1e-5}."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.n_kv_heads is not None and self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads {self.n_kv_heads} does not divide n_heads {self.n_heads}")
        if self.dim // self.n_heads % 2:
            raise ValueError(
                f"a head is dim / n_heads = {self.dim // self.n_heads} wide, and rotary positions need "
                "an even width; change dim or n_heads"
            )
        own = {key: name for name, key in _KEY_OF.items()} | {"attn_implementation": "attention"}
        for key in self.overrides:
            if key in own:
                raise ValueError(f"overrides: {key} is the setting {own[key]}; set that")
        return self


class IdDecoder(SequenceModel):
    """A transformers decoder over item vectors."""

    causal = True
    layout = "packed"

    config: IdDecoderConfig

    def __init__(self, config: IdDecoderConfig, items: ItemEncoder) -> None:
        super().__init__()
        self.config = config
        self.items = items
        self.max_len = config.max_len
        self.decoder = _decoder(config)
        self.input_scale = _input_scale(self.decoder)
        self.decoder.set_input_embeddings(nn.Identity())
        self.dropout = Dropout(config.dropout)
        if config.dropout:
            _drop_branches(self.decoder, config)
        self.blocks[0].register_forward_hook(_add_after_block, with_kwargs=True)
        _check(self)

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The decoder's own list, whatever the family calls it."""
        return _blocks(self.decoder, self.config)

    def forward(self, batch: Batch) -> Encoded:
        embedded, rows = self.items(batch), Rows.causal(batch)
        if rows.packed is not None:
            # The kernel that finds rows among slots is not in transformers' blocks.
            batch = batch._replace(slot_N=None)
            rows = Rows.causal(batch)
        places, parts_RWD = Places.of(batch), []
        x_ND = self.dropout(self.input_scale * places.pack(embedded.x_BLD))
        added: list[Tensor | None] = [None] * len(rows.shapes)
        if embedded.after_block0_BLD is not None:
            added = [*rows.lay(self.input_scale * places.pack(embedded.after_block0_BLD))]
        for x_RWD, may_look, added_RWD in zip(rows.lay(x_ND), rows.may_look, added, strict=True):
            parts_RWD.append(self.decode(x_RWD, may_look, added_RWD))
        return Encoded(places.unpack(rows.gather(parts_RWD)), embedded.aux)

    def decode(self, x_BLD: Tensor, may_look_B1LL: Tensor, added_BLD: Tensor | None = None) -> Tensor:
        """States of input vectors, [B, L, D].

        Args:
            x_BLD: input vectors.
            may_look_B1LL: True where a position (row) looks at another (column); for all rows if B is 1.
            added_BLD: what joins after the first block.
        """
        B, L, _ = x_BLD.shape
        may_look_B1LL = may_look_B1LL.expand(B, 1, L, L)
        mask_B1LL = may_look_B1LL
        if self.config.attention == "eager":
            # There a mask is added to the logits.
            least = torch.finfo(x_BLD.dtype).min
            mask_B1LL = x_BLD.new_zeros(mask_B1LL.shape).masked_fill(~may_look_B1LL, least)
        hidden_BLD: Tensor = self.decoder(
            inputs_embeds=x_BLD,
            attention_mask=mask_B1LL,
            # It looks at itself and at those before it.
            position_ids=may_look_B1LL[:, 0].sum(-1) - 1,
            use_cache=False,
            **({} if added_BLD is None else {"after_block0_BLD": added_BLD}),
        ).last_hidden_state
        return hidden_BLD


def _decoder(config: IdDecoderConfig) -> Any:
    """The family's decoder with our sizes and fresh weights.

    Raises:
        ConfigError: transformers is missing, knows no such family or setting, or cannot build it.
    """
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise ConfigError(
            "id_decoder takes its blocks from transformers, which is missing; pip install 'lexrec[lm]'"
        ) from error
    try:
        defaults = AutoConfig.for_model(config.family)
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"id_decoder: transformers knows no family {config.family!r}; such as llama, qwen3, gemma3_text"
        ) from error
    try:
        settings = AutoConfig.for_model(config.family, **_settings(config, defaults))
        return AutoModel.from_config(settings, attn_implementation=config.attention)
    except ConfigError:
        raise
    except Exception as error:
        raise _refused(config, error) from error


def _settings(config: IdDecoderConfig, defaults: Any) -> dict[str, Any]:
    """Our settings under the names of the family's configuration, where it has them, and the overrides."""
    known = set(defaults.to_dict()) | set(defaults.attribute_map)
    values: dict[str, Any] = {key: getattr(config, name) for name, key in _KEY_OF.items()}
    head_dim = config.dim // config.n_heads
    values["head_dim"] = values["query_pre_attn_scalar"] = head_dim
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = config.n_heads
    elif "num_key_value_heads" not in known:
        raise ConfigError(f"id_decoder: family {config.family!r} has no n_kv_heads; leave it out")
    if values["intermediate_size"] is None:
        values["intermediate_size"] = -(-8 * config.dim // 3 // 8) * 8
    elif "intermediate_size" not in known:
        raise ConfigError(f"id_decoder: family {config.family!r} has no ffn_dim; leave it out")
    if getattr(defaults, "sliding_window", None):
        values["sliding_window"] = config.max_len
    # Token embeddings are removed once built; special tokens would have to be among them.
    values |= {"vocab_size": 2, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    unknown = [key for key in config.overrides if key not in known]
    if unknown:
        raise ConfigError(
            f"id_decoder: family {config.family!r} has no setting {', '.join(map(repr, unknown))}; "
            f"known: {', '.join(sorted(known))}"
        )
    return {key: value for key, value in values.items() if key in known} | config.overrides


def _input_scale(decoder: Any) -> float:
    """What the family multiplies token vectors by: its embedding does it, and is to be removed."""
    embedding = decoder.get_input_embeddings()
    with torch.no_grad():
        embedding.weight.fill_(1)
        return float(embedding(torch.tensor([1]))[0, 0])


def _blocks(decoder: nn.Module, config: IdDecoderConfig) -> nn.ModuleList:
    """The list of the decoder's blocks.

    Raises:
        ConfigError: there is none.
    """
    for part in decoder.modules():
        if isinstance(part, nn.ModuleList) and len(part) == config.n_layers:
            return part
    raise ConfigError(f"id_decoder: family {config.family!r} does not fit: it has no list of blocks")


def _drop_branches(decoder: nn.Module, config: IdDecoderConfig) -> None:
    """Dropout on what each sub-layer adds.

    Raises:
        ConfigError: the family calls these layers otherwise.
    """
    ends = [part for name, part in decoder.named_modules() if name.rpartition(".")[2] in _BRANCH_ENDS]
    if not ends:
        raise ConfigError(
            f"id_decoder: family {config.family!r} is not laid out as llama is, so that dropout cannot be "
            "placed; set model.dropout=0 and the family's own kinds under model.overrides"
        )
    for end in ends:
        end.register_forward_hook(lambda part, _, out: F.dropout(out, config.dropout, part.training))


def _add_after_block(_: nn.Module, __: Any, given: dict[str, Any], out: Any) -> Any:
    """Hook of the first block: what `decode` was given for it, which families hand to their blocks."""
    added_BLD = given.get("after_block0_BLD")
    if added_BLD is None:
        return out
    return (out[0] + added_BLD, *out[1:]) if isinstance(out, tuple) else out + added_BLD


@torch.enable_grad()
def _check(model: IdDecoder) -> None:
    """Hold an unknown family to what a backbone promises, on one short row.

    Raises:
        ConfigError: it cannot run as it is called here, sees later items, is changed by padding, or has
            parameters that do nothing.
    """
    was_training, config = model.training, model.config
    model.eval()
    L = min(3, config.max_len)
    x_1LD = torch.linspace(-1, 1, L * config.dim).view(1, L, config.dim)
    is_item_1L = torch.ones(1, L, dtype=torch.bool)
    alone, beside_padding = causal_mask(is_item_1L), causal_mask(F.pad(is_item_1L, (1, 0)))
    try:
        state_1LD = model.decode(x_1LD, alone)
        later_1LD = model.decode(torch.cat([x_1LD[:, :-1], 1 - x_1LD[:, -1:]], 1), alone)
        padded_1LD = model.decode(F.pad(x_1LD, (0, 0, 1, 0)), beside_padding)
        added_1LD = model.decode(x_1LD, alone, x_1LD)
    except Exception as error:
        raise _refused(config, error) from error
    problem = ""
    if state_1LD.shape != x_1LD.shape:
        problem = f"its states are {state_1LD.shape[-1]} wide, not {config.dim}"
    elif not torch.allclose(state_1LD[:, :-1], later_1LD[:, :-1], atol=1e-5):
        problem = "a position sees later ones"
    elif not torch.allclose(state_1LD, padded_1LD[:, 1:], atol=1e-5):
        problem = "padding changes its states"
    elif torch.allclose(state_1LD, added_1LD):
        problem = "it hands nothing on to its blocks"
    else:
        names, parameters = zip(*model.decoder.named_parameters(), strict=True)
        slopes = torch.autograd.grad(state_1LD.sum(), parameters, allow_unused=True)
        idle = [name for name, slope in zip(names, slopes, strict=True) if slope is None]
        problem = f"it has parameters without use ({', '.join(idle)})" if idle else ""
    if problem:
        raise ConfigError(f"id_decoder: family {config.family!r} does not fit: {problem}")
    model.train(was_training)


def _refused(config: IdDecoderConfig, error: Exception) -> ConfigError:
    why = " ".join(str(error).split())[:120]
    eager = "model.attention=eager, or " if config.attention == "sdpa" else ""
    return ConfigError(
        f"id_decoder: family {config.family!r} with attention={config.attention} does not run: {why} ...; "
        f"try {eager}a decoder such as llama, qwen3 or gemma3_text"
    )
