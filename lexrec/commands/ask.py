"""`lexrec ask RUN --history ID,ID "like the last one, for a small child" [-k 10] [--why]`."""

import argparse
import json
from typing import TYPE_CHECKING

from lexrec.commands import _lists

if TYPE_CHECKING:
    from lexrec.serving.ask import Reason

HELP = "answer a question in words with items, after a history"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Run, question, history, lists."""
    parser.add_argument("run", metavar="RUN", help="a finished run of recipe idiomoe_ask or the like")
    parser.add_argument("question", metavar="TEXT", help="what is wanted, in words")
    parser.add_argument("--history", metavar="ID,ID", default="", help="item ids, oldest first")
    parser.add_argument("--why", action="store_true", help="also let the model say why, in words")
    _lists.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    _lists.check(args)
    from lexrec.commands._print import note_gaps, print_table, recommended
    from lexrec.serving.typed import typed_ids

    recommender, allow, deny = _lists.load(args)
    history = typed_ids(args.history, recommender.items)
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
