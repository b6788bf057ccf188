"""SASRec's block and MLTFR's expert against straightforward float64 versions, forward and backward."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lexrec.config import load_recipe
from lexrec.errors import ConfigError
from lexrec.item_encoders._expert import TokenExpert
from lexrec.item_encoders._mltfr_config import MltfrConfig
from lexrec.models._layers import causal_mask
from lexrec.models.sasrec import SASRec, SASRecConfig
from tests import components
from tests.components import packed, ragged


def layer_norm(x: Tensor, module: torch.nn.Module) -> Tensor:
    if isinstance(module, torch.nn.Identity):
        return x
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * module.weight + module.bias


def sasrec_by_hand(model: SASRec, items: list[int]) -> list[Tensor]:
    """Eq. 1-5 of the paper, one position and one head at a time."""
    config, n = model.config, len(items)
    table, position = model.items.embedding.weight, model.position.weight
    x = [table[item] + position[config.max_len - n + t] for t, item in enumerate(items)]
    x = [layer_norm(v, model.input_norm) for v in x]
    for block in model.blocks:
        is_pre = config.norm == "pre"
        a = [layer_norm(v, block.attention_norm) if is_pre else v for v in x]
        qkv = [block.attention.qkv.weight @ v + block.attention.qkv.bias for v in a]
        d, width = config.dim, config.dim // config.n_heads
        mixed = []
        for t in range(n):
            heads = []
            for h in range(config.n_heads):
                at = slice(h * width, (h + 1) * width)
                q = qkv[t][:d][at]
                logits = torch.stack([q @ qkv[s][d : 2 * d][at] / math.sqrt(width) for s in range(t + 1)])
                share = (logits - logits.max()).exp()
                share = share / share.sum()
                heads.append(sum(share[s] * qkv[s][2 * d :][at] for s in range(t + 1)))
            mixed.append(block.attention.out.weight @ torch.cat(heads) + block.attention.out.bias)
        mixed = gated(block.attention_gate, x, mixed)
        x = [v + m for v, m in zip(x, mixed, strict=True)]
        x = x if is_pre else [layer_norm(v, block.attention_norm) for v in x]
        f = [layer_norm(v, block.ffn_norm) if is_pre else v for v in x]
        inner = [activated(block.up.weight @ v + block.up.bias, config.activation) for v in f]
        added = gated(block.ffn_gate, x, [block.down.weight @ i + block.down.bias for i in inner])
        x = [v + a for v, a in zip(x, added, strict=True)]
        x = x if is_pre else [layer_norm(v, block.ffn_norm) for v in x]
    return [layer_norm(v, model.final_norm) for v in x]


def activated(inner: Tensor, activation: str) -> Tensor:
    if activation == "swiglu":
        gate, value = inner[: len(inner) // 2], inner[len(inner) // 2 :]
        return gate / (1 + (-gate).exp()) * value
    return inner.clamp(min=0) if activation == "relu" else inner * torch.special.ndtr(inner)


def gated(gate: torch.nn.Linear | None, x: list[Tensor], added: list[Tensor]) -> list[Tensor]:
    """LiGR: what a sub-layer adds, times a sigmoid of the sub-layer's input before its norm."""
    if gate is None:
        return added
    return [a / (1 + (-(gate.weight @ v + gate.bias)).exp()) for v, a in zip(x, added, strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "pre"},
        {"norm": "post"},
        {"norm": "pre", "activation": "gelu", "ffn_factor": 4, "input_norm": True},
        {"norm": "post", "activation": "gelu", "ffn_factor": 4, "input_norm": True},
        {"norm": "pre", "activation": "swiglu", "ffn_factor": 2, "gated": True},
        {"norm": "pre", "gated": True},
    ],
    ids=["pre", "post", "pre-gelu", "post-gelu", "ligr", "gated"],
)
def test_sasrec_equals_its_equations(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    config = SASRecConfig(dim=8, max_len=8, **options)
    model = SASRec(config, components.build_encoder("id_embedding", dim=8)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.items.embedding.weight[0] = 0
    rows = [[3, 1, 4, 1, 5, 9, 2, 6], [5], [8, 9, 7]]
    batch = packed(ragged(rows))
    found = model(batch).hidden_BLD
    expected = [sasrec_by_hand(model, row) for row in rows]
    for b, states in enumerate(expected):
        assert_close(found[b, -len(states) :], torch.stack(states))
    weight = torch.randn(8, dtype=torch.float64)
    mine = torch.autograd.grad((found[batch.is_item_BL] @ weight).square().sum(), list(model.parameters()))
    by_hand = sum(((state @ weight) ** 2 for states in expected for state in states), torch.tensor(0.0))
    for one, other in zip(mine, torch.autograd.grad(by_hand, list(model.parameters())), strict=True):
        assert_close(one, other)


def test_gates_need_a_norm_before_the_sub_layer() -> None:
    with pytest.raises(ConfigError, match="model: gated residuals go with norm=pre, got norm=post"):
        load_recipe("sasrec_ligr", ["model.norm=post"])


def test_padding_rows_look_only_at_themselves() -> None:
    may_look_B1LL = causal_mask(torch.tensor([[False, True, True]]))
    assert may_look_B1LL[0, 0].tolist() == [[True, False, False], [False, True, False], [False, True, True]]


def expert_by_hand(expert: TokenExpert, query_D: Tensor, interest_D: Tensor) -> Tensor:
    """Eq. 4-10 for one query, dense over the vocabulary, with the estimator's indicator written out."""
    config, table = expert.config, expert.table_VW.double()
    aligned = table @ expert.align.weight.T + expert.align.bias
    cosine = (aligned @ interest_D) / (aligned.norm(dim=1) * interest_D.norm())
    score = expert.logit_scale * cosine
    chosen = score.argsort(descending=True)[: expert.k]
    hard = torch.zeros_like(score)
    hard[chosen] = 1.0
    if config.estimator == "log_bias":
        row_weight, bias = torch.ones_like(hard), score - score.detach()
    else:
        p = (score / config.tau).softmax(0)
        row_weight, bias = (hard - p).detach() + p, torch.zeros_like(score)
        if config.estimator == "release":
            row_weight = row_weight / row_weight[chosen].sum()
    rows = row_weight[:, None] * table
    q = expert.attention.query.weight @ query_D + expert.attention.query.bias
    keys = rows @ expert.attention.key.weight.T + expert.attention.key.bias
    values = rows @ expert.attention.value.weight.T + expert.attention.value.bias
    width = len(q) // config.n_heads
    heads = []
    for h in range(config.n_heads):
        at = slice(h * width, (h + 1) * width)
        logits = keys[chosen][:, at] @ q[at] / math.sqrt(width) + bias[chosen]
        heads.append(logits.softmax(0) @ values[chosen][:, at])
    return expert.attention.out.weight @ torch.cat(heads) + expert.attention.out.bias


@pytest.mark.parametrize("estimator", ["log_bias", "paper", "release"])
@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("n_queries", [2, 30], ids=["gathers-rows", "projects-table"])
def test_the_straight_through_choice_equals_its_equations(estimator: str, k: int, n_queries: int) -> None:
    torch.manual_seed(0)
    table = components.table("a", n_tokens=41, width=12)
    config = MltfrConfig(tables=("a",), k=k, estimator=estimator, bends_items=True, logit_scale=3.0)
    expert = TokenExpert(table.weight_VW.double(), 8, config).double().eval()
    query_ND = torch.randn(n_queries, 8, dtype=torch.float64, requires_grad=True)
    interest_ND = torch.randn(n_queries, 8, dtype=torch.float64, requires_grad=True)
    found_N1D, _ = expert(query_ND[:, None], interest_ND, None, None)
    rows = zip(query_ND, interest_ND, strict=True)
    expected_ND = torch.stack([expert_by_hand(expert, q, i) for q, i in rows])
    assert_close(found_N1D[:, 0], expected_ND)
    wanted = [query_ND, interest_ND, *expert.parameters()]
    pull_ND = torch.randn(n_queries, 8, dtype=torch.float64)
    mine = torch.autograd.grad((found_N1D[:, 0] * pull_ND).sum(), wanted, allow_unused=True)
    by_hand = torch.autograd.grad((expected_ND * pull_ND).sum(), wanted, allow_unused=True)
    for one, other in zip(mine, by_hand, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(one, other)


def test_the_releases_single_token_trains_no_filter() -> None:
    """K = 1 renormalised by its sum: the weight is 1 whatever the filter says, so its gradient is zero."""
    torch.manual_seed(0)
    config = MltfrConfig(tables=("a",), k=1, estimator="release")
    expert = TokenExpert(components.table("a").weight_VW, 8, config)
    out_N1D, _ = expert(torch.randn(4, 1, 8), torch.randn(4, 8), None, None)
    out_N1D.square().sum().backward()
    assert expert.align.weight.grad is not None
    assert expert.align.weight.grad.abs().max() < 1e-7 * expert.attention.value.weight.grad.abs().max()


@pytest.mark.parametrize(
    ("width", "attention", "whole"),
    [(768, 106_752, 155_968), (1024, 139_520, 205_120), (4096, 532_736, 794_944)],
)
def test_parameter_counts_are_the_papers(width: int, attention: int, whole: int) -> None:
    expert = TokenExpert(torch.zeros(100, width), 64, MltfrConfig(tables=("a",)))
    assert sum(p.numel() for p in expert.attention.parameters()) == attention
    logit_scale = 1
    assert sum(p.numel() for p in expert.parameters()) == whole + logit_scale
    assert sum(p.numel() for p in components.build_encoder("mltfr").gate.parameters()) == (32 + 1) * 2


@pytest.mark.parametrize(("width", "attention"), [(768, 106_496), (1024, 139_264), (4096, 532_480)])
def test_parameter_counts_without_biases(width: int, attention: int) -> None:
    expert = TokenExpert(torch.zeros(100, width), 64, MltfrConfig(tables=("a",), bias=False))
    assert sum(p.numel() for p in expert.attention.parameters()) == attention
