"""The protocol a result was measured under. Results of unlike protocols are refused a comparison."""

from typing import Literal

from lexrec.config import Config
from lexrec.errors import ProtocolError
from lexrec.evaluation.events import Split
from lexrec.evaluation.ranks import Ties

Seen = Literal["remove", "keep", "zero"]
SEEN_IN_WORDS: dict[Seen, str] = {"remove": "removed", "keep": "kept", "zero": "scored 0"}
Candidates = Literal["all", "train"]
SelectedOn = Literal["nothing", "validation", "test"]

_MUST_AGREE = (
    *("data", "split_rule", "split", "history", "seen", "ties"),
    *("candidates", "n_candidates", "n_events", "n_unreachable"),
    *("pool", "pool_seed", "sample"),
)


class Protocol(Config):
    """Everything that decides what a metric's value means; stored with every result."""

    lexrec: str
    """Version that measured."""
    data: str
    """Fingerprint of the data set."""
    split_rule: str
    """How the data set was split, such as leave-one-out."""
    split: Split
    """Which part was measured."""
    history: Literal["rolling"] = "rolling"
    """The history of an event is everything its user did before it, earlier events of the part included."""
    seen: Seen
    """remove: items of the history do not compete, except a target that occurs again; keep: they do;
    zero: they compete with a score of 0, as in the code of S3-Rec, FMLP-Rec and BSARec."""
    ties: Ties
    """What an item with the target's own score costs: expected half a place, optimistic 0, pessimistic 1."""
    candidates: Candidates
    """all items of the data set compete, or those with at least one training event."""
    n_candidates: int
    n_events: int
    n_unreachable: int
    """Events whose target is no candidate: counted as misses, with rank inf."""
    pool: int | None = None
    """Random unseen candidates that each target was ranked among; None: the whole catalogue."""
    pool_seed: int | None = None
    """What those candidates, and the sample, were drawn with."""
    sample: int | None = None
    """Events drawn at random that were measured; None: all of the part."""
    k: tuple[int, ...]
    selected_on: SelectedOn = "nothing"
    """The part that chose the best epoch or the settings."""
    allow_leak: bool = False
    """The model was allowed to train with an input that shows its own targets."""

    @property
    def is_peeked(self) -> bool:
        """True if the measured part also chose the model, which flatters it."""
        return self.selected_on == self.split

    def differences(self, other: "Protocol") -> list[str]:
        """What makes two results unlike, each as `key: one, other`.

        Not counted: the version, the ks (shared ones compare), `allow_leak` (a leak in training is a fault
        of the model, not of the measurement), and `selected_on` beyond whether the measured part chose one
        and another part the other: a baseline, which nothing chose, is alike to either.
        """
        pairs = [(key, getattr(self, key), getattr(other, key)) for key in _MUST_AGREE]
        is_chosen = "nothing" not in (self.selected_on, other.selected_on)
        if is_chosen and self.is_peeked != other.is_peeked:
            pairs.append(("selected_on", self.selected_on, other.selected_on))
        return [f"{key}: {one}, {two}" for key, one, two in pairs if one != two]

    def require_alike(self, other: "Protocol") -> None:
        """Refuse to go on with results that were not measured alike.

        Raises:
            ProtocolError: naming every difference.
        """
        found = self.differences(other)
        if found:
            raise ProtocolError(
                f"these results were not measured alike ({'; '.join(found)}); "
                "evaluate both again under one protocol"
            )
