"""`lexrec explain RUN --history ID,ID [-k 3]`."""

import argparse
import json
from typing import TYPE_CHECKING

from lexrec.errors import DataError

if TYPE_CHECKING:
    from lexrec.serving.explain import Explanation
    from lexrec.serving.recommender import Recommender

HELP = "say which language model, tokens and history items stand behind a recommendation"

_TOKENS = 12
"""Tokens shown of each table; --json has them all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Run, history."""
    parser.add_argument("run", metavar="RUN", help="a finished run directory")
    parser.add_argument("--history", required=True, metavar="ID,ID", help="item ids, oldest first")
    parser.add_argument("-k", type=int, default=3, help="recommended items to explain (3)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N or auto")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Explain one history's recommendations."""
    if args.k < 1:
        raise DataError(f"-k is at least 1, got {args.k}")
    from lexrec.serving.explain import explain
    from lexrec.serving.recommender import Recommender
    from lexrec.serving.typed import typed_ids

    recommender = Recommender.load(args.run, device=args.device)
    found = explain(recommender, typed_ids(args.history, recommender.items), args.k)
    print(json.dumps(found.json())) if args.json else _print(found, recommender)
    return 0


def _print(found: "Explanation", recommender: "Recommender") -> None:
    from lexrec.commands._print import note_gaps, print_table, recommended

    note_gaps(found.unknown, found.by_popularity)
    rows = recommended(found.item_ids, recommender.titles(found.item_ids), found.scores)
    print_table("Recommended", ["rank", "item", "title", "score"], rows, left=3)
    if found.by_popularity:
        return
    titles = recommender.titles(found.history)
    rows = [
        [str(id_), title, *(f"{value:+.3g}" for value in row)]
        for id_, title, row in zip(found.history, titles, found.influence, strict=True)
    ]
    header = ["item", "title", *(f"on rank {rank}" for rank in range(1, len(found.item_ids) + 1))]
    print_table(
        "History, newest first: how much lower each score is without the item", header, rows[::-1], left=2
    )
    rows = [
        [table, f"{gate:.0%}", ", ".join(f"{t.text.strip()} {t.weight:.0%}" for t in tokens[:_TOKENS])]
        for table, gate, tokens in found.experts
    ]
    if rows:
        print_table("Language models", ["table", "gate", "most attended tokens"], rows, left=3)
