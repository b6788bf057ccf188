"""`lexrec ask RUN --history ID,ID "like the last one, for a small child" [-k 10]`."""

import argparse
import json

from lexrec.errors import DataError

HELP = "answer a question in words with items, after a history"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Run, question, history, lists."""
    parser.add_argument("run", metavar="RUN", help="a finished run of recipe idiomoe_ask or the like")
    parser.add_argument("question", metavar="TEXT", help="what is wanted, in words")
    parser.add_argument("--history", metavar="ID,ID", default="", help="item ids, oldest first")
    parser.add_argument("-k", type=int, default=10, help="items to recommend (10)")
    parser.add_argument("--keep-seen", action="store_true", help="also recommend items of the history")
    parser.add_argument("--allow", metavar="FILE|ID,ID", help="only these items; a file has one id a line")
    parser.add_argument("--deny", metavar="FILE|ID,ID", help="none of these items")
    parser.add_argument(
        "--new-items",
        metavar="FILE",
        help="Parquet with item_id and title (and category ...) of items that came after training",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N or auto")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    if args.k < 1:
        raise DataError(f"-k is at least 1, got {args.k}")
    from lexrec.commands._print import note_gaps, print_table, recommended
    from lexrec.serving.recommender import Recommender
    from lexrec.serving.typed import typed_ids, typed_list

    recommender = Recommender.load(args.run, device=args.device)
    if args.new_items is not None:
        recommender = recommender.with_new_items(args.new_items)
    items = recommender.items
    allow, deny = (None if text is None else typed_list(text, items) for text in (args.allow, args.deny))
    history = typed_ids(args.history, items)
    found = recommender.ask(history, args.question, args.k, keep_seen=args.keep_seen, allow=allow, deny=deny)
    ids, scores, titles = found.item_ids[0], found.scores[0], recommender.titles(found.item_ids[0])
    if args.json:
        pairs = zip(ids, scores, strict=True)
        shown = [{"item_id": id_, "score": score} for id_, score in pairs]
        print(json.dumps({"question": args.question, "items": shown, "unknown": found.unknown[0]}))
        return 0
    note_gaps(found.unknown[0], by_popularity=False)
    print_table("", ["rank", "item", "title", "score"], recommended(ids, titles, scores), left=3)
    return 0
