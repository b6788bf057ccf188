"""Steps as CUDA graphs take the same steps as call by call, for every model, encoder and objective."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lexrec.data.dataset import Dataset
from lexrec.data.stream import StreamedEpoch
from lexrec.errors import ConfigError, RunError
from lexrec.run_dir import RunDir
from lexrec.training import runner
from lexrec.training.checkpoint import Progressed
from lexrec.training.loop import Trainer
from lexrec.training.runner import EagerRunner, GraphRunner
from lexrec.training.step import Step
from tests import components
from tests.unit.training.test_loop import Stop, StopAt, small
from tests.worlds import world

EPOCHS, SEED = 3, 3


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    rows = [[(u + t) % components.N_ITEMS + 1 for t in range(4 + u % 7)] for u in range(90)]
    return world(rows, components.N_ITEMS).save(tmp_path / "data")


class Losses:
    """A tracker that keeps every loss."""

    def __init__(self) -> None:
        self.loss_T: list[Tensor] = []

    def begin(self, n_steps: int, at: Progressed) -> None:
        pass

    def step(self, at: Progressed, loss: Tensor, n_items: int) -> None:
        self.loss_T.append(loss.clone())

    def validated(self, at: Progressed, metrics: dict[str, float], is_best: bool) -> None:
        pass

    def end(self) -> None:
        pass


def trainer(
    data: Dataset, path: Path, model: str, encoder: str, objective: str, device: str = "cuda"
) -> Trainer:
    config = small(max_epochs=EPOCHS, precision="fp32")
    run = RunDir(path) if path.exists() else RunDir.create(path, config, data)
    goal = components.build_objective(objective)
    try:
        step = Step(components.build(model, encoder), goal)
    except ConfigError:
        pytest.skip(f"{objective} refuses {model} + {encoder}")
    return Trainer(step, data, run, torch.device(device))


def losses(one: Trainer) -> Tensor:
    torch.manual_seed(SEED)
    tracker = Losses()
    one.fit([tracker])
    return torch.stack(tracker.loss_T).cpu()


@pytest.mark.gpu
@pytest.mark.parametrize("objective", components.OBJECTIVES)
@pytest.mark.parametrize("encoder", components.ENCODERS)
@pytest.mark.parametrize("model", components.MODELS)
def test_a_captured_step_is_the_same_step(
    model: str, encoder: str, objective: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = trainer(data, tmp_path / "graph", model, encoder, objective)
    assert isinstance(captured.runner, GraphRunner)
    graph = losses(captured)
    assert captured.runner._graphs, "nothing was captured"
    monkeypatch.setenv(runner.EAGER, "1")
    by_call = trainer(data, tmp_path / "eager", model, encoder, objective)
    assert isinstance(by_call.runner, EagerRunner)
    eager = losses(by_call)
    assert graph.isfinite().all()
    torch.testing.assert_close(graph, eager, rtol=2e-3, atol=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("objective", ["next_item", "last_item"])
def test_captured_steps_on_streamed_batches_are_the_same_steps(
    objective: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = losses(trainer(data, tmp_path / "resident", "sasrec", "id_embedding", objective))
    monkeypatch.setenv("LEXREC_STREAM", "1")
    streamed = trainer(data, tmp_path / "streamed", "sasrec", "id_embedding", objective)
    assert isinstance(streamed.epoch, StreamedEpoch)
    found = losses(streamed)
    assert isinstance(streamed.runner, GraphRunner)
    assert streamed.runner._graphs, "nothing was captured"
    torch.testing.assert_close(found, resident, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(
    device: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sasrec(name: str) -> Trainer:
        return trainer(data, tmp_path / name, "sasrec", "id_embedding", "next_item", device)

    whole = losses(sasrec("whole"))
    monkeypatch.setattr("lexrec.training.loop._CHECKPOINT_SECONDS", 0.0)
    cut = sasrec("cut")
    torch.manual_seed(SEED)
    with pytest.raises(Stop):
        cut.fit([StopAt(17)])
    rest = losses(sasrec("cut"))
    # The power went before the checkpoint of step 17 was written.
    assert len(rest) == len(whole) - 16
    torch.testing.assert_close(rest, whole[16:], rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_a_step_that_waits_for_the_device_is_refused_with_the_way_out(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(data, tmp_path / "run", "sasrec", "id_embedding", "next_item")
    encode_slots = one.step.model.encode_slots

    def waits(batch):  # type: ignore[no-untyped-def]
        hidden_ND, aux = encode_slots(batch)
        hidden_ND.sum().item()
        return hidden_ND, aux

    monkeypatch.setattr(one.step.model, "encode_slots", waits)
    with pytest.raises(RunError, match=r"cannot be captured as a CUDA graph .* LEXREC_EAGER=1"):
        one.fit([])


@pytest.mark.parametrize("objective", ["next_item", "last_item"])
def test_steps_on_streamed_batches_are_the_same_steps(
    objective: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = losses(trainer(data, tmp_path / "resident", "sasrec", "id_embedding", objective, "cpu"))
    monkeypatch.setenv("LEXREC_STREAM", "1")
    streamed = trainer(data, tmp_path / "streamed", "sasrec", "id_embedding", objective, "cpu")
    assert isinstance(streamed.epoch, StreamedEpoch)
    assert torch.equal(losses(streamed), resident)


def test_without_a_gpu_steps_run_call_by_call(data: Dataset, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", small(), data)
    step = Step(components.build("sasrec"), components.build_objective("next_item"))
    assert isinstance(Trainer(step, data, run, torch.device("cpu")).runner, EagerRunner)
