"""What a step costs, against a count by hand."""

import pytest
import torch

from lexrec.compare import flops
from lexrec.config import RunConfig, run_config
from lexrec.training.train import build_step
from tests.worlds import world

DIM, LEN, ROWS, ITEMS = 8, 6, 16, 9
DATA = world([[(u + t) % ITEMS + 1 for t in range(LEN + 3)] for u in range(40)], ITEMS)
"""Every history fills its row, so nothing is padding."""


def counted(objective: str = "next_item", **model: object) -> dict[str, int]:
    tree = {
        "model": {"dim": DIM, "max_len": LEN, "n_layers": 1, **model},
        "item_encoder": {"name": "id_embedding"},
        "objective": {"name": objective, "loss": "ce"},
        "train": {"batch_size": ROWS},
    }
    config = run_config(tree)
    assert isinstance(config, RunConfig)
    return flops.count_flops(build_step(config, DATA, ()), DATA, config.train)


def test_an_epoch_is_its_steps():
    found = counted(name="gru4rec")
    assert found["rows"] == ROWS
    assert found["epoch"] == 3 * found["step"]


def test_a_block_more_costs_its_products():
    one, two = (counted(name="sasrec", n_layers=n, n_heads=2)["step"] for n in (1, 2))
    slots = -(-ROWS * LEN // 64) * 64
    # Four projections and two of the feed-forward net, forward and twice backward, two a multiply-add.
    assert two - one >= 3 * 2 * slots * 6 * DIM * DIM
    # And attention: scores and values, with what the backward pass computes again.
    assert two - one <= 3 * 2 * slots * 6 * DIM * DIM + 8 * 2 * ROWS * LEN * LEN * DIM


def test_ffts_are_counted():
    x = torch.ones(3, 16)
    assert flops._fft(x.shape, [1], 0, True, out_shape=torch.Size([3, 9])) == round(2.5 * 3 * 16 * 4)
    assert counted("last_item", name="fmlprec")["step"] > 0


@pytest.mark.parametrize(("name", "objective"), [("hstu", "next_item"), ("linrec", "last_item")])
def test_other_backbones_are_counted(name, objective):
    assert counted(objective, name=name)["step"] > ROWS * LEN * DIM * ITEMS
