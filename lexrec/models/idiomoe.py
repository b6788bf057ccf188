"""IDIOMoE: item ids as a dialect of a pretrained language model.

Paper: IDIOMoE, https://arxiv.org/abs/2510.05125

    x_t = c E[item_t] for an item, the language model's own s T[token_t] for text      T frozen, E trained
    h   = the language model's layers over x, their feed-forward part chosen by the token's type
    r_i = <norm(h_t), E[i]>                                       the head, restricted to item rows

An event is an item token, followed by its title and whatever else of it `columns` name; without columns a
history is ids alone, and the text experts read none of it. The next item is predicted at the item token.
What is put into the language model is an adapter (lexrec/lm/adapters): the paper's dual experts, none at all
(Item-LLM), and others.

Histories are packed into one stream of tokens that do not see each other's (lexrec/lm/stream.py).

Not the paper's: c, by which an item enters as large as what reaches the last layer; N(0, .02) is a
thousandth of it and drowns in what attention adds (`item_scale=1` is the paper's). Not in the abstract that
is public, hence ours: sizes, initialisation, the form of the prompt, dropout, where the next item is read,
and what stands before a history.

Dimension key: B batch, L positions, N events, T text places of an event, S slots, W width (here also D).
"""

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny, field_validator, model_validator
from torch import Tensor, nn

from lexrec import registry
from lexrec.config import Config, component_config
from lexrec.data.batch import Batch, Places, with_slots
from lexrec.errors import ConfigError
from lexrec.item_encoders.base import Catalogue, Embedded, ItemEncoder
from lexrec.item_encoders.id_embedding import STD, IdEmbedding
from lexrec.lm import layer_dropout, loading
from lexrec.lm.adapters.experts import ExpertsConfig
from lexrec.lm.item_text import TextAdded, TextItems, text_vectors
from lexrec.lm.prompt import Events, Prompt, read_texts
from lexrec.lm.questions import Questions, Text, woven
from lexrec.lm.reasons import Reasons
from lexrec.lm.routing import Route
from lexrec.lm.saved import save_only_trained
from lexrec.lm.settings import LmConfig
from lexrec.lm.stream import KeyValues, Reach, Seen, Stream, in_rows, packed
from lexrec.models.base import Encoded, ModelConfig, SequenceModel, State, append

_TOKENS_AT_ONCE = 2**16
"""Of an evaluation; with SmolLM2-135M they take about half a GiB."""


class IdiomoeConfig(ModelConfig):
    """Which language model, what is put into it, and what it reads of an item."""

    name: Literal["idiomoe"] = "idiomoe"
    dim: int = Field(0, ge=0)
    """The language model's width; 0 takes it from there."""
    lm: LmConfig = LmConfig()
    adapter: SerializeAsAny[Config] = ExpertsConfig()
    """What is put into the language model, lexrec/lm/adapters: experts, shared, lora, mot ..."""
    train_attention: bool = False
    """Train attention and norms too. false leaves every pass over text alone bit-identical to the pretrained
    language model; true may rank better, and forgets."""
    columns: tuple[str, ...] = ()
    """Columns of the item table whose text is read; none: ids alone."""
    text_as: Literal["tokens", "vector", "items"] = "tokens"
    """tokens: an item's text follows its item token. vector: it is read once by the pretrained language model
    and added to the item's vector (Text-Attr LLM). items: it stands in the item's place, which has no vector
    but the state after its text (Title-LLM); the item encoder is not used, and an objective that samples
    negatives reads theirs alone."""
    text_len: int = Field(16, ge=1)
    """Tokens of each column's text that are kept."""
    read_at: Literal["item", "end"] = "item"
    """Token of an event at which the next item is predicted: its item token, which passes the item experts
    and has seen the texts of earlier events, or the last token of its text, which has seen that too."""
    begin: bool = False
    """Each history stands after what the tokenizer puts before a text: Gemma's <bos>, which it badly wants;
    SmolLM2 has none."""
    max_tokens: int | None = Field(None, ge=1)
    """Newest tokens of a history that a token sees, itself included; null: all of it."""
    lm_loss: float = Field(0.0, ge=0)
    """Weight of a language model's loss on the texts in the prompt: each text token from all before it."""
    lm_places: int = Field(256, ge=1)
    """Places of a batch, drawn at random, that this loss is taken at; each costs a softmax over all text."""
    ask: tuple[str, ...] = ()
    """Columns of the item table whose values objective `ask` makes questions of, such as category."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On item vectors as they enter."""
    layer_dropout: float = Field(0.0, ge=0, lt=1)
    """On what attention and feed-forward part of each layer add."""
    item_scale: float | None = Field(None, gt=0)
    """Factor on item vectors as they enter the first layer, beside the family's own; items are scored by the
    vectors as they are. null: as large as what reaches the last layer when text is read, else what layers
    add drowns them (1, the paper's)."""

    @model_validator(mode="after")
    def _texts_fit(self) -> Self:
        if self.lm_loss and not self.columns:
            raise ValueError(
                f"lm_loss={self.lm_loss} is a loss on texts; name some, columns=[title, category]"
            )
        if self.text_as != "tokens" and not self.columns:
            raise ValueError(f"text_as={self.text_as} reads texts; name some, columns=[title]")
        if self.text_as == "items" and self.read_at == "item":
            raise ValueError("text_as=items has no item token to read at; set read_at=end")
        if self.text_as == "items" and self.ask:
            raise ValueError("text_as=items has no item token that answers; set ask=[]")
        return self

    @field_validator("adapter", mode="before")
    @classmethod
    def _by_name(cls, section: Any) -> Any:
        return component_config("adapter", section)


class Idiomoe(SequenceModel):
    """A pretrained language model over item tokens and text."""

    causal = True
    layout = "packed"
    incremental = True

    config: IdiomoeConfig
    begin_1P: Tensor
    item_scale: Tensor

    def __init__(self, config: IdiomoeConfig, items: ItemEncoder) -> None:
        super().__init__()
        self.config = config
        self.items = items
        self.max_len = config.max_len
        self.lm = loading.load(config.lm)
        if config.dim not in (0, self.lm.width):
            raise ConfigError(
                f"model.dim={config.dim}: language model {config.lm.model} is {self.lm.width} wide; "
                "leave dim out"
            )
        if config.train_attention:
            self.lm.train_attention()
        names = layer_dropout.part_names(self.lm)
        registry.load("lm.adapters", config.adapter.name)(config.adapter).apply(self.lm)  # type: ignore[attr-defined]
        layer_dropout.install(self.lm, names, config.layer_dropout)
        self.prompt = Prompt.ids_alone(items.n_items)
        self.questions: Questions | None = None
        self.reasons: Reasons | None = None
        begin = self.lm.begin_tokens() if config.begin else []
        self.register_buffer("item_scale", torch.tensor(self._scale_of_items()))
        self.register_buffer("begin_1P", torch.tensor([begin], dtype=torch.int64), persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        save_only_trained(self)

    @classmethod
    def width(cls, config: ModelConfig) -> int:
        assert isinstance(config, IdiomoeConfig)
        return config.dim or loading.width(config.lm)

    def describe(self, catalogue: Catalogue) -> None:
        if self.config.ask:
            self.questions = Questions.of(catalogue.item_table, self.config.ask, self.lm.tokenizer)
            if catalogue.item_table is not None and "title" in catalogue.item_table.column_names:
                self.reasons = Reasons.of(catalogue.item_table, self.questions, self.lm.tokenizer)
        if not self.config.columns:
            return
        columns, text_len = self.config.columns, self.config.text_len
        texts = read_texts(catalogue.item_table, columns, text_len, self.lm.tokenizer)
        if self.config.text_as == "vector":
            self.items = TextAdded(self.items, text_vectors(self.config.lm, texts))
            return
        self.prompt = texts
        self.tokens_per_event = 1 + texts.mean_length(catalogue.train_count_I)
        if self.config.text_as == "items":
            if not isinstance(self.items, IdEmbedding):
                raise ConfigError(
                    "model.text_as=items makes vectors of texts alone; use item_encoder.name=id_embedding"
                )
            self.items = TextItems(catalogue.n_items, self.lm.first_vector(), self._states_of)

    def _states_of(self, item_N: Tensor) -> Tensor:
        """The states after histories of one event, [N, D]."""
        one_N = torch.ones_like(item_N)
        encoded: Encoded = self(Batch(item_N[:, None], one_N, -one_N))
        return encoded.hidden_BLD[:, -1]

    def pretrained(self) -> list[nn.Parameter]:
        return self.lm.pretrained()

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The language model's layers."""
        return self.lm.layers

    def forward(self, batch: Batch) -> Encoded:
        embedded, places = self.items(batch), Places.of(batch)
        events = self.prompt.events(batch)
        history_NT, is_token_NT, begun = events.history_NT, events.is_token_NT, self._begun()
        position_NT = events.position_NT + self.begin_1P.shape[1]
        longest = batch.item_BL.shape[1] * (1 + self.prompt.n_texts)
        stream = packed(
            history_NT.flatten(),
            position_NT.flatten(),
            is_token_NT.flatten(),
            longest,
            self._reach,
            begun.keys_values,
        )
        stream = self._informed(stream, events, embedded, places)
        x_NTW = self._vectors(events, places.pack(embedded.x_BLD))
        hidden_1SW = self.lm.decode(x_NTW.flatten(0, 1)[None], stream)
        hidden_NW = hidden_1SW[0].index_select(0, self._read_places(events))
        aux = {**embedded.aux, **(stream.aux or {})}
        if self.training and self.config.lm_loss:
            aux["language"] = self.config.lm_loss * self._language_loss(hidden_1SW[0], events)
        return Encoded(places.unpack(hidden_NW), aux)

    def encode_next(self, batch: Batch) -> Encoded:
        """As for any model; without gradient, rows of many tokens are read some at a time."""
        n_events = batch.item_BL.numel() if batch.slot_N is None else len(batch.slot_N)
        n_parts = -(-n_events * (1 + self.prompt.n_texts) // _TOKENS_AT_ONCE)
        n_rows = -(-len(batch.item_BL) // max(n_parts, 1))
        if torch.is_grad_enabled() or n_rows >= len(batch.item_BL):
            return super().encode_next(batch)
        starts = range(0, len(batch.item_BL), n_rows)
        parts = [_some_rows(batch, slice(start, start + n_rows)) for start in starts]
        return Encoded(torch.cat([super(Idiomoe, self).encode_next(p).hidden_BLD for p in parts]), {})

    def begin(self, batch: Batch) -> State:
        return self._read(batch._replace(slot_N=None), self.items(batch), batch, None)

    def step(self, state: State, item_B: Tensor, time_B: Tensor | None = None) -> State:
        """One event costs its own tokens, until a row is full: its oldest falls out, and it is read again.

        With an item encoder that lets positions see later ones all is read again too.
        """
        whole = append(state.batch, item_B, time_B, self.max_len)
        if not self.items.causal or bool((state.batch.length_B >= self.max_len).any()):
            return self.begin(whole)
        embedded = self.items(whole)
        newest = Batch(whole.item_BL[:, -1:], torch.ones_like(whole.length_B), whole.user_B)
        after = embedded.after_block0_BLD
        embedded = Embedded(embedded.x_BLD[:, -1:], {}, None if after is None else after[:, -1:])
        return self._read(newest, embedded, whole, state.cache)

    def read_text(self, state: State, token_BS: Tensor, is_token_BS: Tensor) -> State:
        """The state after text that follows a history: its `hidden_BD` predicts an item, or goes on as text.

        Args:
            state: of `begin` or `step`; it can be continued otherwise as well.
            token_BS: int64 text tokens.
            is_token_BS: True where there is one; of each row the last place at least.
        """
        seen: Seen = state.cache
        position_BS = seen.length_B1 + (is_token_BS.cumsum(1) - 1).clamp(min=0)
        stream = in_rows(position_BS, is_token_BS, seen, self._reach)
        cache = KeyValues(seen.keys_values, len(self.blocks))
        hidden_BSW = self.lm.decode(self.lm.embed_text(token_BS).float(), stream, cache)
        return State(state.batch, hidden_BSW[:, -1], seen.with_(cache, position_BS, is_token_BS))

    def answer(self, batch: Batch, text: Text) -> Tensor:
        """The states that answer questions after histories, [B, D], in one pass: to be scored as any are.

        They are those of MASK, an item token of no item, after the question: it passes the item experts.
        """
        mask_B1 = torch.full_like(batch.item_BL[:, :1], self.items.n_items + 1)
        # Questions have no time of their own: they are asked when the newest event is done.
        time_BL = None if batch.time_BL is None else torch.cat([batch.time_BL, batch.time_BL[:, -1:]], 1)
        item_BL = torch.cat([batch.item_BL, mask_B1], 1)
        whole = Batch(item_BL, batch.length_B + 1, batch.user_B, time_BL)
        return self.read_around(whole, text, n_after=1)[:, -1 - self.prompt.n_texts]

    def read_around(self, batch: Batch, text: Text, n_after: int) -> Tensor:
        """States of every place of histories with a text before the last `n_after` events, [B, S, D].

        Args:
            batch: at least `n_after` events a row.
            text: one a row.
            n_after: 0: the text comes last.
        """
        batch = batch._replace(slot_N=None)
        embedded, places, events = self.items(batch), Places.of(batch), self.prompt.events(batch)
        B, L = batch.item_BL.shape
        stride = 1 + self.prompt.n_texts
        rows, place, (token_BQ, is_text_BQ) = (B, L * stride), (L - n_after) * stride, text
        position_BS, is_token_BS = events.position_NT.reshape(rows), events.is_token_NT.reshape(rows)
        n_before_B1 = is_token_BS[:, :place].sum(1, keepdim=True)
        asked_BQ = n_before_B1 + (is_text_BQ.cumsum(1) - 1).clamp(min=0)
        later_BS = position_BS + is_text_BQ.sum(1, keepdim=True)
        position_BS = woven(torch.cat([position_BS[:, :place], later_BS[:, place:]], 1), asked_BQ, place)
        begun = self._begun()
        seen = begun.rows(B)
        stream = in_rows(
            position_BS + seen.length_B1, woven(is_token_BS, is_text_BQ, place), seen, self._reach
        )
        x_BSW = self._vectors(events, places.pack(embedded.x_BLD)).view(*rows, -1)
        x_BSW = woven(x_BSW, self.lm.embed_text(token_BQ).to(x_BSW.dtype), place)
        added_BSW = self._added(embedded, places)
        if added_BSW is not None:
            added_BSW = woven(
                added_BSW.view(*rows, -1), torch.zeros_like(x_BSW[:, : token_BQ.shape[1]]), place
            )
        is_item_BS = (torch.arange(L * stride, device=token_BQ.device) % stride == 0).expand(rows)
        route = Route.of(woven(is_item_BS, torch.zeros_like(is_text_BQ), place), B * L)
        # By the prefix and not by a cache: layers that are computed anew for the backward pass get none.
        stream = stream._replace(route=route, added_RSW=added_BSW, prefix=begun.keys_values, aux={})
        return self.lm.decode(x_BSW, stream)

    def _read(self, batch: Batch, embedded: Embedded, whole: Batch, seen: Seen | None) -> State:
        """Read the events of `batch`, a row each, after what was seen; `whole` is the history with them."""
        places, events = Places.of(batch), self.prompt.events(batch)
        rows = (len(batch.item_BL), batch.item_BL.shape[1] * (1 + self.prompt.n_texts))
        position_BS, is_token_BS = events.position_NT.reshape(rows), events.is_token_NT.reshape(rows)
        if seen is None:
            seen = self._begun().rows(rows[0])
        position_BS = position_BS + seen.length_B1
        stream = in_rows(position_BS, is_token_BS, seen, self._reach)
        stream = self._informed(stream, events, embedded, places)
        cache = KeyValues(seen.keys_values, len(self.blocks))
        x_BSW = self._vectors(events, places.pack(embedded.x_BLD)).view(*rows, -1)
        hidden_MW = self.lm.decode(x_BSW, stream, cache).flatten(0, 1)
        hidden_BLW = hidden_MW.index_select(0, self._read_places(events)).view(*batch.item_BL.shape, -1)
        return State(whole, hidden_BLW[:, -1], seen.with_(cache, position_BS, is_token_BS))

    def _begun(self) -> Seen:
        """What was read before the first event: one row, of no tokens or of those that begin a text."""
        P = self.begin_1P.shape[1]
        position_1P, is_token_1P = torch.arange(P, device=self.begin_1P.device)[None], self.begin_1P >= 0
        nothing = Seen.nothing(position_1P[:, :0])
        if not P:
            return nothing
        # Not by a cache: layers that are computed anew for the backward pass get none.
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        stream = in_rows(position_1P, is_token_1P, nothing, self._reach)._replace(kept=kept)
        self.lm.decode(self.lm.embed_text(self.begin_1P).float(), stream)
        return Seen(tuple(kept[i] for i in range(len(self.blocks))), position_1P, is_token_1P)

    def _language_loss(self, hidden_SW: Tensor, events: Events) -> Tensor:
        """Mean loss of text tokens at places drawn at random; 0 where none of those holds a token."""
        n_texts = self.prompt.n_texts
        n_places = len(events.item_N) * n_texts
        drawn_K = torch.randint(n_places, (self.config.lm_places,), device=hidden_SW.device)
        event_K, text_K = drawn_K // n_texts, drawn_K % n_texts
        # A text's first token is predicted at the item's, which stands before it.
        logit_KV = self.lm.text_logits(hidden_SW.index_select(0, event_K * (1 + n_texts) + text_K))
        item_K = events.item_N[event_K]
        loss_K = F.cross_entropy(logit_KV.float(), self.prompt.token_IT[item_K, text_K], reduction="none")
        is_text_K = text_K < self.prompt.length_I[item_K]
        return (loss_K * is_text_K).sum() / is_text_K.sum().clamp(min=1)

    def _read_places(self, events: Events) -> Tensor:
        return events.item_place_N if self.config.read_at == "item" else events.end_place_N

    def _scale_of_items(self) -> float:
        # What stands in items' places before texts is a vector of the language model's own.
        if self.config.text_as == "items":
            return self.lm.scale
        wanted = self.config.item_scale
        return self.lm.eval().stream_size() / STD if wanted is None else self.lm.scale * wanted

    @property
    def _reach(self) -> Reach:
        return Reach(self.config.max_tokens, self.lm.window)

    def _vectors(self, events: Events, x_NW: Tensor) -> Tensor:
        """What enters the first layer: an item's vector, then those of its text, [N, 1 + T, W]."""
        x_NW = self.dropout(self.item_scale * x_NW)
        if not self.prompt.n_texts:
            return x_NW[:, None]
        text_NTW = self.lm.embed_text(self.prompt.token_IT[events.item_N])
        return torch.cat([x_NW[:, None], text_NTW.to(x_NW.dtype)], 1)

    def _informed(self, stream: Stream, events: Events, embedded: Embedded, places: Places) -> Stream:
        """The stream with its tokens' types, and with what the item encoder adds after the first layer."""
        n_events, n_texts = len(events.item_N), self.prompt.n_texts
        added_NTW, route = self._added(embedded, places), None
        added_RSW = None if added_NTW is None else added_NTW.view(*stream.position_RS.shape, -1)
        if self.config.text_as != "items":
            route = Route.strided(n_events, n_texts, events.item_N.device)
        return stream._replace(route=route, added_RSW=added_RSW, aux={})

    def _added(self, embedded: Embedded, places: Places) -> Tensor | None:
        """What the item encoder adds after the first layer, [N, 1 + T, W]; zero at texts."""
        if embedded.after_block0_BLD is None:
            return None
        added_NW = self.item_scale * places.pack(embedded.after_block0_BLD)
        return F.pad(added_NW[:, None], (0, 0, 0, self.prompt.n_texts))


def _some_rows(batch: Batch, rows: slice) -> Batch:
    """Rows of a batch, with slots for their own items."""
    item_BL, length_B, user_B = (part[rows] for part in batch[:3])
    time_BL = None if batch.time_BL is None else batch.time_BL[rows]
    return with_slots(Batch(item_BL, length_B, user_B, time_BL), max(int(length_B.sum()), 1))
