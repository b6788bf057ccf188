"""Steps over a language model as CUDA graphs are the steps they are call by call, for every adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lexrec.data.dataset import Dataset
from lexrec.run_dir import RunDir
from lexrec.training import runner
from lexrec.training.loop import Trainer
from lexrec.training.runner import GraphRunner
from lexrec.training.step import Step
from tests import components
from tests.unit.lm.test_adapters import ADAPTERS, built
from tests.unit.training.test_loop import small
from tests.unit.training.test_runner import losses
from tests.worlds import world

VARIANTS: dict[str, dict[str, Any]] = {name: {} for name in ADAPTERS} | {
    "ids alone": {"columns": ()},
    "language loss": {"lm_loss": 0.5, "lm_places": 8},
    "text in place of items": {"adapter": "shared", "text_as": "items", "read_at": "end"},
    "begin token": {"begin": True},
    "attention": {"train_attention": True},
    "computed again": {"lm": {"checkpointing": True}},
    "bf16": {"lm": {"dtype": "bf16"}},
    "bf16 mot": {"adapter": "mot", "lm": {"dtype": "bf16"}},
    "bf16 lora": {"adapter": "lora", "lm": {"dtype": "bf16"}},
    "bf16 attention": {"train_attention": True, "lm": {"dtype": "bf16"}},
    "bf16 computed again": {"lm": {"dtype": "bf16", "checkpointing": True}},
}


def found(variant: str, data: Dataset, path: Path) -> tuple[Tensor, Trainer]:
    options = {"adapter": variant if variant in ADAPTERS else "experts", **VARIANTS[variant]}
    is_bf16 = variant.startswith("bf16")
    step = Step(built(family="gemma3_text", **options), components.build_objective("next_item"))
    config = small(max_epochs=3, precision="auto" if is_bf16 else "fp32")
    one = Trainer(step, data, RunDir.create(path, config, data), torch.device("cuda"))
    return losses(one), one


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_captured_step_is_the_same_step(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[(u + t) % components.N_ITEMS + 1 for t in range(4 + u % 7)] for u in range(90)]
    data = world(rows, components.N_ITEMS).save(tmp_path / "data")
    graph, one = found(variant, data, tmp_path / "graph")
    assert isinstance(one.runner, GraphRunner)
    assert one.runner._graphs, "nothing was captured"
    monkeypatch.setenv(runner.EAGER, "1")
    eager, _ = found(variant, data, tmp_path / "eager")
    assert graph.isfinite().all()
    close = 5e-2 if variant.startswith("bf16") else 2e-3
    torch.testing.assert_close(graph, eager, rtol=close, atol=close)
