"""`lexrec evaluate RUN [--split test|validation] [--k 5,10,20]`."""

import argparse
import json
from typing import TYPE_CHECKING

from lexrec.errors import ConfigError

if TYPE_CHECKING:
    from lexrec.evaluation.evaluate import Evaluation

HELP = "measure a finished run under the full-ranking protocol"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Run, part, rules."""
    parser.add_argument("run", metavar="RUN", help="a finished run directory")
    parser.add_argument("--split", choices=["test", "validation"], default="test", help="default: test")
    parser.add_argument("--k", default="5,10,20", metavar="K,K", help="lengths of the lists (5,10,20)")
    parser.add_argument("--data", metavar="DIR", help="its data set, where that was moved since training")
    parser.add_argument("--seen", choices=["remove", "keep"], default="remove", help="items of the history")
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
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Measure, keep the result in the run, and print it."""
    from lexrec.evaluation.evaluate import EvaluationConfig
    from lexrec.training.evaluate_run import evaluate

    settings = EvaluationConfig(k=_ks(args.k), seen=args.seen, ties=args.ties, candidates=args.candidates)
    result = evaluate(args.run, split=args.split, settings=settings, data=args.data, device=args.device)
    if args.json:
        print(json.dumps(result.json()))
    else:
        _print(args.run, result)
    return 0


def _ks(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(k) for k in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--k {text!r}; give whole numbers such as 5,10,20") from error


def _print(where: str, result: "Evaluation") -> None:
    from lexrec.commands._print import print_table

    protocol = result.protocol
    print(
        f"{where}: {protocol.n_events:,} {protocol.split} events against {protocol.n_candidates:,} items; "
        f"seen items {'removed' if protocol.seen == 'remove' else 'kept'}, ties {protocol.ties}, "
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
