"""Learned routing: a router picks one of several feed-forward experts for each token (ablation of IDIOMoE).

Paper: Switch Transformers, Fedus et al. 2021, https://arxiv.org/abs/2101.03961 (eq. 1, 2, 4-6); as an
ablation in IDIOMoE, https://arxiv.org/abs/2510.05125

    p(x) = softmax(W_r x)        e = argmax p(x)        y = p_e(x) expert_e(x)
    aux  = balance E sum_e f_e P_e      f_e: share of tokens sent to e, P_e: mean of p_e; summed over layers

over=all      the dynamic router: the pretrained expert is one of the E, and text is routed too
over=items    the hybrid: text has the pretrained expert by its type, items choose among E of their own

In training an expert takes at most capacity / E of the tokens; those beyond pass by the feed-forward part,
and the residual alone goes on. In evaluation none is left out, so that a history's states do not depend on
what else is in the batch; every expert then has room for all tokens, which costs E times the work.

Differences from the paper: no noise on the router's input, and no dropout in experts.

Dimension key: R rows, S slots, M tokens, E experts, C places of an expert, W width.
"""

import math
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from lexrec.lm import layers
from lexrec.lm.adapters.base import Adapter, AdapterConfig, chosen
from lexrec.lm.experts import Informed, install, narrow_copy
from lexrec.lm.loading import LanguageModel
from lexrec.lm.stream import Stream


class SwitchConfig(AdapterConfig):
    """Who is routed, to what, and how evenly."""

    name: Literal["switch"] = "switch"
    over: Literal["all", "items"] = "all"
    """all: every token; items: item tokens alone, text keeps the pretrained expert."""
    n_experts: int = Field(1, ge=1)
    """New experts in each layer; of over=items at least 2."""
    where: Literal["all", "first", "last"] = "all"
    """Layers with a router."""
    n_layers: int = Field(8, ge=1)
    """How many, of where=first and where=last."""
    shrink: Literal[1, 2, 4, 8] = 1
    """A new expert's inner width is the language model's divided by this."""
    capacity: float = Field(1.25, gt=0)
    """Places of each expert in training, in even shares of the tokens."""
    balance: float = Field(0.01, ge=0)
    """Weight of the load-balancing loss."""

    @model_validator(mode="after")
    def _there_is_a_choice(self) -> Self:
        if self.over == "items" and self.n_experts == 1:
            raise ValueError("over=items with n_experts=1 leaves no choice; use 2 or more")
        return self


class Switch(Adapter):
    """A router and new experts in each chosen layer."""

    config: SwitchConfig

    def __init__(self, config: SwitchConfig) -> None:
        self.config = config

    def apply(self, lm: LanguageModel) -> None:
        for layer in chosen(lm.layers, self.config.where, self.config.n_layers):
            name = layers.feed_forward(layer, lm.decoder)
            text = layer.get_submodule(name)
            settings = lm.decoder.config
            new = [narrow_copy(text, settings, self.config.shrink) for _ in range(self.config.n_experts)]
            install(layer, lm.decoder, name, _Routed(text, new, lm.width, self.config))


class _Routed(Informed):
    """Takes the place of a layer's feed-forward part."""

    def __init__(self, text: nn.Module, new: list[nn.Module], width: int, config: SwitchConfig) -> None:
        super().__init__()
        self.config = config
        self.text = text
        self.new = nn.ModuleList(new)
        self.router = nn.Linear(width, len(new) + (config.over == "all"), bias=False)
        nn.init.normal_(self.router.weight, std=0.02)

    def forward(self, x_RSW: Tensor) -> Tensor:
        stream = self.take_stream()
        if self.config.over == "all":
            is_token_M = _is_token(x_RSW, stream)
            return self._mixed(x_RSW.flatten(0, 1), is_token_M, stream).view(x_RSW.shape)
        if stream is None or stream.route is None:
            y_RSW: Tensor = self.text(x_RSW)
            return y_RSW
        route = stream.route
        is_token_M = _is_token(x_RSW, stream)
        if route.order_M is not None:
            is_token_M = is_token_M.index_select(0, route.order_M[: route.n_items])

        def item(x: Tensor) -> Tensor:
            return self._mixed(x.reshape(-1, x.shape[-1]), is_token_M, stream).view(x.shape)

        return route.apply(x_RSW, item, self.text)

    def _mixed(self, x_MW: Tensor, is_token_M: Tensor, stream: Stream | None) -> Tensor:
        """Each token through the expert that its router picks."""
        experts = [self.text, *self.new] if self.config.over == "all" else list(self.new)
        M, E = len(x_MW), len(experts)
        with torch.autocast(x_MW.device.type, enabled=False):
            share_ME = F.linear(x_MW.float(), self.router.weight).softmax(-1)
        share_M, expert_M = share_ME.max(-1)
        number_E = torch.arange(E, device=x_MW.device)
        sent_ME = ((expert_M[:, None] == number_E) & is_token_M[:, None]).long()
        if self.training and stream is not None and stream.aux is not None:
            loss = self.config.balance * _balance(share_ME, sent_ME, is_token_M)
            stream.aux["balance"] = stream.aux.get("balance", loss.new_zeros(())) + loss
        C = min(M, math.ceil(self.config.capacity * M / E)) if self.training else M
        place_M = (sent_ME.cumsum(0) - 1).gather(1, expert_M[:, None])[:, 0]
        # All that have no place write to, and read from, one more, which holds 0 in the end.
        place_M = torch.where(is_token_M & (place_M < C), expert_M * C + place_M, E * C)
        given_PW = x_MW.new_zeros(E * C + 1, x_MW.shape[1]).index_copy(0, place_M, x_MW)
        made = [expert(given_PW[e * C : (e + 1) * C]) for e, expert in enumerate(experts)]
        y_PW = torch.cat([*made, made[0].new_zeros(1, x_MW.shape[1])])
        return (y_PW.index_select(0, place_M) * share_M[:, None]).to(made[0].dtype)


def _is_token(x_RSW: Tensor, stream: Stream | None) -> Tensor:
    """True where there is a token, [R * S]."""
    if stream is None or stream.is_token_RS is None:
        return torch.ones(x_RSW.shape[:2], dtype=torch.bool, device=x_RSW.device).flatten()
    return stream.is_token_RS.flatten()


def _balance(share_ME: Tensor, sent_ME: Tensor, is_token_M: Tensor) -> Tensor:
    """E sum_e f_e P_e: 1 where tokens are spread evenly, E where all go to one expert."""
    n_tokens = is_token_M.sum().clamp(min=1)
    f_E = sent_ME.sum(0) / n_tokens
    p_E = (share_ME * is_token_M[:, None]).sum(0) / n_tokens
    return len(f_E) * (f_E * p_E).sum()
