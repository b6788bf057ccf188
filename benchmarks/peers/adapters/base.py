"""What a library is asked to do."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers.meter import StepMeter
from benchmarks.peers.setting import Histories, Setting


class Adapter(Protocol):
    """One library, driven as its documentation says. Users and items are those of `Histories`."""

    version: str

    def __init__(self, setting: Setting, histories: Histories, work: Path) -> None: ...

    def train(self, meter: StepMeter) -> None:
        """Train on all but the last two events of each user until the meter is over, and save into `work`."""
        ...

    def load(self) -> None:
        """Open what `train` saved, ready to answer."""
        ...

    def evaluate(self) -> dict[str, float]:
        """The library's own full-ranking evaluation of all users on their last event; its metrics at 10."""
        ...

    def api(self, users: Sequence[int]) -> Callable[[], Any]:
        """A call of the library's public function: the best K items after all but each user's last event."""
        ...

    def lists(self, answer: Any) -> list[list[int]]:
        """The items in what such a call returned, for each user in order."""
        ...

    def raw(self, users: Sequence[int]) -> Callable[[], Any]:
        """A call of the bare model on tensors made beforehand: forward, seen items removed, the best K."""
        ...
