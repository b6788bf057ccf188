"""From a language model on disk to a frozen one that reads streams of tokens, of text and of items.

Dimension key: R rows, S slots, N tokens, W width, V text vocabulary.
"""

import json
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lexrec.errors import LmError
from lexrec.kernels._training import trains_in_16_bits
from lexrec.lm import fused, layers
from lexrec.lm.quiet import quiet
from lexrec.lm.settings import LmConfig
from lexrec.lm.sources import Base, find
from lexrec.lm.stream import ATTENTION, KeyValues, Reach, Stream, packed, register

_PRETRAINED = "is_pretrained"
"""Attribute of a parameter that is trained."""
_READ = 64
"""Tokens that are read to see how large what runs through the layers is."""


def load(config: LmConfig) -> "LanguageModel":
    """The language model of a config, every weight of it frozen.

    Raises:
        LmError: it cannot be had, read or run on streams.
    """
    base = find(config.model)
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise LmError(
            "language models are read by transformers, which is missing; pip install 'lexrec[lm]'"
        ) from error
    register()
    with quiet():
        try:
            causal = AutoModelForCausalLM.from_pretrained(
                base.folder,
                dtype=torch.bfloat16 if config.dtype == "bf16" else torch.float32,
                attn_implementation=ATTENTION,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            )
        except Exception as error:  # Whatever stops transformers, the folder is the cause.
            why = " ".join(str(error).split())[:200]
            raise LmError(f"language model {base.name} cannot be loaded: {why}") from error
    return LanguageModel(causal, base, config)


def width(config: LmConfig) -> int:
    """Width of a language model's vectors, read without its weights.

    Raises:
        LmError: it cannot be had, or its config.json does not say.
    """
    base = find(config.model)
    try:
        tree = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
        return int(tree.get("text_config", tree)["hidden_size"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LmError(f"{base.folder}/config.json does not say hidden_size") from error


class LanguageModel(nn.Module):
    """A pretrained causal language model whose layers can be told of tokens that are no text.

    Args:
        causal: transformers' model, built with the attention ATTENTION.
        base: where it came from.
        config: how it is held.

    Raises:
        LmError: it does not do on streams what it does on text.
    """

    def __init__(self, causal: Any, base: Base, config: LmConfig) -> None:
        super().__init__()
        self.causal = causal.eval().requires_grad_(False)
        self.base, self.config = base, config
        self._first: Any = None
        self.layers_changed()
        self.scale = _embedding_scale(causal.get_input_embeddings())
        _check(self)

    def layers_changed(self) -> None:
        """Tell the layers, new ones among them, what holds for all; called again by who adds some."""
        self._is_served = False
        if self._first is not None:
            self._first.remove()
        self._first = self.layers[0].register_forward_hook(_add_after_layer, with_kwargs=True)
        if self.config.checkpointing:
            # No layer draws a random number: dropout is on what goes in.
            how = {"use_reentrant": False, "preserve_rng_state": False}
            # transformers 5 has another name for it, and warns of the old one.
            new = getattr(self.causal, "activation_checkpointing_enable", None)
            (new or self.causal.gradient_checkpointing_enable)(how)

    @property
    def decoder(self) -> Any:
        """The language model without its head."""
        return self.causal.get_decoder()

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers."""
        return layers.blocks(self.decoder)

    @property
    def width(self) -> int:
        return int(self.decoder.config.hidden_size)

    @property
    def window(self) -> int | None:
        """How far layers with a sliding window look, in tokens; None where no layer has one."""
        config = self.decoder.config
        uses = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
        return int(uses) if uses else None

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of this language model, as transformers has it.

        Raises:
            LmError: its folder has none.
        """
        from transformers import AutoTokenizer

        try:
            with quiet():
                return AutoTokenizer.from_pretrained(self.base.folder, local_files_only=True)
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise LmError(f"language model {self.base.name} has no readable tokenizer: {why}") from error

    def begin_tokens(self) -> list[int]:
        """Tokens that the tokenizer puts before a text; none for many.

        Raises:
            LmError: there is no tokenizer.
        """
        with_them, without = (
            self.tokenizer("a", add_special_tokens=wanted)["input_ids"] for wanted in (True, False)
        )
        n_before = next(i for i in range(len(with_them)) if with_them[i : i + len(without)] == without)
        found: list[int] = with_them[:n_before]
        return found

    def embed_text(self, token: Tensor) -> Tensor:
        """Vectors of text tokens as the first layer gets them, [*token.shape, W]."""
        vector: Tensor = self.causal.get_input_embeddings()(token)
        return vector

    def first_token(self) -> int:
        """The token that begins a text, or where there is none, the one that ends one.

        Raises:
            LmError: there is neither.
        """
        known = self.causal.config.get_text_config()
        token = known.bos_token_id if known.bos_token_id is not None else known.eos_token_id
        if token is None:
            raise LmError(f"language model {self.base.name} has neither a bos_token_id nor an eos_token_id")
        return int(token[0] if isinstance(token, list) else token)

    def first_vector(self) -> Tensor:
        """Vector of `first_token`, without the family's scale, float32 [W].

        Raises:
            LmError: there is no such token.
        """
        table_VW = self.causal.get_input_embeddings().weight
        row_W: Tensor = table_VW[self.first_token()].detach().float().clone()
        return row_W

    def decode(self, x_RSW: Tensor, stream: Stream, cache: KeyValues | None = None) -> Tensor:
        """States of embedded tokens after the last norm, [R, S, W]."""
        if not self._is_served and trains_in_16_bits(x_RSW):
            # Only now is everything there that adapters put into the layers.
            fused.install(self.decoder)
            self._is_served = True
        with self.arithmetic(x_RSW.device):
            hidden_RSW: Tensor = self.decoder(
                inputs_embeds=x_RSW,
                # Four dimensions are taken as they are; the attention reads the stream's own.
                attention_mask=stream.masks[None],
                position_ids=stream.position_RS,
                past_key_values=cache,
                use_cache=False,
                stream=stream,
            ).last_hidden_state
        return hidden_RSW.float()

    def text_logits(self, hidden_NW: Tensor) -> Tensor:
        """Logits over the text vocabulary, [N, V]: the language model's own head and soft cap."""
        with self.arithmetic(hidden_NW.device):
            head = self.causal.get_output_embeddings()
            logit_NV: Tensor = head(hidden_NW.to(head.weight.dtype))
        cap = getattr(self.decoder.config, "final_logit_softcapping", None)
        return logit_NV if cap is None else torch.tanh(logit_NV / cap) * cap

    def arithmetic(self, device: torch.device) -> AbstractContextManager[Any]:
        """Around every use of frozen weights: with bf16, autocast in training and in serving alike."""
        if self.config.dtype == "fp32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)

    def pretrained(self) -> list[nn.Parameter]:
        """The trained parameters that started from what the language model knows."""
        return [p for p in self.causal.parameters() if p.requires_grad and getattr(p, _PRETRAINED, False)]

    @torch.no_grad()
    def stream_size(self) -> float:
        """Root mean square of what reaches the last layer, as layers are now, when they read text.

        The median over 64 tokens of the vocabulary.
        """
        embedding = self.causal.get_input_embeddings()
        V = embedding.num_embeddings
        token_N = torch.linspace(0, V - 1, _READ + 2, device=embedding.weight.device).long()[1:-1]
        with self.arithmetic(token_N.device):
            x_1NW = self.embed_text(token_N)[None].float()
            streams_RSW = self.decoder(
                inputs_embeds=x_1NW, use_cache=False, output_hidden_states=True
            ).hidden_states
        # The last of them is normed.
        return float(streams_RSW[-2].float().square().mean(-1).sqrt().median())

    def train_attention(self) -> None:
        """Attention and norms are trained: all but the feed-forward parts, the text table and the head."""
        embedding, head = self.causal.get_input_embeddings(), self.causal.get_output_embeddings()
        kept = {id(p) for part in (embedding, head) if part is not None for p in part.parameters()}
        for layer in self.layers:
            part = layer.get_submodule(layers.feed_forward(layer, self.decoder))
            kept |= {id(p) for p in part.parameters()}
        for parameter in self.causal.parameters():
            if id(parameter) not in kept:
                train(parameter)


def train(parameter: nn.Parameter, *, is_pretrained: bool = True) -> None:
    """Mark a parameter of a language model as trained: in float32, whatever the frozen ones are held in.

    Args:
        is_pretrained: it starts from what the language model knows, at `train.pretrained_lr`.
    """
    parameter.data = parameter.data.float()
    parameter.requires_grad_(True)
    setattr(parameter, _PRETRAINED, is_pretrained)


def _add_after_layer(_: nn.Module, __: Any, given: dict[str, Any], out: Any) -> Any:
    """Hook of the first layer: what the stream brings for its output."""
    stream = given.get("stream")
    if stream is None or stream.added_RSW is None:
        return out
    return (out[0] + stream.added_RSW, *out[1:]) if isinstance(out, tuple) else out + stream.added_RSW


def _embedding_scale(embedding: Any) -> float:
    """What the family multiplies its token vectors by (Gemma: sqrt(W)); item vectors are to be alike."""
    with torch.no_grad():
        plain_W = embedding.weight[1].double()
        scaled_W = embedding(torch.tensor([1]))[0].double()
        return float(scaled_W @ plain_W / (plain_W @ plain_W).clamp(min=1e-30))


@torch.no_grad()
def _check(lm: LanguageModel) -> None:
    """Two short histories in one stream, against each alone as the family itself reads it."""
    name, embedding = lm.base.name, lm.causal.get_input_embeddings()
    token_N = torch.arange(5) % embedding.num_embeddings
    x_1NW = embedding(token_N)[None].float()
    history_N, position_N = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1])
    stream = packed(history_N, position_N, torch.ones(5, dtype=torch.bool), 3, Reach(None, lm.window))
    try:
        together_1NW = lm.decode(x_1NW, stream)
        with lm.arithmetic(x_1NW.device):
            alone = [lm.decoder(inputs_embeds=part, use_cache=False)[0] for part in x_1NW.split([3, 2], 1)]
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise LmError(f"language model {name} does not run on streams of tokens: {why}") from error
    alone_1NW = torch.cat(alone, 1).float()
    close = 1e-3 if lm.config.dtype == "fp32" else 5e-2
    if (together_1NW - alone_1NW).abs().max() > close * alone_1NW.abs().max():
        raise LmError(
            f"language model {name} does on a stream of two texts what it does not do on each; its family "
            "has attention of its own, so use another, such as llama, qwen3 or gemma3"
        )
