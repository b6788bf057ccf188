"""What a language model's layers add can be dropped; item vectors enter it larger than they are scored."""

import pytest
import torch
from torch.testing import assert_close

from lexrec.data.batch import collate
from lexrec.errors import ConfigError
from tests.components import MAX_LEN
from tests.unit.lm.test_adapters import built, each

HISTORIES = [[3, 1, 4, 1, 5], [8, 9, 7], [2]]
ALL = 1 - 1e-7


def states(adapter: str, family: str = "llama", *, trains: bool = False, **options: object) -> torch.Tensor:
    model = built(adapter, family, columns=(), **options).train(trains)
    with torch.no_grad():
        return model.encode_next(collate(HISTORIES, MAX_LEN)).hidden_BLD


@each
def test_every_layer_adds_nothing_where_all_is_dropped(adapter: str) -> None:
    model = built(adapter, columns=(), layer_dropout=ALL).train()
    batch = collate(HISTORIES, MAX_LEN)
    with torch.no_grad():
        newest_BW = model.items(batch).x_BLD[:, -1]
        bare_BW = model.lm.decoder.norm(model.item_scale * newest_BW)
        found_BW = model.encode_next(batch).hidden_BLD[:, -1]
    assert_close(found_BW, bare_BW, atol=1e-4, rtol=1e-4)


@each
def test_nothing_is_dropped_in_evaluation(adapter: str) -> None:
    assert torch.equal(states(adapter, layer_dropout=0.5), states(adapter))


def test_training_drops_anew_each_time() -> None:
    model = built("experts", columns=(), layer_dropout=0.3).train()
    with torch.no_grad():
        once, again = (model(collate(HISTORIES, MAX_LEN)).hidden_BLD for _ in range(2))
    assert not torch.equal(once, again)


def test_layers_computed_again_would_drop_something_else() -> None:
    why = r"model.layer_dropout=0.2 drops anew when lm.checkpointing=true computes a layer again; use one of"
    with pytest.raises(ConfigError, match=why):
        built("experts", layer_dropout=0.2, lm={"checkpointing": True})


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_an_item_enters_as_if_its_vector_were_larger(family: str) -> None:
    scaled = built("experts", family, columns=(), item_scale=30.0)
    larger = built("experts", family, columns=(), item_scale=1.0)
    batch = collate(HISTORIES, MAX_LEN)
    with torch.no_grad():
        larger.items.embedding.weight.mul_(30.0)  # type: ignore[union-attr, operator]
        found, wanted = scaled(batch).hidden_BLD, larger(batch).hidden_BLD
        assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert_close(scaled.items.lookup(torch.tensor([3])) * 30.0, larger.items.lookup(torch.tensor([3])))


def test_texts_in_items_places_keep_their_size() -> None:
    options = {"text_as": "items", "read_at": "end"}
    plain, scaled = (built("shared", item_scale=scale, **options) for scale in (1.0, 30.0))
    batch = collate(HISTORIES, MAX_LEN)
    with torch.no_grad():
        assert torch.equal(plain(batch).hidden_BLD, scaled(batch).hidden_BLD)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_items_enter_as_large_as_what_reaches_the_last_layer(family: str) -> None:
    model = built("experts", family, columns=())
    sizes: list[torch.Tensor] = []
    for layer in list(model.lm.layers)[:-1]:
        layer.register_forward_hook(
            lambda _, __, out: sizes.append((out[0] if isinstance(out, tuple) else out)[0])
        )
    n_tokens = model.lm.causal.get_input_embeddings().num_embeddings
    token_1N = torch.linspace(0, n_tokens - 1, 66).long()[None, 1:-1]
    with torch.no_grad():
        model.lm.decoder(input_ids=token_1N)
        reaching = float(sizes[-1].norm(dim=-1).median())
        item_D = model.items.lookup(torch.tensor([3]))[0]  # type: ignore[operator]
    assert float(model.item_scale) * 0.02 * len(item_D) ** 0.5 == pytest.approx(reaching, rel=1e-4)


def test_the_factor_is_saved_with_what_was_trained() -> None:
    saved = built("experts", columns=(), item_scale=7.0).state_dict()
    fresh = built("experts", columns=())
    fresh.load_state_dict(saved)
    assert float(fresh.item_scale) == 7.0
