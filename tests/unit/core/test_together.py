"""Frozen experts that are asked as one say what they say one by one."""

import pytest
import torch

from lexrec.data.batch import Batch, collate, with_slots
from lexrec.item_encoders import _together
from lexrec.item_encoders._expert import TokenExpert
from lexrec.item_encoders._mltfr_config import MltfrConfig
from lexrec.item_encoders.base import Catalogue
from lexrec.item_encoders.mltfr import Mltfr
from lexrec.kernels.short_tokens import ShortTokens
from tests.components import DIM, MAX_LEN, N_ITEMS, table


def experts(encoder: Mltfr) -> list[TokenExpert]:
    return list(encoder.experts)  # type: ignore[arg-type]


def frozen(monkeypatch: pytest.MonkeyPatch, **options: object) -> Mltfr:
    """An encoder over two tables that are large enough to be chosen from in 8 bits, on any processor."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True}, raising=False)
    torch.manual_seed(0)
    tables = (table("a", 2000), table("b", 1500, 16, seed=1))
    config = MltfrConfig(tables=("a", "b"), k=5, **options)
    encoder = Mltfr(config, Catalogue(N_ITEMS, DIM, tables)).eval()
    with torch.no_grad():
        for i, expert in enumerate(experts(encoder)):
            for parameter in expert.attention.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            expert.logit_scale.fill_(20.0 - 25.0 * i)  # The second prefers what is far away.
    encoder.freeze()
    return encoder


def a_batch(*, has_slots: bool) -> Batch:
    rows = [
        [1 + (3 * b + 5 * t) % N_ITEMS for t in range(length)] for b, length in enumerate((1, 3, MAX_LEN, 5))
    ]
    batch = collate(rows, MAX_LEN)
    return with_slots(batch, int(batch.length_B.sum())) if has_slots else batch


OPTIONS = [
    {},
    {"interest": "sequence"},
    {"refresh": 0.5},
    {"bias": False},
    {"cap": None},
    {"filter": "frozen"},
]


@pytest.mark.parametrize("has_slots", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_added_is_the_same(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], has_slots: bool
) -> None:
    encoder, batch = frozen(monkeypatch, **options), a_batch(has_slots=has_slots)
    monkeypatch.setattr(_together, "_CHUNK_ROWS", 50)
    assert encoder._together is not None
    with torch.no_grad():
        together_BLD = encoder(batch).x_BLD
        encoder._together = None
        alone_BLD = encoder(batch).x_BLD
    assert (alone_BLD - encoder.lookup(batch.item_BL)).abs().max() > 1e-3
    torch.testing.assert_close(together_BLD, alone_BLD, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "release"},
        {"eval_noise": True},
        {"interest": "sequence", "pool": "batch"},
        {"k": 40},
    ],
    ids=str,
)
def test_those_that_choose_otherwise_are_asked_one_by_one(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True}, raising=False)
    tables = (table("a", 2000), table("b", 1500, 16, seed=1))
    encoder = Mltfr(MltfrConfig(**{"tables": ("a", "b"), "k": 5, **options}), Catalogue(N_ITEMS, DIM, tables))
    encoder.eval().freeze()
    assert encoder._together is None
    assert all(isinstance(expert._rough, ShortTokens) for expert in experts(encoder))


def test_constants_that_were_dropped_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, batch = frozen(monkeypatch), a_batch(has_slots=True)
    monkeypatch.setattr(_together.Together, "__call__", None)
    experts(encoder)[0].thaw()
    with torch.no_grad():
        encoder(batch)
    encoder.freeze()
    encoder(batch)  # With gradients.
    encoder.freeze()
    encoder.thaw()
    with torch.no_grad():
        encoder(batch)
