"""What verbs that answer with a list of items are told about it."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lexrec.errors import DataError

if TYPE_CHECKING:
    from lexrec.data.vocabulary import Id
    from lexrec.serving.recommender import Recommender


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Length and rules of a list, where to compute it and how to print it."""
    parser.add_argument("-k", type=int, default=10, help="items to recommend (10)")
    parser.add_argument("--keep-seen", action="store_true", help="also recommend items of the history")
    parser.add_argument("--allow", metavar="FILE|ID,ID", help="only these items; a file has one id a line")
    parser.add_argument("--deny", metavar="FILE|ID,ID", help="none of these items")
    parser.add_argument(
        "--new-items",
        metavar="FILE",
        help="Parquet with item_id and title (and category ...) of items that came after training",
    )
    parser.add_argument("--data", metavar="DIR", help="its data set, where that was moved since training")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N or auto")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def check(args: argparse.Namespace) -> None:
    """Refuse a list of no items before anything is loaded."""
    if args.k < 1:
        raise DataError(f"-k is at least 1, got {args.k}")


def load(args: argparse.Namespace) -> tuple["Recommender", "Sequence[Id] | None", "Sequence[Id] | None"]:
    """The run with its new items, and the ids that are allowed and denied; None: no such rule."""
    from lexrec.serving.recommender import Recommender
    from lexrec.serving.typed import typed_list

    recommender = Recommender.load(args.run, device=args.device, data=args.data)
    if args.new_items is not None:
        recommender = recommender.with_new_items(args.new_items)
    allow, deny = (
        None if text is None else typed_list(text, recommender.items) for text in (args.allow, args.deny)
    )
    return recommender, allow, deny
