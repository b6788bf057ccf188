"""BERT4Rec against transformers' BERT with the same weights, and where it reads its [MASK]."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lexrec.data.batch import Batch, collate
from lexrec.models.bert4rec import BERT4Rec, BERT4RecConfig
from tests import components
from tests.components import MAX_LEN, N_ITEMS, build, packed, ragged

MASK = N_ITEMS + 1
WIDTH = 8


def same_weights(model: BERT4Rec, bert: torch.nn.Module) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Each of our parameters, and theirs that hold the same numbers one below the other."""
    embeddings, layers = bert.bert.embeddings, bert.bert.encoder.layer
    yield model.items.embedding.weight, [embeddings.word_embeddings.weight]
    yield model.position.weight, [embeddings.position_embeddings.weight]
    modules = [(model.input_norm, [embeddings.LayerNorm])]
    for block, layer in zip(model.blocks, layers, strict=True):
        qkv = layer.attention.self
        modules += [
            (block.attention.qkv, [qkv.query, qkv.key, qkv.value]),
            (block.attention.out, [layer.attention.output.dense]),
            (block.attention_norm, [layer.attention.output.LayerNorm]),
            (block.up, [layer.intermediate.dense]),
            (block.down, [layer.output.dense]),
            (block.ffn_norm, [layer.output.LayerNorm]),
        ]
    head = bert.cls.predictions
    modules += [
        (model.transform[0], [head.transform.dense]),
        (model.transform[2], [head.transform.LayerNorm]),
    ]
    for ours, theirs in modules:
        yield ours.weight, [module.weight for module in theirs]
        yield ours.bias, [module.bias for module in theirs]


def test_bert4rec_is_berts_masked_language_model() -> None:
    transformers = pytest.importorskip("transformers")
    config = BERT4RecConfig(dim=WIDTH, max_len=MAX_LEN)
    torch.manual_seed(0)
    model = BERT4Rec(config, components.build_encoder("id_embedding", dim=WIDTH)).double().eval()
    bert = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=N_ITEMS + 2,
            hidden_size=WIDTH,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=MAX_LEN,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
        )
    )
    bert = bert.double().eval()
    head_bias = bert.cls.predictions.decoder.bias
    pairs = list(same_weights(model, bert))
    with torch.no_grad():
        bert.bert.embeddings.token_type_embeddings.weight.zero_()
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.items.embedding.weight[0] = 0
        for ours, theirs in pairs:
            for part, whole in zip(ours.chunk(len(theirs)), theirs, strict=True):
                whole.copy_(part)
        head_bias[1:-1] = model.bias_I
    assert sum(ours.numel() for ours, _ in pairs) + N_ITEMS == sum(p.numel() for p in model.parameters())
    batch = packed(ragged([[3, 1, MASK, 1, 5, 9, 2, 6], [MASK], [8, 9, MASK]]))
    is_item_BL = batch.is_item_BL
    mine_NI = model.scoring().score(model(batch).hidden_BLD[is_item_BL])
    logit_BLI = bert(input_ids=batch.item_BL, attention_mask=is_item_BL.long()).logits
    theirs_NI = logit_BLI[is_item_BL][:, 1:-1]
    assert_close(mine_NI, theirs_NI)
    pull_NI = torch.randn_like(mine_NI)
    (mine_NI * pull_NI).sum().backward()
    (theirs_NI * pull_NI).sum().backward()
    for ours, theirs in pairs:
        assert_close(ours.grad, torch.cat([whole.grad for whole in theirs]))
    assert_close(model.bias_I.grad, head_bias.grad[1:-1])


def reads(model: BERT4Rec, batch: Batch) -> Batch:
    """The batch that the model reads to predict the next item."""
    seen: list[Batch] = []
    handle = model.items.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.encode_next(batch)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("length", [5, MAX_LEN], ids=["trimmed", "whole"])
@torch.no_grad()
def test_the_mask_follows_the_newest_item_and_is_read(length: int) -> None:
    model = build("bert4rec")
    batch = collate([[1, 2, 3], [4, 5, 6, 7, 8], []], length)
    given = reads(model, batch)
    expected = collate([[1, 2, 3, MASK], [4, 5, 6, 7, 8, MASK], [MASK]], min(length + 1, MAX_LEN))
    assert torch.equal(given.item_BL, expected.item_BL)
    assert torch.equal(given.length_B, expected.length_B)
    wide = collate([[1, 2, 3, MASK], [4, 5, 6, 7, 8, MASK], [MASK]], MAX_LEN)
    assert_close(model.encode_next(batch).hidden_BLD, model(wide).hidden_BLD[:, -1:])
    assert_close(model.encode_next(packed(batch)).hidden_BLD, model(wide).hidden_BLD[:, -1:])


@torch.no_grad()
def test_a_full_row_loses_its_oldest_item_and_times_move_along() -> None:
    model, row, time = build("bert4rec"), [1, 2, 3, 4, 5, 6, 7, 8], [10, 20, 30, 40, 50, 60, 70, 80]
    batch = collate([row, row[:2]], MAX_LEN, [time, time[:2]])
    given = reads(model, packed(batch, spare=0))
    assert given.item_BL.tolist() == [[*row[1:], MASK], [0, 0, 0, 0, 0, 1, 2, MASK]]
    assert given.time_BL.tolist() == [[*time[1:], 80], [0, 0, 0, 0, 0, 10, 20, 20]]
    assert given.length_B.tolist() == [8, 3]
    in_use = given.slot_N[given.slot_N < given.item_BL.numel()]
    assert in_use.tolist() == given.is_item_BL.flatten().nonzero()[:, 0].tolist()
    changed = collate([[12, *row[1:]], row[:2]], MAX_LEN)
    before = model.encode_next(batch._replace(time_BL=None)).hidden_BLD
    assert torch.equal(before, model.encode_next(changed).hidden_BLD)


@pytest.mark.parametrize("name", ["bert4rec", "linrec"])
@pytest.mark.parametrize("pack", [packed, lambda batch: batch], ids=["packed", "padded"])
@torch.no_grad()
def test_padding_is_finite_and_an_empty_history_still_predicts(name: str, pack: object) -> None:
    model = build(name)
    batch = pack(ragged())  # type: ignore[operator]
    assert model(batch).hidden_BLD.isfinite().all()
    assert model(pack(ragged([[], []]))).hidden_BLD.isfinite().all()  # type: ignore[operator]
    lone = model(ragged([[MASK]])).hidden_BLD[0, -1]
    assert_close(model.encode_next(batch).hidden_BLD[2, 0], lone)


@torch.no_grad()
def test_the_output_bias_survives_freezing_and_blocks() -> None:
    model = build("bert4rec")
    model.bias_I.copy_(torch.arange(N_ITEMS) / 4)
    plain_ND = model.encode_next(ragged()).hidden_BLD[:, 0]
    bare_NI = plain_ND @ model.items.embedding.weight[1:-1].T
    table = model.freeze().scoring()
    assert_close(table.score(plain_ND), bare_NI + torch.arange(N_ITEMS) / 4)
    assert_close(table.score(plain_ND, 4, 9), table.score(plain_ND)[:, 3:8])
    item_NK = torch.tensor([[1, 12], [5, 5], [2, 7], [12, 3]])
    assert_close(table.score_items(plain_ND, item_NK), table.score(plain_ND).gather(1, item_NK - 1))


@torch.no_grad()
def test_what_is_injected_after_the_first_block_enters_the_second() -> None:
    model, batch = build("bert4rec", "mltfr", inject="after_block0"), packed(ragged())
    seen: dict[str, Tensor] = {}
    model.blocks[0].register_forward_hook(lambda _, given, out: seen.update(out=out))
    model.blocks[1].register_forward_pre_hook(lambda _, given: seen.update(given=given[0]))
    model(batch)
    added_BLD = model.items(batch).after_block0_BLD
    is_used_N = batch.slot_N < batch.item_BL.numel()
    assert added_BLD.abs().max() > 0
    added_ND = added_BLD.flatten(0, 1)[batch.slot_N[is_used_N]]
    assert_close(seen["given"][is_used_N], seen["out"][is_used_N] + added_ND)
