"""What the runs of an arm came to: read from their folders, checked to be measured alike.

Dimension key: S seeds of an arm, U users, M metrics, E events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexrec.compare.arms import Arm
from lexrec.compare.settings import CompareConfig
from lexrec.data.dataset import Dataset
from lexrec.evaluation.evaluate import Evaluation
from lexrec.evaluation.events import evaluation_events
from lexrec.evaluation.metrics import per_event
from lexrec.evaluation.pool import sampled
from lexrec.evaluation.protocol import Protocol
from lexrec.run_dir import RunDir, read_json
from lexrec.training.evaluate_run import place


@dataclass(frozen=True)
class Run:
    """One run of an arm: where it is, and whether something went wrong."""

    arm: Arm
    seed: int
    path: Path
    error: str | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return self.arm.name if self.arm.is_counted else f"{self.arm.name} seed {self.seed}"


@dataclass(frozen=True, eq=False)
class ArmResult:
    """An arm with the runs that succeeded."""

    arm: Arm
    is_counted: bool
    seeds: tuple[int, ...]
    failed: tuple[tuple[int, str], ...]
    protocol: Protocol | None
    """None if no run succeeded."""
    value_SMU: NDArray[np.float32]
    """Each metric, summed over the events of each user."""
    mean_SM: NDArray[np.float64]
    """Each metric, averaged over events."""
    cost: dict[str, Any]
    """parameters, seconds and epochs as means over runs, flops; empty for a baseline."""


@dataclass(frozen=True)
class Users:
    """Whose events were measured."""

    user_E: NDArray[np.int64]
    """Places 0..U-1."""
    n_events_U: NDArray[np.float32]

    @staticmethod
    def of(dataset: Dataset, settings: CompareConfig) -> "Users":
        """The users with events that are measured."""
        events = evaluation_events(dataset, settings.split)
        user_E = sampled(events, settings.sample, settings.pool_seed).user_E
        _, place_E, count_U = np.unique(user_E, return_inverse=True, return_counts=True)
        return Users(place_E, count_U.astype(np.float32))


def evaluation_folder(run: Run, settings: CompareConfig) -> Path:
    """Where the result of a run is, or will be."""
    return place(RunDir(run.path), settings.split, settings.evaluation)


def read_arm(arm: Arm, runs: Sequence[Run], settings: CompareConfig, users: Users) -> ArmResult:
    """Collect the runs of one arm.

    Raises:
        RunError: a result is damaged.
        ProtocolError: two runs were not measured alike.
    """
    fine = [run for run in runs if run.error is None]
    found = [Evaluation.load(evaluation_folder(run, settings)) for run in fine]
    require_alike([result.protocol for result in found])
    names, n_users = settings.metrics, len(users.n_events_U)
    value_SMU = np.zeros((len(found), len(names), n_users), dtype=np.float32)
    for s, result in enumerate(found):
        for m, name in enumerate(names):
            value_SMU[s, m] = np.bincount(users.user_E, per_event(result.rank_E, name), minlength=n_users)
    return ArmResult(
        arm=arm,
        is_counted=arm.is_counted,
        seeds=tuple(run.seed for run in fine),
        failed=tuple((run.seed, run.error) for run in runs if run.error is not None),
        protocol=found[0].protocol if found else None,
        value_SMU=value_SMU,
        mean_SM=value_SMU.sum(-1, dtype=np.float64) / users.n_events_U.sum(dtype=np.float64),
        cost={} if arm.is_counted else _cost(fine),
    )


def require_alike(protocols: Sequence[Protocol]) -> None:
    """Refuse results of unlike protocols.

    Raises:
        ProtocolError: naming every difference.
    """
    # A baseline is alike to any choice of epochs, so each is held against one that was chosen.
    chosen_first = sorted(protocols, key=lambda protocol: protocol.selected_on == "nothing")
    for protocol in chosen_first[1:]:
        chosen_first[0].require_alike(protocol)


def _cost(runs: Sequence[Run]) -> dict[str, Any]:
    if not runs:
        return {}
    summaries = [RunDir.open(run.path).summary for run in runs]
    cost: dict[str, Any] = {
        "parameters": summaries[0]["parameters"],
        "parameters_total": summaries[0].get("parameters_total"),
    }
    for key in ("seconds", "epochs", "best_epoch", "steps", "steps_before", "events", "tokens"):
        # A run made earlier may not say all of it.
        if all(key in summary for summary in summaries):
            cost[key] = round(float(np.mean([summary[key] for summary in summaries])), 3)
    cost["device"] = ", ".join(sorted({summary["device"] for summary in summaries}))
    counted = flops_file(runs[0].path.parent)
    return {**cost, "flops": read_json(counted) if counted.is_file() else None}


def flops_file(arm_folder: Path) -> Path:
    """Where an arm's FLOPs are kept."""
    return arm_folder / "flops.json"
