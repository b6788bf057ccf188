"""`lexrec recommend RUN --history ID,ID | --user ID | --histories FILE --out FILE`."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lexrec.commands import _lists
from lexrec.errors import DataError

if TYPE_CHECKING:
    from lexrec.data.vocabulary import Id
    from lexrec.serving.recommender import Recommendations, Recommender

HELP = "recommend items after a history, for a user, or for a file of histories"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Run, whom for, lists."""
    parser.add_argument("run", metavar="RUN", help="a finished run directory")
    parser.add_argument("--history", metavar="ID,ID", help="item ids, oldest first")
    parser.add_argument("--user", metavar="ID", help="a user of the data set; all their events count")
    parser.add_argument("--histories", metavar="FILE", help="Parquet with user_id and history")
    parser.add_argument("--out", metavar="FILE", help="Parquet to write, for --histories")
    _lists.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Recommend and print, or write a file."""
    _check(args)
    from lexrec.serving.typed import typed_ids

    recommender, allow, deny = _lists.load(args)
    if args.histories is not None:
        return _file(args, recommender, allow, deny)
    if args.user is not None:
        user = recommender.dataset.users.parse(args.user)
        found = recommender.recommend_users([user], args.k, keep_seen=args.keep_seen, allow=allow, deny=deny)
    else:
        history = typed_ids(args.history, recommender.items)
        found = recommender.recommend([history], args.k, keep_seen=args.keep_seen, allow=allow, deny=deny)
    print(json.dumps(_tree(found))) if args.json else _print(found, recommender)
    return 0


def _check(args: argparse.Namespace) -> None:
    asked = [name for name in ("history", "user", "histories") if getattr(args, name) is not None]
    if len(asked) != 1:
        got = " and ".join(f"--{name}" for name in asked) or "none"
        raise DataError(f"give one of --history, --user and --histories; got {got}")
    if (args.histories is None) != (args.out is None):
        raise DataError("--histories FILE and --out FILE belong together")
    _lists.check(args)


def _file(
    args: argparse.Namespace,
    recommender: "Recommender",
    allow: "Sequence[Id] | None",
    deny: "Sequence[Id] | None",
) -> int:
    report = recommender.recommend_file(
        args.histories, args.out, args.k, keep_seen=args.keep_seen, allow=allow, deny=deny
    )
    if args.json:
        print(json.dumps({"out": args.out, **report._asdict()}))
        return 0
    print(f"{args.out}: {report.rows:,} rows for {report.users:,} users")
    if report.unknown:
        print(f"{report.unknown:,} items of histories are unknown to the run and were left out")
    if report.by_popularity:
        print(f"{report.by_popularity:,} users without a known item got the most popular items")
    return 0


def _tree(found: "Recommendations") -> dict[str, object]:
    pairs = zip(found.item_ids[0], found.scores[0], strict=True)
    items = [{"item_id": id_, "score": score} for id_, score in pairs]
    tree: dict[str, object] = {"items": items, "unknown": found.unknown[0]}
    # A model's score and a popularity count are different things.
    return tree | ({"fallback": "popularity"} if found.by_popularity[0] else {})


def _print(found: "Recommendations", recommender: "Recommender") -> None:
    from lexrec.commands._print import note_gaps, print_table, recommended

    note_gaps(found.unknown[0], found.by_popularity[0])
    ids = found.item_ids[0]
    rows = recommended(ids, recommender.titles(ids), found.scores[0])
    print_table("", ["rank", "item", "title", "score"], rows, left=3)
