"""GRU4Rec against its gates written out, one position after another, in float64; and its carried state."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lexrec.data.batch import collate
from lexrec.models.gru4rec import GRU4Rec, GRU4RecConfig
from tests import components
from tests.components import packed, ragged

ROWS = [[3, 1, 4, 1, 5, 9, 2, 6], [5], [8, 9, 7]]


def build(n_layers: int = 2, encoder: str = "id_embedding", **options: object) -> GRU4Rec:
    torch.manual_seed(0)
    config = GRU4RecConfig(dim=8, max_len=8, n_layers=n_layers, state_dim=6)
    model = GRU4Rec(config, components.build_encoder(encoder, 8, **options)).eval()
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def gru_by_hand(model: GRU4Rec, items: list[int]) -> list[Tensor]:
    """Reset gate, update gate, candidate: each position from the state before it, which starts at zero."""
    x = [model.items.embedding.weight[item] for item in items]
    for block in model.blocks:
        gru = block.gru
        w_r, w_z, w_c = gru.weight_ih_l0.chunk(3)
        u_r, u_z, u_c = gru.weight_hh_l0.chunk(3)
        bw_r, bw_z, bw_c = gru.bias_ih_l0.chunk(3)
        bu_r, bu_z, bu_c = gru.bias_hh_l0.chunk(3)
        h, out = torch.zeros(u_r.shape[1], dtype=torch.float64), []
        for v in x:
            r = 1 / (1 + torch.exp(-(w_r @ v + bw_r + u_r @ h + bu_r)))
            z = 1 / (1 + torch.exp(-(w_z @ v + bw_z + u_z @ h + bu_z)))
            c = torch.tanh(w_c @ v + bw_c + r * (u_c @ h + bu_c))
            h = z * h + (1 - z) * c
            out.append(block.out.weight @ h + block.out.bias)
        x = out
    return x


def test_gru4rec_equals_its_gates_and_so_do_gradients() -> None:
    model, batch = build().double(), packed(ragged(ROWS))
    found_BLD = model(batch).hidden_BLD
    expected = [gru_by_hand(model, row) for row in ROWS]
    for b, states in enumerate(expected):
        assert_close(found_BLD[b, -len(states) :], torch.stack(states))
    weight_D = torch.randn(8, dtype=torch.float64)
    parameters = list(model.parameters())
    mine = torch.autograd.grad((found_BLD[batch.is_item_BL] @ weight_D).square().sum(), parameters)
    by_hand = sum(((state @ weight_D) ** 2 for states in expected for state in states), torch.tensor(0.0))
    for one, other in zip(mine, torch.autograd.grad(by_hand, parameters), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize(
    ("encoder", "options"),
    [("id_embedding", {}), ("mltfr", {}), ("mltfr", {"inject": "after_block0"})],
    ids=["id", "mltfr", "after-block-0"],
)
def test_a_step_carries_the_state_on_until_the_window_is_full(
    encoder: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(encoder=encoder, **options)
    lengths = []
    for block in model.blocks:
        block.gru.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    histories: list[list[int]] = [[], [1, 2, 3]]
    with torch.no_grad():
        state = model.begin(collate(histories, 8))
        for item in (4, 5, 6, 7, 8, 9, 10):
            lengths.clear()
            state = model.step(state, torch.tensor([item, item + 1]))
            is_one_position = lengths == [1, 1]
            histories = [histories[0] + [item], histories[1] + [item + 1]]
            assert is_one_position == (len(histories[1]) <= 8)
            whole = model.begin(collate(histories, 8))
            assert_close(state.hidden_BD, whole.hidden_BD)
            assert_close(state.cache, whole.cache)
            assert torch.equal(state.batch.item_BL, whole.batch.item_BL)


def test_an_encoder_that_reads_the_whole_row_is_read_again() -> None:
    model = build(encoder="mltfr", interest="sequence")
    with torch.no_grad():
        state = model.step(model.begin(collate([[1, 2, 3]], 8)), torch.tensor([4]))
        whole = model.begin(collate([[1, 2, 3, 4]], 8))
    assert_close(state.cache, whole.cache)
    assert_close(state.hidden_BD, whole.hidden_BD)


def test_the_state_is_zero_until_the_first_item() -> None:
    model = build()
    with torch.no_grad():
        empty = model.begin(collate([[]], 8))
        assert all((state_BH == 0).all() for state_BH in empty.cache)
        first_BD = model.begin(collate([[7]], 8)).hidden_BD
        bare_BD = model.begin(collate([[7]], 1)).hidden_BD
        stepped_BD = model.step(empty, torch.tensor([7])).hidden_BD
    assert_close(first_BD, bare_BD)
    assert_close(stepped_BD, bare_BD)


def test_under_autocast_the_recurrence_keeps_full_precision() -> None:
    model, batch, seen = build(), ragged(ROWS), []
    for block in model.blocks:
        block.gru.register_forward_hook(lambda _, __, out: seen.append(out[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        low_BLD = model(batch).hidden_BLD
    assert seen == [torch.float32, torch.float32]
    assert low_BLD.dtype == torch.bfloat16, "what is around it does not"
    low_BLD.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.blocks.parameters())
