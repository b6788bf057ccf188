"""Rows of like length together, and the newest position alone: states and gradients of padded rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from lexrec import registry
from lexrec.data.batch import Batch, collate, with_slots
from lexrec.models import _layers
from lexrec.models._layers import Attention, Heads, Newest, Rows, attend
from lexrec.models.base import SequenceModel
from lexrec.models.linrec import LinearAttention
from lexrec.models.sasrec import SASRec, SASRecConfig
from lexrec.objectives.next_item import NextItem, NextItemConfig
from lexrec.training.step import Step
from tests import components
from tests.components import DIM, N_ITEMS, build

DROPOUT = 0.3


def batch_of(lengths: list[int], max_len: int, spare: int = 0) -> Batch:
    rows = [[1 + (3 * b + 5 * t) % N_ITEMS for t in range(length)] for b, length in enumerate(lengths)]
    batch = collate(rows, max_len)
    return with_slots(batch, int(batch.length_B.sum()) + spare)


def mixed(attention: nn.Module, batch: Batch, rows: Rows) -> tuple[Tensor, ...]:
    """States at items, and the gradients of parameters and inputs."""
    torch.manual_seed(0)
    x_BLD = torch.randn(*batch.item_BL.shape, DIM, requires_grad=True)
    pull_BLD = torch.randn_like(x_BLD) * batch.is_item_BL[..., None]
    places = _layers.Places.of(batch)
    y_BLD = places.unpack(attention(places.pack(x_BLD), rows))
    gradients = torch.autograd.grad((y_BLD * pull_BLD).sum(), [x_BLD, *attention.parameters()])
    return y_BLD * batch.is_item_BL[..., None], gradients[0] * batch.is_item_BL[..., None], *gradients[1:]


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=9),
    st.sampled_from([7, 8, 9, 20]),
    st.integers(0, 3),
    st.sampled_from(["causal", "open", "linear"]),
)
def test_groups_mix_what_padded_rows_mix(lengths: list[int], max_len: int, spare: int, kind: str) -> None:
    batch = batch_of(lengths, max_len, spare)
    if len(batch.slot_N) == 0:
        return
    torch.manual_seed(1)
    attention = LinearAttention(DIM, 2) if kind == "linear" else Attention(DIM, 2, DROPOUT)
    make = Rows.causal if kind == "causal" else Rows.open
    padded = batch._replace(slot_N=None)
    grouped = make(batch)
    assert sum(R for R, _ in grouped.shapes) == len(lengths)
    for one, other in zip(
        mixed(attention.eval(), batch, grouped), mixed(attention, padded, make(padded)), strict=True
    ):
        assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["id_embedding", "mltfr"])
@pytest.mark.parametrize("model", ["id_decoder", "hstu", "gru4rec"])
def test_models_that_mix_positions_in_their_own_way_read_groups_too(model: str, encoder: str) -> None:
    torch.manual_seed(0)
    cls = registry.load("models", model)
    items = components.build_encoder(encoder, **({"inject": "after_block0"} if encoder == "mltfr" else {}))
    built = cls(registry.config_class(cls)(dim=DIM, max_len=20), items).eval()
    parameters = {n: p for n, p in built.named_parameters() if p.requires_grad}
    packed = batch_of([3, 0, 8, 1, 5, 20, 12], 20, 2)
    time_BL = torch.arange(20).square() * 40 + packed.user_B[:, None]
    packed = packed._replace(time_BL=time_BL * packed.is_item_BL)
    states_BLD, gradients = [], []
    for batch in (packed, packed._replace(slot_N=None)):
        hidden_BLD = built(batch).hidden_BLD * batch.is_item_BL[..., None]
        states_BLD.append(hidden_BLD)
        slopes = torch.autograd.grad(hidden_BLD.square().sum(), list(parameters.values()), allow_unused=True)
        gradients.append({n: g for n, g in zip(parameters, slopes, strict=True) if g is not None})
    assert_close(*states_BLD, atol=1e-5, rtol=1e-4)
    assert_close(*gradients, atol=1e-4, rtol=1e-3)


def test_short_histories_share_short_rows() -> None:
    rows = Rows.causal(batch_of([1, 50, 8, 9, 0, 16, 33], 50))
    assert rows.shapes == ((3, 8), (2, 16), (2, 50))
    assert rows.places.length == 3 * 8 + 2 * 16 + 2 * 50


@pytest.mark.parametrize("is_by_row", [False, True])
def test_dropped_weights_are_a_share_of_all_and_the_rest_makes_up_for_them(is_by_row: bool) -> None:
    """Values are unit vectors, so that what comes out are the weights themselves."""
    torch.manual_seed(0)
    R, H, W = 300, 2, 8
    q_RHWK, k_RHWK = torch.randn(2, R, H, W, W)
    v_RHWK = torch.eye(W).expand(R, H, W, W)
    may_look = torch.ones(1, 1, W, W, dtype=torch.bool).tril()
    if is_by_row:
        length_R = 1 + torch.arange(R) % W
        may_look = (torch.arange(W) < length_R[:, None])[:, None, None]
    heads = Heads(q_RHWK, k_RHWK, v_RHWK, may_look)
    weight_RHWW, found_RHWW = attend(heads, 0.0), attend(heads, DROPOUT)
    is_kept = found_RHWW != 0
    assert_close(found_RHWW[is_kept], weight_RHWW[is_kept] / (1 - DROPOUT))
    assert not found_RHWW.masked_select(~may_look.expand_as(is_kept)).any()
    share = is_kept.masked_select(may_look.expand_as(is_kept)).float().mean()
    assert abs(share - (1 - DROPOUT)) < 0.02


SASRECS = [
    {},
    {"n_layers": 1},
    {"norm": "post"},
    {"gated": True, "activation": "swiglu"},
    {"input_norm": True, "ffn_factor": 2, "n_layers": 3},
]


def newest_by_hand(model: SequenceModel, batch: Batch) -> Tensor:
    """The last of all states."""
    return model(batch).hidden_BLD[:, -1:]


@pytest.mark.parametrize("options", SASRECS, ids=str)
@pytest.mark.parametrize("encoder", ["id_embedding", "mltfr"])
@pytest.mark.parametrize("lengths", [[3, 8, 1, 5], [8, 8]], ids=["ragged", "full"])
def test_the_newest_position_alone_is_that_of_the_whole_row(
    options: dict[str, object], encoder: str, lengths: list[int]
) -> None:
    torch.manual_seed(0)
    inject = {"inject": "after_block0"} if encoder == "mltfr" else {}
    config = SASRecConfig(dim=DIM, max_len=8, **options)
    model = SASRec(config, components.build_encoder(encoder, **inject)).eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    packed = batch_of(lengths, 8, 2)
    for batch in (packed, packed._replace(slot_N=None)):
        one_B1D, other_B1D = model.encode_next(batch).hidden_BLD, newest_by_hand(model, batch)
        assert_close(one_B1D, other_B1D, atol=1e-5, rtol=1e-4)
        pull_B1D = torch.randn_like(one_B1D)
        ours, theirs = (
            torch.autograd.grad((state_B1D * pull_B1D).sum(), parameters, allow_unused=True)
            for state_B1D in (one_B1D, other_B1D)
        )
        for one, other in zip(ours, theirs, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "linrec"])
def test_the_last_block_computes_one_position_a_row(name: str) -> None:
    model, batch = build(name), batch_of([3, 8, 1, 5], 8)
    seen: list[tuple[int, int]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, given, out: seen.append((len(given[0]), len(out))))
    model.encode_next(batch)
    n_slots = seen[0][0]
    assert seen == [(n_slots, n_slots), (n_slots, 4)]


def test_an_empty_row_is_zero_beside_any_other() -> None:
    model = build("sasrec")
    for batch in (batch_of([0, 4, 0], 8), batch_of([0, 4, 0], 8)._replace(slot_N=None)):
        assert model.encode_next(batch).hidden_BLD.flatten(1).any(1).tolist() == [False, True, False]
        assert Newest.of(batch).has_item_B1.flatten().tolist() == [False, True, False]


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_training_follows_the_curve_of_padded_rows(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = []
    for may_ask in (True, False):
        monkeypatch.setattr(_layers, "_may_ask", lambda batch, answer=may_ask: answer)
        curves.append(curve(loss))
    assert curves[0][-1] < 0.8 * curves[0][0]
    assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-4, atol=0)


def curve(loss: str) -> list[float]:
    """Losses of forty steps on histories of unlike length, without dropout."""
    torch.manual_seed(0)
    config = SASRecConfig(dim=DIM, max_len=20, dropout=0)
    model = SASRec(config, components.build_encoder("id_embedding"))
    step = Step(model, NextItem(NextItemConfig(loss=loss), N_ITEMS)).train()
    optimizer, generator = torch.optim.Adam(step.parameters(), 1e-2), torch.Generator().manual_seed(0)
    rows = [[(u + t) % N_ITEMS + 1 for t in range(2 + u % 20)] for u in range(40)]
    batch = collate(rows, 21)
    losses = []
    for _ in range(40):
        value = step(batch, step.objective.prepare(batch, generator))["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses
