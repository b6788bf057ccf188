"""`lexrec bench RECIPE --data DIR [section.key=value ...]`."""

import argparse
import json
import sys
from typing import Any

HELP = "how fast is this machine with a recipe on your data: training, evaluating, recommending"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, overrides, place, how long."""
    parser.add_argument("recipe", help="a shipped recipe's name, or the path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as model.dim=128")
    parser.add_argument("--data", required=True, metavar="DIR", help="a prepared data set")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--seconds", type=float, default=10, help="for each measurement (10)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Measure, and print what was found."""
    from lexrec.serving.bench import bench

    found = bench(
        args.recipe,
        data=args.data,
        overrides=args.overrides,
        device=args.device,
        seconds=args.seconds,
        say=lambda line: print(f"{line} ...", file=sys.stderr, flush=True),
    )
    print(json.dumps(found)) if args.json else _print(found)
    return 0


def _print(found: dict[str, Any]) -> None:
    from lexrec.commands._print import print_table

    on, data = found["machine"], found["data"]
    print(f"{found['recipe']}: {found['parameters'] or 0:,} parameters")
    print(f"{data['n_users']:,} users, {data['n_items']:,} items, {data['n_events']:,} events")
    print(
        f"{on.get('gpu', on['processor'])}, {on['cores']} cores, {on['memory_gib']} GiB, torch {on['torch']}"
    )
    print_table("", ["measured", "", "peak MiB", "GPU MiB"], list(_rows(found)), left=1)


def _rows(found: dict[str, Any]) -> list[list[str]]:
    training, evaluation, recommending = (found[key] for key in ("training", "evaluation", "recommending"))
    rows = []
    if training:
        rows.append(["training", f"{training['targets_per_s']:,.0f} targets/s", training])
        rows.append(["", f"{training['step_ms']:.2f} ms a step", {}])
    if evaluation:
        rows.append(["evaluation", f"{evaluation['users_per_s']:,.0f} users/s", evaluation])
    one = recommending["one_ms"]
    rows.append(["one history", f"{one['p50']:.2f} ms (p99 {one['p99']:.2f})", recommending])
    rows.append(
        [f"{recommending['together']} together", f"{recommending['histories_per_s']:,.0f} histories/s", {}]
    )
    rows.append(["command to answer", f"{found['start']['seconds']:.2f} s", {}])
    return [[what, figure, *_memory(of)] for what, figure, of in rows]


def _memory(of: dict[str, Any]) -> list[str]:
    return [f"{of[key]:,.0f}" if key in of else "" for key in ("peak_mib", "gpu_peak_mib")]
