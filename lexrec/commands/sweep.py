"""`lexrec sweep RECIPE --data DIR --space key=low..high:log ... --trials N --out DIR`."""

import argparse
import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from lexrec.errors import ConfigError

if TYPE_CHECKING:
    from lexrec.compare.sweep import SweepConfig

HELP = "search a recipe's settings by the validation events, with Optuna"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, space, how long, places."""
    parser.add_argument("recipe", help="a shipped recipe's name, or the path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="the same in every trial")
    parser.add_argument("--data", required=True, metavar="DIR", help="a prepared data set")
    parser.add_argument(
        "--space",
        required=True,
        nargs="+",
        action="extend",
        metavar="SPACE",
        help="key=low..high[:log|:step], key=[a,b,c], or a YAML file of key: low..high",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="trials and best.yaml; goes on if there")
    parser.add_argument("--trials", type=int, default=50, metavar="N", help="in all, earlier ones too (50)")
    parser.add_argument("--pruner", choices=["median", "hyperband", "none"], default="median")
    parser.add_argument("--seed", type=int, default=0, help="of the search, not of the training (0)")
    parser.add_argument("--metric", help="of a baseline: validation metric (ndcg@10)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that share the work (1)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--quiet", action="store_true", help="no line for each trial")


def run(args: argparse.Namespace) -> int:
    """Search, and print what came of it."""
    from lexrec.compare.sweep import sweep

    found = sweep(
        args.recipe,
        data=args.data,
        out=args.out,
        settings=_settings(args),
        jobs=args.jobs,
        device=args.device,
        say=(lambda text: None) if args.quiet else _say,
    )
    if args.json:
        print(json.dumps(found))
    else:
        _print(found, shlex.quote(args.out), shlex.quote(args.data))
    return 0


def _settings(args: argparse.Namespace) -> "SweepConfig":
    from pydantic import ValidationError

    from lexrec.compare.sweep import SweepConfig

    try:
        return SweepConfig(
            space=tuple(args.space),
            overrides=tuple(args.overrides),
            trials=args.trials,
            metric=args.metric,
            pruner=args.pruner,
            seed=args.seed,
        )
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ConfigError(f"--{wrong['loc'][0]} {wrong['input']!r}: {wrong['msg'].lower()}") from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(found: dict[str, Any], out: str, data: str) -> None:
    from lexrec.commands._print import print_table

    order = {"complete": 0, "pruned": 1, "fail": 2}
    trials = sorted(found["trials"], key=lambda trial: (order[trial["state"]], -(trial["value"] or 0)))
    # The keys are the same in every trial.
    keys = [change.partition("=")[0] for change in trials[0]["overrides"]]
    rows = [
        [
            str(trial["number"]),
            "" if trial["value"] is None else f"{trial['value']:.4f}",
            {"complete": "", "pruned": "given up", "fail": "failed"}[trial["state"]],
            str(trial["last_epoch"] or ""),
            f"{trial['seconds']:.0f}",
            *(change.partition("=")[2] for change in trial["overrides"]),
        ]
        for trial in trials[:_SHOWN]
    ]
    more = f", the best {_SHOWN}" if len(trials) > _SHOWN else ""
    print_table(f"{len(trials)} trials{more}", ["", found["metric"], "", "epochs", "s", *keys], rows)
    if found["importance"]:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in found["importance"].items())
        print(f"what decided: {shares}")
    best = found["best"]
    print(f"{out}/best.yaml: {found['metric']} {best['value']:.4f} on validation, which it was chosen on")
    print(f"next: lexrec compare RECIPE 'tuned: {out}/best.yaml' --data {data} --out DIR")


_SHOWN = 15
