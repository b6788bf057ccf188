"""LinRec against its equations, one position and one head at a time in float64, and its memory."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lexrec import registry
from lexrec.data.batch import collate
from lexrec.models._layers import Rows
from lexrec.models.linrec import LinRec, LinRecConfig, linear_attention
from lexrec.training.step import Step
from tests import components
from tests.components import MAX_LEN, N_ITEMS, build, packed, ragged

MASK = N_ITEMS + 1


def norm_by_hand(x: Tensor, module: torch.nn.Module) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * module.weight + module.bias


def gelu(x: Tensor) -> Tensor:
    return x * torch.special.ndtr(x)


def unit(x: Tensor) -> Tensor:
    bent = torch.where(x > 0, x, x.exp() - 1)
    return bent / bent.square().sum().sqrt()


def attention_by_hand(attention: torch.nn.Module, x: list[Tensor], n_heads: int) -> list[Tensor]:
    """The paper's equation with its brackets the slow way round: (q k^T) v, key by key."""
    d = len(x[0])
    width = d // n_heads
    qkv = [attention.qkv.weight @ v + attention.qkv.bias for v in x]
    mixed = []
    for t in range(len(x)):
        heads = []
        for h in range(n_heads):
            at = slice(h * width, (h + 1) * width)
            q = unit(qkv[t][:d][at])
            shares = [q @ unit(other[d : 2 * d][at]) / math.sqrt(width) for other in qkv]
            heads.append(sum(s * other[2 * d :][at] for s, other in zip(shares, qkv, strict=True)))
        mixed.append(attention.out.weight @ torch.cat(heads) + attention.out.bias)
    return mixed


def linrec_by_hand(model: LinRec, items: list[int]) -> list[Tensor]:
    config, n = model.config, len(items)
    table, position = model.items.embedding.weight, model.position.weight
    x = [table[item] + position[config.max_len - n + t] for t, item in enumerate(items)]
    x = [norm_by_hand(v, model.input_norm) for v in x]
    for block in model.blocks:
        mixed = attention_by_hand(block.attention, x, config.n_heads)
        x = [norm_by_hand(v + m, block.attention_norm) for v, m in zip(x, mixed, strict=True)]
        inner = [gelu(block.up.weight @ v + block.up.bias) for v in x]
        out = [block.down.weight @ i + block.down.bias for i in inner]
        x = [norm_by_hand(v + o, block.ffn_norm) for v, o in zip(x, out, strict=True)]
    dense, norm = model.transform[0], model.transform[2]
    return [norm_by_hand(gelu(dense.weight @ v + dense.bias), norm) for v in x]


def test_linrec_equals_its_equations() -> None:
    torch.manual_seed(0)
    config = LinRecConfig(dim=8, max_len=MAX_LEN)
    model = LinRec(config, components.build_encoder("id_embedding", dim=8)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.items.embedding.weight[0] = 0
    rows = [[3, 1, 4, 1, 5, 9, 2, MASK], [MASK], [8, MASK, 7]]
    batch = packed(ragged(rows))
    found = model(batch).hidden_BLD
    expected = [linrec_by_hand(model, row) for row in rows]
    for b, states in enumerate(expected):
        assert_close(found[b, -len(states) :], torch.stack(states))
    table, weight = model.scoring(), torch.randn(N_ITEMS, dtype=torch.float64)
    mine = (table.score(found[batch.is_item_BL]) @ weight).square().sum()
    rows_ID, bias_I = model.items.embedding.weight[1:-1], model.bias_I
    by_hand = sum(
        (((rows_ID @ state + bias_I) @ weight) ** 2 for states in expected for state in states),
        torch.tensor(0.0),
    )
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(mine, parameters), torch.autograd.grad(by_hand, parameters), strict=True
    ):
        assert_close(one, other)


def test_what_stands_at_padding_counts_for_nothing() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    is_key_B1L1 = torch.ones(2, 1, 6, 1, dtype=torch.bool)
    is_key_B1L1[0, :, :4] = False
    y = linear_attention(q, k, v, is_key_B1L1)
    short = linear_attention(*(x[:1, :, 4:] for x in (q, k, v)), is_key_B1L1[:1, :, 4:])
    assert_close(y[:1, :, 4:], short)
    grads = torch.autograd.grad(y[0, :, 4:].square().sum() + y[1].sum(), (k, v))
    for grad in grads:
        assert (grad[0, :, :4] == 0).all()
        assert (grad[0, :, 4:] != 0).any()


@pytest.mark.parametrize("zero", ["q", "k"])
def test_a_zero_vector_stays_zero_with_a_finite_gradient(zero: str) -> None:
    parts = {name: torch.ones(1, 1, 2, 4) for name in "qkv"}
    parts[zero] = torch.zeros(1, 1, 2, 4)
    q, k, v = (part.requires_grad_() for part in parts.values())
    y = linear_attention(q, k, v, torch.ones(1, 1, 2, 1, dtype=torch.bool))
    y.sum().backward()
    assert (y == 0).all()
    assert all(part.grad.isfinite().all() for part in (q, k, v))


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, Tensor):
                self.numel = max(self.numel, part.numel())
        return out


def attention_step(name: str, length: int) -> int:
    """Elements of the largest tensor of the attention's training step over one full row."""
    torch.manual_seed(0)
    attention = build(name).blocks[0].attention.train()
    batch = packed(collate([[1] * length], length))
    x_ND = torch.randn(len(batch.slot_N), components.DIM, requires_grad=True)
    rows = Rows.open(batch)
    with LargestTensor() as noted:
        attention(x_ND, rows).sum().backward()
    return noted.numel


def model_step(name: str, length: int) -> int:
    """The same of the whole model under cloze, two rows."""
    torch.manual_seed(0)
    cls = registry.load("models", name)
    config = registry.config_class(cls)(dim=components.DIM, max_len=length)
    step = Step(cls(config, components.build_encoder("id_embedding")), components.build_objective("cloze"))
    batch = collate([[1] * length] * 2, length)
    with LargestTensor() as noted:
        targets = step.objective.prepare(batch, torch.Generator().manual_seed(0))
        step.train()(batch, targets)["loss"].backward()
    return noted.numel


@pytest.mark.parametrize("largest", [attention_step, model_step])
def test_memory_is_linear_in_the_length(largest: Callable[[str, int], int]) -> None:
    assert largest("linrec", 1024) < 2.1 * largest("linrec", 512)
    assert largest("bert4rec", 1024) > 3 * largest("bert4rec", 512)


def test_no_tensor_is_larger_than_the_feed_forward_layers() -> None:
    """Neither positions by positions nor a matrix of channels for each position, in any row or head."""
    assert model_step("linrec", 512) == 2 * 512 * 4 * components.DIM
