import pytest
import torch
from torch import Tensor, nn

from lexrec.data.batch import Batch, collate
from lexrec.evaluation.events import Pairs
from lexrec.evaluation.ranks import Aside, ranks_and_lists, target_ranks
from lexrec.evaluation.scorer import ModelScorer
from lexrec.item_encoders.base import Embedded, ItemEncoder, ScoringTable
from lexrec.models.base import Encoded, SequenceModel

NOTHING = Aside.of()


class Vectors(ItemEncoder):
    """A plain table of item vectors."""

    def __init__(self, row_ID: Tensor) -> None:
        super().__init__()
        self.n_items = len(row_ID)
        self.weight_ID = nn.Parameter(torch.cat([torch.zeros(1, row_ID.shape[1]), row_ID]))

    def lookup(self, item: Tensor) -> Tensor:
        return self.weight_ID[item]

    def forward(self, batch: Batch) -> Embedded:
        return Embedded(self.lookup(batch.item_BL), {})

    def scoring(self) -> ScoringTable:
        return ScoringTable(self.n_items, lambda a, b: self.weight_ID[a:b], self.lookup)


class Newest(SequenceModel):
    """Predicts from the newest item alone."""

    causal, layout, max_len = True, "packed", 8

    def __init__(self, items: ItemEncoder) -> None:
        super().__init__()
        self.items = items

    def forward(self, batch: Batch) -> Encoded:
        return Encoded(self.items(batch).x_BLD, {})


class NewestOfFixedRows(Newest):
    layout = "fixed"


def test_a_model_is_frozen_and_scored_without_gradients():
    row_ID = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    scorer = ModelScorer(Newest(Vectors(row_ID)))
    query = scorer.encode(collate([[3, 5], [], [7]], max_len=8))
    score_BJ = scorer.score(query, 6, 11)
    assert not scorer.model.training
    assert not score_BJ.requires_grad
    torch.testing.assert_close(score_BJ[[0, 2]], row_ID[[4, 6]] @ row_ID[5:10].T)
    assert (scorer.n_items, scorer.max_len, scorer.trims) == (20, 8, True)


def test_rows_are_trimmed_only_for_models_without_a_fixed_length():
    assert not ModelScorer(NewestOfFixedRows(Vectors(torch.ones(2, 4)))).trims


@pytest.mark.parametrize("n_rows", [1, 2, 9])
@pytest.mark.parametrize("dim", [16, 50, 64])
def test_items_with_equal_vectors_tie_whatever_the_size_of_the_batch(n_rows, dim):
    row_D = torch.randn(1, dim, generator=torch.Generator().manual_seed(2))
    scorer = ModelScorer(Newest(Vectors(row_D.repeat(5003, 1))))
    query = scorer.encode(collate([[1]] * n_rows, max_len=8))
    rank_B = target_ranks(scorer, query, torch.arange(n_rows) * 500 + 1, NOTHING, block=1024)
    assert rank_B.tolist() == [2502] * n_rows


class Tilted(Newest):
    """Scores by cosine, with a scale and a bias."""

    def scoring(self) -> ScoringTable:
        bias_I = torch.linspace(-1, 1, self.items.n_items)
        return super().scoring().with_(bias_I=bias_I, scale=3.0, normalise=True)


@pytest.mark.parametrize("model", [Newest, Tilted])
@pytest.mark.parametrize("block", [None, 77])
def test_ranks_and_lists_are_those_of_a_float64_loop(model, block):
    generator = torch.Generator().manual_seed(3)
    row_ID = torch.randn(400, 16, generator=generator)
    histories = [torch.randint(1, 401, (n % 9 + 1,), generator=generator).tolist() for n in range(150)]
    target_B = torch.randint(1, 401, (150,), generator=generator)
    scorer = ModelScorer(model(Vectors(row_ID)))
    query = scorer.encode(collate(histories, max_len=8))
    rank_B, top = ranks_and_lists(scorer, query, target_B, 12, Aside.of(Pairs.of(histories)), block=block)
    exact_ID = row_ID.double()
    for row, (history, target) in enumerate(zip(histories, target_B.tolist(), strict=True)):
        score_I = exact_ID @ exact_ID[history[-1] - 1]
        if model is Tilted:
            score_I = 3 * score_I / exact_ID.norm(dim=1) / exact_ID[history[-1] - 1].norm()
            score_I = score_I + torch.linspace(-1, 1, 400).double()
        rivals = [i for i in range(1, 401) if i not in history and i != target]
        assert rank_B[row] == 1 + sum(bool(score_I[i - 1] > score_I[target - 1]) for i in rivals)
        shown = sorted(set(range(1, 401)) - set(history), key=lambda i: -score_I[i - 1])
        assert top.item_BK[row].tolist() == shown[:12]
        torch.testing.assert_close(
            top.score_BK[row].double(), score_I[top.item_BK[row] - 1], rtol=1e-5, atol=1e-5
        )


def test_states_that_are_there_already_score_like_encoded_histories():
    scorer = ModelScorer(Tilted(Vectors(torch.randn(30, 8, generator=torch.Generator().manual_seed(4)))))
    batch = collate([[3], [9, 4]], max_len=8)
    hidden_BD = scorer.model.encode_next(batch).hidden_BLD[:, -1]
    assert torch.equal(scorer.query(hidden_BD), scorer.encode(batch))
