"""`lexrec prepare EVENTS --user ... --item ... --time ... --out DIR`."""

import argparse
from typing import TYPE_CHECKING

from lexrec.errors import DataError

if TYPE_CHECKING:
    from lexrec.data.items import ItemTable
    from lexrec.data.prepare import Options
    from lexrec.data.splits import Split

HELP = "turn a table of interactions into a data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Columns, item table, filters, split, output."""
    parser.add_argument(
        "events", help="a file or folder, or a database table such as duckdb:///shop.db#events"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--force", action="store_true", help="replace a data set that is there already")
    parser.add_argument(
        "--format", metavar="NAME", help="format of the events, where the suffix does not say it"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", help="what it may take, such as 4GiB (half of what there is)"
    )
    _add_columns(parser.add_argument_group("columns"))
    _add_items(parser.add_argument_group("item table"))
    _add_filters(parser.add_argument_group("filters, applied in this order"))
    _add_split(parser.add_argument_group("split"))


def run(args: argparse.Namespace) -> int:
    """Prepare and say what came of it."""
    from lexrec.data.prepare import prepare

    dataset = prepare(
        args.events,
        user=args.user,
        item=args.item,
        time=args.time,
        out=args.out,
        items=_items(args),
        options=_options(args),
    )
    print(dataset.summary())
    print(f"written to {args.out}")
    return 0


def _add_columns(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--user", default="user_id", metavar="COL", help="user ids (user_id)")
    group.add_argument("--item", default="item_id", metavar="COL", help="item ids (item_id)")
    group.add_argument("--time", metavar="COL", help="any sortable column; without one, rows are in order")
    group.add_argument(
        "--ties",
        default="row",
        metavar="RULE",
        help="order of events at the same time: row (default) or hash",
    )


def _add_items(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--items", metavar="FILE", help="a table with one row an item")
    group.add_argument("--item-id", metavar="COL", help="its item ids (as --item)")
    group.add_argument("--title", metavar="COL", help="its titles")
    group.add_argument("--category", metavar="COL", help="its categories; a list is joined")
    group.add_argument("--keep", default="", metavar="COL,COL", help="further columns to keep")
    group.add_argument("--items-format", metavar="NAME", help="its format, where the suffix does not say it")


def _add_filters(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--rating", metavar="COL", help="ratings, for --min-rating")
    group.add_argument("--min-rating", type=float, metavar="X", help="drop events rated lower, or not at all")
    group.add_argument(
        "--duplicates",
        default="keep",
        metavar="RULE",
        help="of one user and item: keep, first, last, consecutive",
    )
    group.add_argument(
        "--k-core", type=int, default=0, metavar="K", help="events of every user and item, at least"
    )
    group.add_argument("--user-core", type=int, metavar="K", help="the K of users, where it differs")
    group.add_argument("--item-core", type=int, metavar="K", help="the K of items, where it differs")
    group.add_argument("--min-length", type=int, default=0, metavar="N", help="drop users with fewer events")


def _add_split(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--split", metavar="RULE", help="leave-one-out (default), time or given")
    group.add_argument("--split-column", metavar="COL", help="column of a given split")
    group.add_argument(
        "--given-validation", metavar="RULE", help="where it has none: last-train (default) or none"
    )
    group.add_argument("--validation", type=float, metavar="SHARE", help="of events, for a time split (0.1)")
    group.add_argument("--test", type=float, metavar="SHARE", help="of events, for a time split (0.1)")
    group.add_argument("--validation-from", metavar="TIME", help="moment, in place of a share")
    group.add_argument("--test-from", metavar="TIME", help="moment, in place of a share")


def _items(args: argparse.Namespace) -> "ItemTable | None":
    from lexrec.data.items import ItemTable

    if args.items is None:
        said = [
            f"--{name.replace('_', '-')}"
            for name in ("item_id", "title", "category", "keep")
            if getattr(args, name)
        ]
        if said:
            raise DataError(f"{said[0]} is a column of the item table: name that with --items")
        return None
    keep = tuple(name for name in args.keep.split(",") if name)
    return ItemTable(args.items, args.item_id, args.title, args.category, keep, args.items_format)


def _options(args: argparse.Namespace) -> "Options":
    from lexrec.data.filters import Filters
    from lexrec.data.prepare import Options

    filters = Filters(
        rating=args.rating,
        min_rating=args.min_rating,
        duplicates=args.duplicates,
        k_core=args.k_core,
        user_core=args.user_core,
        item_core=args.item_core,
        min_length=args.min_length,
    )
    split = _split(args)
    return Options(filters, split, args.ties, args.format, memory=args.memory, force=args.force)


def _split(args: argparse.Namespace) -> "Split":
    from lexrec.data.splits import GivenSplit, LeaveOneOut, TimeSplit

    kind = args.split or ("given" if args.split_column else "leave-one-out")
    if kind not in ("leave-one-out", "time", "given"):
        raise DataError(f"--split {kind!r}; allowed: leave-one-out, time, given")
    by_time = ("validation", "test", "validation_from", "test_from")
    for owner, names in (("given", ("split_column", "given_validation")), ("time", by_time)):
        said = [name for name in names if getattr(args, name) is not None]
        if said and kind != owner:
            raise DataError(f"--{said[0].replace('_', '-')} belongs to --split {owner}, not to {kind}")
    if kind == "given":
        return GivenSplit(args.split_column or "split", args.given_validation or "last-train")
    if kind == "time":
        validation, test = (0.1 if share is None else share for share in (args.validation, args.test))
        return TimeSplit(validation, test, args.validation_from, args.test_from)
    return LeaveOneOut()
