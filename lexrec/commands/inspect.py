"""`lexrec inspect RUN [RUN ...] --out DIR [--column category]`."""

import argparse
import json
from pathlib import Path
from typing import Any

from lexrec.errors import ConfigError

HELP = "look into the language model of a run: what its neurons write, what it still knows of language"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Runs, what to look at, how."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="finished runs of idiomoe or its ablations")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="key-value memory of each layer: figures and pictures"
    )
    parser.add_argument("--column", help="item column whose values are categories (category)")
    parser.add_argument("-k", type=int, default=20, help="nearest items and tokens of a neuron (20)")
    parser.add_argument("--tau", type=float, default=0.5, help="purity of a clustered neuron (0.5)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Look, write, and print what was found."""
    if args.out is None:
        raise ConfigError("say what to look at: --out DIR, the key-value memory")
    found = {"memory": _memory(args)}
    if args.json:
        print(json.dumps(found))
    else:
        _print_memory(found["memory"], args.out)
    return 0


def _memory(args: argparse.Namespace) -> dict[str, Any]:
    from lexrec.serving._memory_plot import require_matplotlib
    from lexrec.serving.memory import FILES, read_memory

    require_matplotlib()
    _require_free(args.out, FILES)
    memory = read_memory(args.runs, column=args.column, k=args.k, tau=args.tau, device=args.device)
    memory.write(args.out)
    return memory.facts


def _require_free(folder: Path, names: tuple[str, ...]) -> None:
    """Refuse a folder where an earlier result would be lost."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file; name a folder")
    if taken := [name for name in names if (folder / name).exists()]:
        raise ConfigError(f"--out {folder} already holds {', '.join(taken)}; choose another")


def _print_memory(facts: dict[str, Any], out: Path) -> None:
    from lexrec.commands._print import print_table

    for run in facts["runs"]:
        entries = [*run["layers"], run["random"] | {"layer": "", "expert": "random directions"}]
        rows = [
            [
                str(entry["layer"]),
                entry["expert"],
                f"{entry['affinity']['mean']:+.3f}",
                *([""] * 2 if entry["purity"] is None else _purity(entry)),
            ]
            for entry in entries
        ]
        title = f"{run['run']}: {run['items']:,} items, {run['tokens']:,} tokens of {run['lm']['name']}"
        print_table(title, ["layer", "expert", "affinity", "purity", "clustered"], rows, left=2)
        if run["column"] is None:
            print("no categories: the items have no column of that name, so purity is not known")
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def _purity(entry: dict[str, Any]) -> list[str]:
    return [f"{entry['purity']['mean']:.3f}", f"{entry['clustered']:.1%}"]
