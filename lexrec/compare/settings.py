"""What a comparison is made of, beside its arms."""

import itertools
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from lexrec.config import Config
from lexrec.errors import ConfigError
from lexrec.evaluation.evaluate import EvaluationConfig
from lexrec.evaluation.events import Split
from lexrec.evaluation.metrics import ACCURACY
from lexrec.evaluation.protocol import Candidates, Seen
from lexrec.evaluation.ranks import Ties

SEEDS_FOR_A_VERDICT = 10
"""Seeds an arm needs before a difference is called one: with five, luck of some per cent passes for skill."""


class CompareConfig(Config):
    """How many seeds, measured how, and what is tested."""

    seeds: int = Field(SEEDS_FOR_A_VERDICT, ge=1)
    """Runs of each trained arm, with seeds 1..n."""
    metric: str = Field("ndcg@10", pattern=r"^(hr|ndcg|mrr|recall)@[1-9][0-9]*$")
    """The one metric that is tested; larger is better."""
    changes: tuple[str, ...] = ()
    """Overrides of every trained arm, such as train.max_epochs=50; an arm's own come after them."""
    pairs: Literal["first", "all"] | tuple[str, ...] = "first"
    """The family of tests: every arm against the first, every arm against every other, or each "A:B" named, B
    being held against A."""
    split: Split = "test"
    """The part measured; validation for choosing between settings without touching the test events."""
    k: tuple[int, ...] = Field((5, 10, 20), min_length=1)
    """Lengths at which every metric is cut."""
    seen: Seen = "remove"
    """remove: items of the history do not compete; keep: they do; zero: with a score of 0."""
    ties: Ties = "expected"
    """What an item with the target's own score costs: expected half a place, optimistic 0, pessimistic 1."""
    candidates: Candidates = "all"
    """all items compete, or those with training events."""
    pool: int | None = Field(None, ge=1)
    """Rank each target among so many random unseen items, the same for every run; null: among all items."""
    pool_seed: int = Field(0, ge=0)
    """Draws the pools and the sample."""
    sample: int | None = Field(None, ge=1)
    """Measure only so many events, drawn at random."""
    draws: int = Field(2000, ge=100)
    """Draws of the bootstrap over seeds and users."""
    bootstrap_seed: int = Field(0, ge=0)
    """Seed of these draws, so that one set of runs has one report."""
    keep_weights: bool = True
    """Keep each run's weights after its evaluation; ranks and metrics stay in any case."""

    @property
    def evaluation(self) -> EvaluationConfig:
        """How each run is measured."""
        k = (*self.k, int(self.metric.partition("@")[2]))
        rules = ("seen", "ties", "candidates", "pool", "pool_seed", "sample")
        return EvaluationConfig(k=k, **{rule: getattr(self, rule) for rule in rules})

    def family(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """The pairs that are tested, the second held against the first.

        Args:
            names: of the arms, in order.

        Raises:
            ConfigError: a pair is none, or names an arm that there is not.
        """
        if self.pairs == "first":
            return [(names[0], name) for name in names[1:]]
        if self.pairs == "all":
            return list(itertools.combinations(names, 2))
        found = []
        for text in self.pairs:
            a, _, b = text.partition(":")
            if a == b or not {a, b} <= set(names):
                raise ConfigError(
                    f"pairs: {text!r} is no pair of arms; write first, all or A:B, with arms of "
                    f"{', '.join(names)}"
                )
            found.append((a, b))
        return found

    @property
    def metrics(self) -> list[str]:
        """Every metric reported, the tested one first. Recall is left out: it equals the hit rate here."""
        names = [f"{name}@{k}" for k in self.evaluation.k for name in ACCURACY if name != "recall"]
        return list(dict.fromkeys([self.metric, *names]))
