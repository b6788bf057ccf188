"""A run on a GPU that is not the process's current one: all its tensors and kernels are on that GPU."""

from pathlib import Path

import pytest
import torch

from lexrec.data.dataset import Dataset
from tests import components
from tests.unit.training.test_runner import data, losses, trainer

__all__ = ["data"]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("is_eager", [False, True])
@pytest.mark.parametrize("encoder", ["id_embedding", "mltfr"])
@pytest.mark.parametrize("model", components.MODELS)
def test_a_run_is_whole_on_the_second_gpu(
    model: str, encoder: str, is_eager: bool, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_eager:
        monkeypatch.setenv("LEXREC_EAGER", "1")
    objective = "cloze" if model == "bert4rec" else "next_item"
    loss_T = {}
    for device in ("cuda:0", "cuda:1"):
        one = trainer(data, tmp_path / device, model, encoder, objective, device)
        loss_T[device] = losses(one)
        assert {p.device for p in one.step.parameters()} == {torch.device(device)}
    torch.testing.assert_close(loss_T["cuda:0"], loss_T["cuda:1"])
    assert torch.cuda.current_device() == 0
