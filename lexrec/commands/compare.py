"""`lexrec compare ARM [ARM ...] --data DIR --out DIR [--seeds N]`."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from lexrec.errors import ConfigError

if TYPE_CHECKING:
    from lexrec.compare.report import Comparison
    from lexrec.compare.settings import CompareConfig

HELP = "train several recipes with several seeds and say which differences are more than luck"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arms, places, seeds, rules."""
    parser.add_argument(
        "arms",
        nargs="+",
        metavar="ARM",
        help="a recipe's name, a YAML file, or 'NAME: RECIPE key=value ...' ({seed} is the run's seed)",
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="a prepared data set")
    parser.add_argument("--out", required=True, metavar="DIR", help="runs and report; goes on where it ended")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each arm; 10 (default) for a verdict")
    parser.add_argument("--metric", help="the one metric that is tested (ndcg@10; with --pool hr@1)")
    parser.add_argument(
        "--pairs",
        default="first",
        metavar="first|all|A:B,A:B",
        help="test all against the first (default), every pair, or B against A in each pair named",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="for every trained arm"
    )
    parser.add_argument("--split", choices=["test", "validation"], default="test", help="default: test")
    parser.add_argument("--k", metavar="K,K", help="lengths of the lists (5,10,20; with --pool 1,5,10)")
    parser.add_argument("--seen", choices=["remove", "keep", "zero"], default="remove", help="seen items")
    parser.add_argument("--candidates", choices=["all", "train"], default="all", help="items that compete")
    parser.add_argument("--pool", type=int, metavar="N", help="rank among N random unseen items, not all")
    parser.add_argument("--pool-seed", type=int, default=0, metavar="SEED", help="draws pools and sample (0)")
    parser.add_argument("--sample", type=int, metavar="N", help="measure N events, drawn at random")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs side by side (4 a GPU; a core each)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--drop-weights", action="store_true", help="keep ranks and metrics, no weights")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Compare, and print the report; 2 if a run failed."""
    from lexrec.compare.compare import compare

    if args.jobs is not None and args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}: at least 1 run at a time")
    settings = _settings(args)
    report = compare(
        args.arms,
        data=args.data,
        out=args.out,
        settings=settings,
        device=args.device,
        jobs=args.jobs,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if args.json:
        print(json.dumps(report.json()))
    else:
        _print(report, settings.metric)
    return 2 if any(arm["failed"] for arm in report.arms.values()) else 0


def _settings(args: argparse.Namespace) -> "CompareConfig":
    from pydantic import ValidationError

    from lexrec.compare.settings import CompareConfig

    ks, metric = args.k or ("1,5,10" if args.pool else "5,10,20"), "hr@1" if args.pool else "ndcg@10"
    try:
        return CompareConfig(
            seeds=args.seeds,
            metric=args.metric or metric,
            pairs=args.pairs if args.pairs in ("first", "all") else tuple(args.pairs.split(",")),
            changes=tuple(args.set),
            split=args.split,
            k=tuple(int(k) for k in ks.split(",")),
            seen=args.seen,
            candidates=args.candidates,
            pool=args.pool,
            pool_seed=args.pool_seed,
            sample=args.sample,
            keep_weights=not args.drop_weights,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])).replace("_", "-")
        raise ConfigError(f"--{key} {problem['input']!r}: {problem['msg'].lower()}") from error
    except ValueError as error:
        raise ConfigError(f"--k {args.k!r}; give whole numbers such as 5,10,20") from error


def _print(report: "Comparison", metric: str) -> None:
    from lexrec.commands._print import print_table

    kind, _, k = metric.partition("@")
    second = f"ndcg@{k}" if kind == "hr" else f"hr@{k}"
    rows = [_arm_row(name, arm, metric, second) for name, arm in report.arms.items()]
    header = ["", "runs", metric, "sd", "95 % interval", second, "parameters", "GFLOP/epoch", "s"]
    print_table("", header, rows)
    rows = [_pair_row(pair) for pair in report.pairs]
    print_table(
        "", [f"{metric}:", "against", "difference", "95 % interval", "g", "p", "p Holm"], rows, left=2
    )
    print(report.verdict)


def _arm_row(name: str, arm: dict[str, Any], metric: str, second: str) -> list[str]:
    found, flops = arm["metrics"].get(metric), arm.get("flops")
    if found is None:
        return [name, "0", "failed", "", "", "", "", "", ""]
    low, high = found["interval"]
    beside = arm["metrics"][second]
    return [
        name,
        str(len(found["values"])),
        f"{found['mean']:.4f}",
        "" if found["std"] is None else f"{found['std']:.4f}",
        f"{low:.4f} {high:.4f}",
        f"{beside['mean']:.4f}",
        f"{arm['parameters']:,}" if "parameters" in arm else "",
        f"{flops['epoch'] / 1e9:,.1f}" if flops and "epoch" in flops else "",
        f"{arm['seconds']:.1f}" if "seconds" in arm else "",
    ]


def _pair_row(pair: dict[str, Any]) -> list[str]:
    base = pair["mean_a"] or 1.0
    low, high = pair["interval"]
    g, p, p_holm = pair["hedges_g"], pair["p"], pair["p_holm"]
    return [
        pair["b"],
        pair["a"],
        f"{100 * pair['difference'] / base:+.1f} %",
        f"{100 * low / base:+.1f} {100 * high / base:+.1f}",
        "" if g is None else f"{g:+.2f}",
        "" if p is None else f"{p:.2g}",
        "" if p_holm is None else f"{p_holm:.2g}",
    ]
