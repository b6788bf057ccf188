"""`lexrec ask RUN --history ID,ID "like the last one, for a small child" [-k 10] [--why]`."""

import argparse
import json
from typing import TYPE_CHECKING

from lexrec.errors import DataError

if TYPE_CHECKING:
    from lexrec.serving.ask import Reason

HELP = "answer a question in words with items, after a history"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Run, question, history, lists."""
    parser.add_argument("run", metavar="RUN", help="a finished run of recipe idiomoe_ask or the like")
    parser.add_argument("question", metavar="TEXT", help="what is wanted, in words")
    parser.add_argument("--history", metavar="ID,ID", default="", help="item ids, oldest first")
    parser.add_argument("-k", type=int, default=10, help="items to recommend (10)")
    parser.add_argument("--why", action="store_true", help="also let the model say why, in words")
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
    # Of an item that came after training the model has nothing to say.
    said = [id_ for id_ in ids if id_ not in recommender.new_ids] if args.why else []
    reason_of = dict(zip(said, recommender.why(history, said), strict=True)) if args.why else {}
    if args.json:
        shown: list[dict[str, object]] = []
        for id_, score in zip(ids, scores, strict=True):
            reason = {"why": reason_of[id_]._asdict()} if id_ in reason_of else {}
            shown.append({"item_id": id_, "score": score, **reason})
        print(json.dumps({"question": args.question, "items": shown, "unknown": found.unknown[0]}))
        return 0
    note_gaps(found.unknown[0], by_popularity=False)
    rows = recommended(ids, titles, scores)
    if not args.why:
        print_table("", ["rank", "item", "title", "score"], rows, left=3)
        return 0
    told = ["" if id_ not in reason_of else _told(reason_of[id_]) for id_ in ids]
    rows = [[*row[:3], text, row[3]] for row, text in zip(rows, told, strict=True)]
    print_table("", ["rank", "item", "title", "why", "score"], rows, left=4)
    return 0


def _told(reason: "Reason") -> str:
    return reason.text if reason.is_grounded else f"{reason.text} (not so in the item table)"
