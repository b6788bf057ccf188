"""What makes a step quicker does not change what is learnt: losses of whole runs, quick and plain."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lexrec.config import RunConfig, run_config
from lexrec.data.dataset import Dataset
from lexrec.kernels import binary_cross_entropy, cross_entropy, dense, place, rows
from lexrec.models import _layers
from lexrec.run_dir import RunDir
from lexrec.training import runner
from lexrec.training.loop import Trainer
from lexrec.training.train import build_step
from tests.unit.training.test_runner import Losses
from tests.worlds import world

N_ITEMS = 60


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    rows = [[(u * u + t * (u % 5 + 1)) % N_ITEMS + 1 for t in range(5 + u % 9)] for u in range(120)]
    return world(rows, N_ITEMS).save(tmp_path / "data")


def config_of(**changed: dict[str, object]) -> RunConfig:
    sections: dict[str, dict[str, object]] = {
        "model": {"name": "sasrec", "dim": 16, "max_len": 12, "dropout": 0.0},
        "item_encoder": {"name": "id_embedding"},
        "objective": {"name": "next_item", "loss": "ce"},
        "train": {"batch_size": 32, "max_epochs": 4, "lr": 5e-3},
    }
    config = run_config({name: {**section, **changed.get(name, {})} for name, section in sections.items()})
    assert isinstance(config, RunConfig)
    return config


def curve(config: RunConfig, data: Dataset, path: Path, device: str = "cpu") -> Tensor:
    run, tracker = RunDir.create(path, config, data), Losses()
    Trainer(build_step(config, data, ()), data, run, torch.device(device)).fit([tracker])
    return torch.stack(tracker.loss_T).float().cpu()


@pytest.mark.parametrize("objective", ["next_item", "last_item"])
def test_losses_in_chunks(
    objective: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(objective={"name": objective}, model={"dropout": 0.3})
    plain = curve(config, data, tmp_path / "plain")
    monkeypatch.setattr(cross_entropy, "_CHUNK_CELLS", 1)
    chunked = curve(config, data, tmp_path / "chunked")
    assert plain[-1] < plain[0] - 0.3
    torch.testing.assert_close(chunked, plain, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("model", ["sasrec", "bert4rec"])
def test_attention_among_slots(
    model: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = {"name": "cloze"} if model == "bert4rec" else {}
    config = config_of(model={"name": model}, objective=objective)
    grouped = curve(config, data, tmp_path / "grouped")
    monkeypatch.setattr(_layers, "_may_group", lambda batch: False)
    packed = curve(config, data, tmp_path / "packed")
    torch.testing.assert_close(packed, grouped, rtol=2e-4, atol=2e-4)


def as_plain_as_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own operations on a GPU, call by call."""

    def whole(
        query_ND: Tensor, row_ID: Tensor, target_N: Tensor, weight_N: Tensor, bias_I: Tensor | None
    ) -> Tensor:
        with torch.autocast("cuda", enabled=False):
            return cross_entropy._whole(query_ND.float(), row_ID.float(), target_N, weight_N, bias_I)

    monkeypatch.setattr("lexrec.objectives._losses.cross_entropy", whole)
    for module in (binary_cross_entropy, dense, place, rows):
        monkeypatch.setattr(module, "trains_in_16_bits", lambda x: False)
    monkeypatch.setattr("lexrec.kernels._attention_triton._LONGEST", 0)
    monkeypatch.setenv(runner.EAGER, "1")


@pytest.mark.gpu
@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("model", ["sasrec", "bert4rec", "bsarec", "linrec", "hstu", "gru4rec"])
def test_kernels_on_a_gpu(
    model: str, loss: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16, as they run by default; the plain run has float32 logits, so they agree as bf16 can."""
    fits = {"bert4rec": "cloze", "linrec": "cloze", "bsarec": "last_item"}
    objective = {"name": fits.get(model, "next_item"), "loss": loss}
    config = config_of(model={"name": model}, objective=objective)
    quick = curve(config, data, tmp_path / "quick", "cuda")
    as_plain_as_can_be(monkeypatch)
    plain = curve(config, data, tmp_path / "plain", "cuda")
    assert quick.isfinite().all()
    torch.testing.assert_close(quick, plain, rtol=0.02, atol=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("train", [{"schedule": "cosine", "warmup_steps": 5}, {"clip_norm": 0.5}])
def test_schedules_and_clipping_in_a_captured_step(
    train: dict[str, object], data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(train={**train, "precision": "fp32"}, model={"dropout": 0.3})
    captured = curve(config, data, tmp_path / "graph", "cuda")
    monkeypatch.setenv(runner.EAGER, "1")
    torch.testing.assert_close(
        captured, curve(config, data, tmp_path / "eager", "cuda"), rtol=2e-3, atol=2e-3
    )


@pytest.mark.gpu
@pytest.mark.filterwarnings(
    "ignore:.*script_method.*:DeprecationWarning"
)  # PyTorch's compiler as it is loaded
def test_a_compiled_step(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(objective={"loss": "bce"})
    plain = curve(config, data, tmp_path / "plain", "cuda")
    monkeypatch.setenv(runner.COMPILE, "1")
    compiled = curve(config, data, tmp_path / "compiled", "cuda")
    torch.testing.assert_close(compiled, plain, rtol=0.02, atol=0.02)
