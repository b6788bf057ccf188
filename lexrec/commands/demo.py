"""`lexrec demo [--fast] [--out DIR] [--data-from FOLDER]`."""

import argparse

HELP = "see all of it on MovieLens-100K: prepare, train with and without tokens, compare, recommend"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, where to, where from."""
    parser.add_argument("--fast", action="store_true", help="shorter histories and fewer epochs")
    parser.add_argument("--out", default="demo", metavar="DIR", help="data set and runs; reused (demo)")
    parser.add_argument(
        "--data-from",
        metavar="FOLDER",
        help="u.data and u.item, or ml-100k.inter and ml-100k.item, instead of a download",
    )


def run(args: argparse.Namespace) -> int:
    """Do it, and say what came of it."""
    from functools import partial

    from lexrec.serving._demo_print import console, report, step
    from lexrec.serving.demo import demo

    out = console()
    found = demo(args.out, fast=args.fast, data_from=args.data_from, say=partial(step, out))
    report(found, out)
    return 0
