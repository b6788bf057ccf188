"""`lexrec evaluate RUN [--split test|validation] [--k 5,10,20] [--pool 9]`, or `--llm MODEL` for RUN.

`--queries COLUMN` asks a run that answers questions.
"""

import argparse
import json
from typing import TYPE_CHECKING

from lexrec.errors import ConfigError

if TYPE_CHECKING:
    from lexrec.evaluation.evaluate import Evaluation, EvaluationConfig

HELP = "measure a finished run under the full-ranking protocol"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Run, part, rules."""
    parser.add_argument("run", metavar="RUN", nargs="?", help="a finished run directory")
    parser.add_argument("--split", choices=["test", "validation"], default="test", help="default: test")
    parser.add_argument("--k", metavar="K,K", help="lengths of the lists (5,10,20; with --pool 1,5,10)")
    parser.add_argument("--data", metavar="DIR", help="its data set, where that was moved since training")
    parser.add_argument(
        "--seen", choices=["remove", "keep", "zero"], default="remove", help="items of the history"
    )
    parser.add_argument(
        "--ties",
        choices=["expected", "optimistic", "pessimistic"],
        default="expected",
        help="what an item with the target's own score costs: half a place, none, a whole one",
    )
    parser.add_argument(
        "--candidates",
        choices=["all", "train"],
        default="all",
        help="items that compete: all, or those with training events",
    )
    parser.add_argument(
        "--pool",
        type=int,
        metavar="N",
        help="rank each target among N random items that its user has not met, not among all items",
    )
    parser.add_argument("--pool-seed", type=int, default=0, metavar="SEED", help="draws pools and sample (0)")
    parser.add_argument("--sample", type=int, metavar="N", help="measure only N events, drawn at random")
    parser.add_argument(
        "--llm",
        metavar="MODEL",
        help="in place of RUN: ask this model for the likeliest title of each pool, at the OpenAI-compatible "
        "endpoint OPENAI_BASE_URL with the key OPENAI_API_KEY; needs --data, --pool and --out",
    )
    parser.add_argument(
        "--queries",
        metavar="COLUMN",
        help="of a run that answers questions: ask for each event by its item's value in this column",
    )
    parser.add_argument(
        "--against",
        metavar="RUN,RUN",
        help="of --queries: runs of the same data whose lists are filtered by that value",
    )
    parser.add_argument(
        "--new-items",
        action="store_true",
        help="of a run over a language model: rank items without a training event by their texts",
    )
    parser.add_argument("--out", metavar="DIR", help="of --llm: where its answers and the result are kept")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Measure, keep the result in the run, and print it."""
    if args.queries or args.against:
        return _queries(args)
    if args.new_items:
        return _new_items(args)
    result = _ask(args) if args.llm else _measure(args)
    if args.json:
        print(json.dumps(result.json()))
    else:
        _print(args.llm or args.run, result)
    return 0


def _measure(args: argparse.Namespace) -> "Evaluation":
    if args.run is None or args.out is not None:
        raise ConfigError("name a RUN, or give --llm MODEL with --data, --pool and --out")
    from lexrec.training.evaluate_run import evaluate

    settings = _settings(args, "1,5,10" if args.pool else "5,10,20")
    return evaluate(args.run, split=args.split, settings=settings, data=args.data, device=args.device)


def _ask(args: argparse.Namespace) -> "Evaluation":
    absent = [name for name in ("data", "pool", "out") if getattr(args, name) is None]
    if absent or args.run is not None:
        raise ConfigError("--llm MODEL takes the place of RUN and needs --data, --pool and --out")
    from lexrec.data.dataset import Dataset
    from lexrec.evaluation.llm import evaluate_llm

    return evaluate_llm(
        args.llm, Dataset.load(args.data), _settings(args, "1"), split=args.split, out=args.out
    )


def _queries(args: argparse.Namespace) -> int:
    if args.run is None or args.queries is None or args.llm:
        raise ConfigError("--queries COLUMN is asked of a RUN; --against RUN,RUN goes with it")
    from lexrec.training.evaluate_queries import evaluate_queries

    found = evaluate_queries(
        args.run,
        args.queries,
        against=args.against.split(",") if args.against else (),
        split=args.split,
        settings=_settings(args, "10"),
        data=args.data,
        device=args.device,
    )
    if args.json:
        print(json.dumps(found.json()))
        return 0
    from lexrec.commands._print import print_table

    protocol = found.protocol
    print(
        f"{args.run}: {protocol.n_events:,} {protocol.split} events asked for by {found.n_values:,} values "
        f"of {found.column}, against {protocol.n_candidates:,} items; {found.n_without:,} events without a "
        "value left out"
    )
    names = [f"{name}@{k}" for k in protocol.k for name in ("hr", "ndcg", "fits")]
    rows = [[way, *(f"{values[name]:.4f}" for name in names)] for way, values in found.ways.items()]
    print_table("", ["", *names], rows)
    return 0


def _new_items(args: argparse.Namespace) -> int:
    if args.run is None or args.llm or args.pool:
        raise ConfigError("--new-items is measured of a RUN, over the whole catalogue")
    from lexrec.training.evaluate_queries import evaluate_new_items

    found = evaluate_new_items(
        args.run, split=args.split, settings=_settings(args, "10"), data=args.data, device=args.device
    )
    if args.json:
        print(json.dumps(found.json()))
        return 0
    from lexrec.commands._print import print_table

    protocol = found.protocol
    print(
        f"{args.run}: {protocol.n_events:,} {protocol.split} events of {found.n_new:,} items without a "
        f"training event, against those and against all {protocol.n_candidates:,}; "
        f"texts explain {found.r2:.1%} of a row"
    )
    names = [f"{name}@{k}" for k in protocol.k for name in ("hr", "ndcg")]
    rows = [
        [way, *(f"{values[among][name]:.4f}" for among in ("new", "all") for name in names)]
        for way, values in found.ways.items()
    ]
    print_table("", ["", *(f"{name} {among}" for among in ("new", "all") for name in names)], rows)
    return 0


def _settings(args: argparse.Namespace, ks: str) -> "EvaluationConfig":
    from pydantic import ValidationError

    from lexrec.evaluation.evaluate import EvaluationConfig

    names = ("seen", "ties", "candidates", "pool", "pool_seed", "sample")
    try:
        return EvaluationConfig(k=_ks(args.k or ks), **{name: getattr(args, name) for name in names})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}") from error


def _ks(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(k) for k in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--k {text!r}; give whole numbers such as 5,10,20") from error


def _print(where: str, result: "Evaluation") -> None:
    from lexrec.commands._print import print_table
    from lexrec.evaluation.protocol import SEEN_IN_WORDS

    protocol = result.protocol
    against = f"{protocol.n_candidates:,} items"
    if protocol.pool is not None:
        against = f"{protocol.pool} random unseen items each (seed {protocol.pool_seed})"
    print(
        f"{where}: {protocol.n_events:,} {protocol.split} events against {against}; "
        f"seen items {SEEN_IN_WORDS[protocol.seen]}, ties {protocol.ties}, "
        f"weights picked on {protocol.selected_on}"
    )
    names = list(dict.fromkeys(name.partition("@")[0] for name in result.metrics))
    rows = [[name, *(f"{result.metrics[f'{name}@{k}']:.4f}" for k in protocol.k)] for name in names]
    print_table("", ["", *(f"@{k}" for k in protocol.k)], rows)
    shown = [f"{name}@{k}" for k in protocol.k for name in ("hr", "ndcg")]
    for key, groups in result.groups.items():
        rows = [
            [name, f"{group['events']:,}", *(f"{group['metrics'][metric]:.4f}" for metric in shown)]
            for name, group in groups.items()
        ]
        print_table("", [_GROUPS.get(key, key), "events", *shown], rows)


_GROUPS = {
    "history": "events in the history",
    "popularity": "training events of the target",
    "item": "target in training",
}
