"""IDIOMoE on a real pretrained language model, SmolLM2-135M from the package index (half a minute once)."""

import pyarrow as pa
import pytest
import torch

from lexrec.config import load_recipe
from lexrec.data.batch import collate
from lexrec.item_encoders.base import Catalogue
from lexrec.lm import loading
from lexrec.lm.quiet import quiet
from lexrec.lm.settings import LmConfig
from lexrec.lm.sources import find
from lexrec.models import build_model
from lexrec.models.idiomoe import Idiomoe
from lexrec.objectives.next_item import NextItem, NextItemConfig
from lexrec.training.step import Step

ENGLISH = (
    "The sun rises in the east and sets in the west. In the afternoon people like to drink a cup of tea."
)
N_ITEMS = 6
TITLES = ["Red Nail Polish", "Blue Nail Polish", "Shaving Soap", "Shaving Brush", "Hair Brush", "Shampoo"]


def loss_on(causal: torch.nn.Module, token_1L: torch.Tensor) -> float:
    with torch.no_grad():
        return float(causal(input_ids=token_1L, labels=token_1L).loss)


@pytest.mark.network
def test_a_real_language_model_keeps_its_language_and_learns_items() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = find("smollm2-135m").folder
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    token_1L = torch.tensor([tokenizer(ENGLISH)["input_ids"]])
    with torch.no_grad():
        logit_1LV = plain(token_1L).logits
    del plain

    config = load_recipe(
        "idiomoe_text", ["model.max_len=4", "model.text_len=4", "model.dropout=0", "model.adapter.shrink=8"]
    )
    table = pa.table({"item_id": range(N_ITEMS), "title": TITLES, "category": ["Beauty"] * N_ITEMS})
    torch.manual_seed(0)
    model = build_model(config, Catalogue(N_ITEMS, loading.width(LmConfig()), (), table))
    assert isinstance(model, Idiomoe)
    assert len(model.blocks) == 30
    objective = NextItem(NextItemConfig(), N_ITEMS)
    step, batch = Step(model.train(), objective), collate([[1, 2, 3, 4, 5], [6, 1, 2]], 5)
    optimizer = torch.optim.Adam([p for p in step.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(3):
        loss = step(batch, objective.prepare(batch, torch.Generator()))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5

    model.eval()
    with torch.no_grad():
        assert torch.equal(model.lm.causal(token_1L).logits, logit_1LV)
        state = model.step(model.begin(collate([[1, 2]], 4)), torch.tensor([3]))
        whole_BD = model.encode_next(collate([[1, 2, 3]], 4)).hidden_BLD[:, -1]
    torch.testing.assert_close(state.hidden_BD, whole_BD, atol=1e-3, rtol=1e-3)
    # It is a language model: English is far likelier than the same words in another order.
    order = torch.randperm(token_1L.shape[1], generator=torch.Generator().manual_seed(0))
    assert loss_on(model.lm.causal, token_1L) < 4 < loss_on(model.lm.causal, token_1L[:, order])
