"""`lexrec train RECIPE --data DIR --out RUN [section.key=value ...]`."""

import argparse
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lexrec.run_dir import RunDir

HELP = "train a recipe on a data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, places, device."""
    parser.add_argument("recipe", help="a shipped recipe's name, or the path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as model.dim=128")
    parser.add_argument("--data", required=True, metavar="DIR", help="a prepared data set")
    parser.add_argument("--out", required=True, metavar="RUN", help="the run directory to write")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--resume", action="store_true", help="continue the unfinished run in RUN")
    parser.add_argument("--track", default="", metavar="NAME,NAME", help="tensorboard, mlflow")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def run(args: argparse.Namespace) -> int:
    """Train, and say what came of it."""
    from lexrec.training.train import train

    track = [name for name in args.track.split(",") if name]
    done = train(
        args.recipe,
        data=args.data,
        out=args.out,
        overrides=args.overrides,
        device=args.device,
        resume=args.resume,
        track=track if args.quiet else ["progress", *track],
    )
    print(_summary(done))
    where = shlex.quote(args.out)
    print(f"next: lexrec evaluate {where}\n      lexrec recommend {where} --history ID,ID -k 10")
    return 0


def _summary(done: "RunDir") -> str:
    from lexrec.config import RunConfig

    facts = done.summary
    if not isinstance(done.config, RunConfig):
        return f"{done.path}: counted, {done.dataset_card['n_items']:,} items"
    metric, part = done.config.train.metric, done.config.train.select_on
    found = "" if facts[metric] is None else f" ({metric} {facts[metric]:.4f} on {part})"
    return (
        f"{done.path}: best epoch {facts['best_epoch']} of {facts['epochs']}{found}, "
        f"{facts['seconds']:.1f} s on {facts['device']}, {facts['parameters']:,} parameters"
    )
