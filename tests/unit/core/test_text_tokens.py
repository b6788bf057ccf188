"""What item text adds to item vectors, and what it does for items nobody has chosen yet."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from lexrec import registry
from lexrec.data.batch import collate
from lexrec.errors import ConfigError
from lexrec.evaluation.scorer import ModelScorer
from lexrec.item_encoders._text_config import TextTokensConfig
from lexrec.item_encoders.base import Catalogue
from lexrec.item_encoders.text_tokens import TextTokens
from lexrec.training.step import Step
from tests import components

N, DIM = 6, 16
TITLES = ["t1 t2", "t3", "t3", None, "t1 t2", ""]
CATEGORIES = ["t7", "t8", "t9", "t7", "t7", None]
ITEMS = pa.table({"item_id": list(range(N)), "title": TITLES, "category": CATEGORIES})
pools = pytest.mark.parametrize("pool", ["mean", "attention"])


def build(
    counts: list[int] | None = None, items: pa.Table | None = ITEMS, seed: int = 0, **options: object
) -> TextTokens:
    torch.manual_seed(seed)
    config = TextTokensConfig(tables=("a", "b"), **options)
    count_I = None if counts is None else np.array([0, *counts, 0])
    built = TextTokens(config, Catalogue(N, DIM, components.tables(), items, count_I))
    return built.eval()


def vectors(built: TextTokens) -> Tensor:
    """Rows of items 1..N."""
    with torch.no_grad():
        return built.lookup(torch.arange(1, N + 1))


def scramble(built: TextTokens, seed: int = 1) -> None:
    """Weights as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        if built.embedding is not None:
            built.embedding.weight[0] = 0


@pools
def test_items_of_one_text_differ_by_their_id_vectors_alone(pool: str) -> None:
    built = build(pool=pool)
    scramble(built)
    assert built.embedding is not None
    text_ND = vectors(built) - built.embedding.weight[1:-1].detach()
    assert_close(text_ND[0], text_ND[4])
    assert not torch.allclose(text_ND[1], text_ND[2])  # another category
    assert_close(text_ND[5], torch.zeros(DIM))  # no text
    assert text_ND[3].abs().sum() > 0  # a category is text


@pools
@pytest.mark.parametrize("options", [{}, {"hidden": 8}, {"norm": "text"}, {"feature_scale": 0.1}])
def test_text_vectors_start_at_the_size_of_id_vectors(pool: str, options: dict[str, object]) -> None:
    built = build(pool=pool, use_id=False, **options)
    size = vectors(built)[:5].square().mean().sqrt()
    assert_close(size, torch.tensor(0.02), rtol=0.02, atol=0)


def test_a_mean_is_the_map_of_the_mean_token_vector() -> None:
    built = build(columns=("title",), whiten=None, normalise=False, use_id=False, table_scale="raw")
    linear = built.text.map[0]
    parts = [table.weight_VW.float() for table in components.tables()]
    mean_F = torch.cat([(w_VW[1] + w_VW[2]) / 2 for w_VW in parts]) / 2**0.5
    assert_close(vectors(built)[0], linear(mean_F.bfloat16().float()).detach(), rtol=1e-4, atol=1e-5)


def test_attention_starts_as_the_mean_and_learns_to_choose() -> None:
    built = build(pool="attention", columns=("title",), use_id=False, table_scale="raw", n_heads=1)
    values = [part.value(part.row_RW.float()) for part in built.text.parts]
    tokens = [part.token_IT[1] for part in built.text.parts]
    mean_D = sum(v_RD[t_T].mean(0) for v_RD, t_T in zip(values, tokens, strict=True))
    assert_close(vectors(built)[0], mean_D.detach())
    with torch.no_grad():
        for part, token_T in zip(built.text.parts, tokens, strict=True):
            # A question that points from the second token to the first wants the first alone.
            first, second = part.row_RW[token_T].float()
            part.question.weight[0] = 1e3 * (first - second)
    chosen_D = sum(v_RD[t_T[0]] for v_RD, t_T in zip(values, tokens, strict=True))
    assert_close(vectors(built)[0], chosen_D.detach())


@pools
def test_an_item_without_training_events_is_its_text_alone(pool: str) -> None:
    built = build(counts=[3, 1, 2, 1, 0, 0], pool=pool)
    scramble(built)
    texts = [{"title": "t1 t2", "category": "t7"}, {"title": None, "category": None}]
    new_ND = built.rows_for_new(texts, components.tables())
    assert_close(vectors(built)[4:], new_ND)
    assert not torch.allclose(vectors(built)[0], new_ND[0])
    built.freeze()
    assert_close(vectors(built)[4:], new_ND)


@pools
def test_a_column_that_no_new_item_has_adds_nothing(pool: str) -> None:
    built = build(pool=pool)
    one, other = {"title": "t3", "category": None}, {"title": "t3", "category": "t8"}
    alone_ND, both_ND = (built.rows_for_new(texts, components.tables()) for texts in ([one], [one, other]))
    assert alone_ND.abs().sum() > 0
    assert_close(alone_ND[0], both_ND[0])
    assert (built.rows_for_new([{}], components.tables()) == 0).all()


def test_an_item_without_training_events_is_no_wrong_answer_in_training() -> None:
    built, state_ND = build(counts=[3, 1, 2, 1, 0, 0], dropout=0.0), torch.randn(3, DIM)
    share_NI = built.train().scoring().score(state_ND).softmax(1)
    assert (share_NI[:, 4:] == 0).all()
    biased = built.scoring().with_(bias_I=torch.full((N,), 7.0))
    assert_close(biased.score(state_ND).softmax(1), share_NI)
    assert (built.eval().scoring().score(state_ND).softmax(1) > 0).all()
    assert build(counts=[1] * N).train().scoring().bias_I is None


def test_the_mask_keeps_its_vector() -> None:
    for options in ({}, {"use_id": False}):
        built = build(counts=[1] * N, **options)
        assert built.lookup(torch.tensor([N + 1])).abs().sum() > 0
        assert (built.lookup(torch.tensor([0])) == 0).all()


def test_id_dropout_leaves_the_text() -> None:
    built = build(id_dropout=0.9, dropout=0.0).train()
    text_ND = build(id_dropout=0.9, dropout=0.0, counts=[0] * N)
    torch.manual_seed(0)
    dropped_ND = torch.stack([vectors(built) for _ in range(20)])
    is_text = (dropped_ND - vectors(text_ND)).abs().amax(-1) < 1e-6
    assert 0.8 < is_text.float().mean() < 1
    assert_close(vectors(built.eval()), vectors(build(id_dropout=0.0)))


def test_random_tables_keep_which_items_share_a_word() -> None:
    real, noise = (vectors(build(use_id=False, random_seed=seed)) for seed in (None, 0))
    assert not torch.allclose(real, noise)
    assert_close(noise[0], noise[4])
    assert_close(vectors(build(use_id=False, random_seed=0)), noise)
    assert not torch.allclose(vectors(build(use_id=False, random_seed=1)), noise)


def test_rare_words_weigh_more_under_idf() -> None:
    options = {"columns": ("category",), "use_id": False, "whiten": None, "normalise": False}
    both = pa.table({"item_id": list(range(N)), "category": ["t7 t9", "t7", "t7", "t7", "t7", "t9"]})
    cosine = {}
    for weighting in ("uniform", "idf"):
        vector_ND = vectors(build(items=both, weighting=weighting, **options))
        cosine[weighting] = torch.cosine_similarity(vector_ND[0], vector_ND[5], dim=0)
    assert cosine["idf"] > cosine["uniform"]


@pools
def test_a_checkpoint_holds_no_table_and_fits_a_fresh_encoder(pool: str) -> None:
    built = build(pool=pool)
    scramble(built)
    state = built.state_dict()
    assert all(DIM in tensor.shape or tensor.shape[0] == 4 for tensor in state.values()), state.keys()
    other = build(pool=pool, seed=5)
    other.freeze()
    other.load_state_dict(state)
    assert_close(vectors(other), vectors(built))


@pools
def test_what_bfloat16_does_under_autocast_is_rounding(pool: str) -> None:
    built = build(pool=pool)
    plain = vectors(built)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(vectors(built).float(), plain, rtol=0.05, atol=2e-3)


def test_options_and_data_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="no column 'title', 'category'; known: none; prepare it again with"
    ):
        build(items=None)
    with pytest.raises(ConfigError, match="no column 'brand'; known: title, category; prepare it again"):
        build(columns=("brand",))
    empty = ITEMS.set_column(1, "title", pa.array([None] * N, pa.string()))
    with pytest.raises(ConfigError, match="text_tokens: no item has any text in title"):
        build(items=empty, columns=("title",))
    with pytest.raises(ConfigError, match=r"n_heads 3 does not divide model\.dim 16"):
        build(pool="attention", n_heads=3)
    with pytest.raises(ValidationError, match="id_dropout belongs to use_id=true"):
        TextTokensConfig(use_id=False, id_dropout=0.1)


def test_mltfr_goes_on_top_of_item_text() -> None:
    cls = registry.load("item_encoders", "mltfr")
    inner = {"name": "text_tokens", "tables": ["a"]}
    config = registry.config_class(cls)(tables=("a", "b"), k=5, items=inner)
    assert config.table_names == ("a", "b", "a")
    a, b = components.tables()
    built = cls(config, Catalogue(N, DIM, (a, b, a), ITEMS)).eval()
    assert isinstance(built.items, TextTokens)
    batch = collate([[1, 2, 3], [5]], 4)
    with torch.no_grad():
        added_BLD = built(batch).x_BLD - built.items.lookup(batch.item_BL)
    assert (added_BLD[batch.is_item_BL].abs().sum(-1) > 0).all()


def test_only_text_tells_which_new_item_is_right() -> None:
    """Users keep to one of four topics, which titles name. Items 9..12 are new, one a topic."""
    topic_I = [i % 4 for i in range(12)]
    titles = [f"t{10 + topic}" for topic in topic_I]
    items = pa.table({"item_id": list(range(12)), "title": titles})
    counts = np.array([0] + [5] * 8 + [0] * 5)
    histories = [[topic + 1, topic + 5] * 3 for topic in range(4)]
    torch.manual_seed(0)
    config = TextTokensConfig(tables=("a", "b"), columns=("title",))
    encoder = TextTokens(config, Catalogue(12, DIM, components.tables(), items, counts))
    cls = registry.load("models", "sasrec")
    model = cls(registry.config_class(cls)(dim=DIM, max_len=5, dropout=0.1), encoder)
    step = Step(model, components.build_objective("next_item")).train()
    batch, generator = collate(histories * 4, 6), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(step.parameters(), lr=5e-3)
    for _ in range(100):
        loss = step(batch, step.objective.prepare(batch, generator))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scorer = ModelScorer(model)
    score_B4 = scorer.score(scorer.encode(collate([h[:5] for h in histories], 5)), 9, 13)
    assert score_B4.argmax(1).tolist() == [0, 1, 2, 3]
