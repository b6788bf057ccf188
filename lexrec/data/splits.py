"""Which events are for training, validation and test: functions of each user's ordered events.

Everything here is plain NumPy over the flat arrays, so that it cannot depend on the engine that sorted
them. Marks (0 train, 1 validation, 2 test) never fall within a user, so training never sees an event
that comes after one it is judged on.

Dimension key: N events, U users.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lexrec.data._chunks import count_at_most, pieces
from lexrec.data.dataset import TEST, TRAIN, VALIDATION
from lexrec.errors import DataError

MARKS = {"train": TRAIN, "valid": VALIDATION, "validation": VALIDATION, "val": VALIDATION, "test": TEST}
"""What a given split column may hold, in any case of letters."""

MICROSECOND, INTEGER, MILLIONTH = "microsecond", "integer", "millionth"
"""Units of stored times: since 1970 in UTC; as they stood; fractions times a million."""

_SHORTEST = 3
"""Events a user needs to give one each to training, validation and test."""


@dataclass(frozen=True)
class LeaveOneOut:
    """Each user's last event is for test and the one before it for validation.

    Users with fewer than 3 events are all train.
    """

    name: ClassVar[str] = "leave-one-out"


@dataclass(frozen=True)
class TimeSplit:
    """Two moments, the same for everybody: each event at or after one belongs to its split.

    A moment is given itself or by the share of all events that lie at or after it; events that share
    their time with the first of a split all belong to it, so a share can come out larger.
    """

    validation: float = 0.1
    """Share of events between the two moments; ignored where `validation_from` is given."""
    test: float = 0.1
    """Share of events at or after the second moment; ignored where `test_from` is given."""
    validation_from: str | float | None = None
    """First moment: ISO text where times are timestamps, a number where they are numbers."""
    test_from: str | float | None = None
    """Second moment."""
    name: ClassVar[str] = "time"

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise DataError(
                f"time split: shares of validation {self.validation:g} and test {self.test:g}: "
                "each is at least 0 and their sum is below 1"
            )


@dataclass(frozen=True)
class GivenSplit:
    """The table says it: a column with train, valid (or validation, val) and test, or 0, 1 and 2."""

    column: str = "split"
    validation: Literal["last-train", "none"] = "last-train"
    """Where the column has no validation event at all: take the last training event of each user with
    at least 3 (the two that stay are the least a model can learn a next item from), or take none."""
    name: ClassVar[str] = "given"

    def __post_init__(self) -> None:
        if self.validation not in ("last-train", "none"):
            raise DataError(f"given split: validation {self.validation!r}; allowed: last-train, none")


Split = LeaveOneOut | TimeSplit | GivenSplit


class Marked(NamedTuple):
    """Split marks and what a reader of the report should know about them."""

    mark_N: NDArray[np.uint8]
    facts: dict[str, int | str]
    """Numbers beyond the counts of events: the moments chosen, users too short to be split."""


def leave_one_out(offset_U: NDArray[np.int64]) -> Marked:
    """Marks of LeaveOneOut."""
    length_U, end_U = np.diff(offset_U), offset_U[1:]
    is_split_U = length_U >= _SHORTEST
    mark_N = np.zeros(int(offset_U[-1]), dtype=np.uint8)
    mark_N[end_U[is_split_U] - 1] = TEST
    mark_N[end_U[is_split_U] - 2] = VALIDATION
    return Marked(mark_N, {"users_all_train": int((~is_split_U).sum())})


def by_time(time_N: NDArray[np.int64], offset_U: NDArray[np.int64], unit: str, split: TimeSplit) -> Marked:
    """Marks of TimeSplit; `time_N` never falls within a user.

    Raises:
        DataError: a moment is not of the unit's form, or the second is before the first.
    """
    n_events = len(time_N)
    if split.test_from is None:
        test_from = _latest(time_N, split.test * n_events, int(time_N.max()) + 1)
    else:
        test_from = _stored(split.test_from, unit)
    if split.validation_from is None:
        validation_from = _latest(time_N, split.validation * n_events, test_from)
    else:
        validation_from = _stored(split.validation_from, unit)
    if validation_from > test_from:
        raise DataError(
            f"time split: validation begins at {describe(validation_from, unit)}, "
            f"after test at {describe(test_from, unit)}; swap them"
        )
    mark_N = np.zeros(n_events, dtype=np.uint8)
    for here in pieces(n_events):
        mark_N[here] = (time_N[here] >= validation_from).astype(np.uint8) + (time_N[here] >= test_from)
    # Times never fall within a user: its first event says whether it has any for training.
    first_U, last_U = mark_N[offset_U[:-1]], mark_N[offset_U[1:] - 1]
    facts: dict[str, int | str] = {
        "validation_from": describe(validation_from, unit),
        "test_from": describe(test_from, unit),
        "users_test_only": int(((first_U > TRAIN) & (last_U == TEST)).sum()),
    }
    return Marked(mark_N, facts)


def given(
    mark_N: NDArray[np.uint8], offset_U: NDArray[np.int64], split: GivenSplit
) -> tuple[Marked, int | None]:
    """Marks of GivenSplit, and the index of a user whose marks fall, if there is one."""
    falls_N = np.zeros(len(mark_N), dtype=bool)
    np.less(mark_N[1:], mark_N[:-1], out=falls_N[1:])
    falls_N[offset_U[:-1]] = False
    if falls_N.any():
        fault = int(np.searchsorted(offset_U, np.argmax(falls_N), side="right")) - 1
        return Marked(mark_N, {}), fault
    if split.validation == "none" or (mark_N == VALIDATION).any():
        return Marked(mark_N, {}), None
    mark_N = mark_N.copy()
    n_train_U = count_at_most(mark_N, TRAIN, offset_U)
    is_taken_U = n_train_U >= _SHORTEST
    mark_N[(offset_U[:-1] + n_train_U - 1)[is_taken_U]] = VALIDATION
    return Marked(mark_N, {"users_with_validation_from_train": int(is_taken_U.sum())}), None


def rule(split: Split, marked: Marked) -> str:
    """The split in one line: what two data sets must share for their results to be alike."""
    if isinstance(split, TimeSplit):
        facts = marked.facts
        return f"time (validation from {facts['validation_from']}, test from {facts['test_from']})"
    if isinstance(split, GivenSplit):
        return f"given (column {split.column}, validation {split.validation})"
    return split.name


def describe(moment: int, unit: str) -> str:
    """A stored time as a person writes it."""
    if unit == MICROSECOND:
        return str(np.datetime64(moment, "us"))
    return str(moment) if unit == INTEGER else f"{moment / 1e6:f}"


def _latest(time_N: NDArray[np.int64], n_wanted: float, before: int) -> int:
    """The latest moment with at least so many events from it on and before another; that one if none are."""
    # A share of a count is seldom exact in floating point: 0.1 * 30 must not ask for a fourth event.
    n_from = min(math.ceil(n_wanted - 1e-6), _count(time_N, int(time_N.min()), before))
    if n_from == 0:
        return before
    # By halving: a selection would need a second array as long as the events.
    enough, too_late = int(time_N.min()), before
    while too_late - enough > 1:
        middle = (enough + too_late) // 2
        if _count(time_N, middle, before) >= n_from:
            enough = middle
        else:
            too_late = middle
    return enough


def _count(time_N: NDArray[np.int64], first: int, before: int) -> int:
    return sum(
        int(np.count_nonzero((time_N[here] >= first) & (time_N[here] < before)))
        for here in pieces(len(time_N))
    )


def _stored(said: str | float, unit: str) -> int:
    """A moment as times of this unit are stored."""
    try:
        if unit == MICROSECOND:
            moment = datetime.fromisoformat(str(said))
            utc = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return int(np.datetime64(utc.astimezone(UTC).replace(tzinfo=None), "us").astype(np.int64))
        if unit == INTEGER:
            return int(said)
        return int(np.floor(float(said) * 1e6 + 0.5))
    except ValueError as error:
        form = {MICROSECOND: "a moment such as 2024-05-01 or 2024-05-01T12:00:00Z", INTEGER: "an integer"}
        raise DataError(
            f"time split: {said!r} is not {form.get(unit, 'a number')}, as the time column has"
        ) from error
