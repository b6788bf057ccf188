"""Which events stay. Written in Ibis, so that it runs where the events are.

Every filter reads a table with int32 `user` and `item` codes and drops whole rows of it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import ibis
from ibis.expr import types as ir

from lexrec.data._engine import Engine
from lexrec.errors import DataError

Duplicates = Literal["keep", "first", "last", "consecutive"]


@dataclass(frozen=True)
class Filters:
    """What is dropped, in this order: ratings, duplicates, k-core, short users.

    A later filter sees what the earlier ones left. `min_length` comes after the k-core and is not
    iterated with it; `user_core` is the way to ask for both at once.
    """

    rating: str | None = None
    """Column of ratings; needs `min_rating`."""
    min_rating: float | None = None
    """Events with a smaller rating, or none, are dropped."""
    duplicates: Duplicates = "keep"
    """Of a user's events with the same item, keep all, the first or the last of them;
    `consecutive` keeps the first of each run of one item."""
    k_core: int = 0
    """Every user and every item has at least this many events, all at once; 0 asks for nothing."""
    user_core: int | None = None
    """The k of users, where it differs from that of items."""
    item_core: int | None = None
    """The k of items, where it differs from that of users."""
    min_length: int = 0
    """Users with fewer events are dropped."""

    def __post_init__(self) -> None:
        if (self.rating is None) != (self.min_rating is None):
            raise DataError(
                "filters: a rating column and a least rating go together (--rating, --min-rating)"
            )
        if self.duplicates not in get_args(Duplicates):
            allowed = ", ".join(get_args(Duplicates))
            raise DataError(f"filters: duplicates {self.duplicates!r}; allowed: {allowed}")
        numbers = (self.k_core, self.user_core or 0, self.item_core or 0, self.min_length)
        if min(numbers) < 0:
            raise DataError(f"filters: a least number of events is at least 0, got {min(numbers)}")

    @property
    def user_k(self) -> int:
        return self.k_core if self.user_core is None else self.user_core

    @property
    def item_k(self) -> int:
        return self.k_core if self.item_core is None else self.item_core


class Step(NamedTuple):
    """One filter, ready to be applied."""

    name: str
    why: str
    apply: Callable[[ir.Table], ir.Table]


class Size(NamedTuple):
    """How much there is."""

    rows: int
    users: int
    items: int


def steps(filters: Filters, engine: Engine, order: list[str]) -> Iterator[Step]:
    """The filters that were asked for, in their order.

    Args:
        filters: what is asked for.
        engine: where intermediate tables are kept.
        order: columns by which a user's events are ordered.
    """
    if filters.min_rating is not None:
        least = filters.min_rating
        why = f"{filters.rating} below {least:g} or missing"
        # Null compares as unknown, and a filter keeps only what is known to be true.
        yield Step("rating", why, lambda events: events.filter(events.rating >= least))
    if filters.duplicates != "keep":
        policy = filters.duplicates
        kept = {
            "first": "all but the first",
            "last": "all but the last",
            "consecutive": "all but one in a row",
        }
        why = f"{kept[policy]} of a user's events with the same item"
        yield Step("duplicates", why, lambda events: engine.keep(_distinct(events, policy, order)))
    if max(filters.user_k, filters.item_k) > 1:
        user_k, item_k = filters.user_k, filters.item_k
        why = f"users with fewer than {user_k} or items with fewer than {item_k} events, until none is left"
        yield Step("k-core", why, lambda events: k_core(events, engine, user_k, item_k))
    if filters.min_length > 1:
        least_length = filters.min_length
        why = f"users with fewer than {least_length} events"
        yield Step(
            "min length", why, lambda events: events.semi_join(_often(events, "user", least_length), "user")
        )


def size(events: ir.Table, engine: Engine) -> Size:
    """Rows, users and items of a table of events."""
    counts = events.aggregate(rows=events.count(), users=events.user.nunique(), items=events.item.nunique())
    return Size(**engine.one(counts))


def k_core(events: ir.Table, engine: Engine, user_k: int, item_k: int) -> ir.Table:
    """The largest part in which every user has `user_k` and every item `item_k` events.

    Only the ids that are still in are kept from round to round: events are read again, never copied.
    """
    items = engine.keep(_often(events, "item", item_k))
    while True:
        n_items = engine.count(items)
        users = engine.keep(_often(events.semi_join(items, "item"), "user", user_k))
        engine.drop(items)
        items = engine.keep(_often(events.semi_join(users, "user"), "item", item_k))
        if engine.count(items) == n_items:
            # The same items as a round ago: the users they leave are the users that left them.
            return events.semi_join(users, "user").semi_join(items, "item")
        engine.drop(users)


def _often(events: ir.Table, column: str, least: int) -> ir.Table:
    """The values of a column that occur at least so often."""
    counts: ir.Table = events.group_by(column).aggregate(n=events.count())
    return counts.filter(counts.n >= least).select(column)


def _distinct(events: ir.Table, policy: Duplicates, order: list[str]) -> ir.Table:
    if policy == "consecutive":
        in_order = ibis.window(group_by="user", order_by=order)
        before: Any = events.item.lag().over(in_order)
        marked = events.mutate(is_kept=before.isnull() | (before != events.item))
    else:
        keys = [events[key] if policy == "first" else events[key].desc() for key in order]
        place = ibis.row_number().over(ibis.window(group_by=["user", "item"], order_by=keys))
        marked = events.mutate(is_kept=place == 0)
    return marked.filter(marked.is_kept).drop("is_kept")
