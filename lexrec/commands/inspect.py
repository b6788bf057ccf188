"""`lexrec inspect RUN [RUN ...] [--out DIR]`, `--text FILE`, `--tasks NAME,NAME`, `--experts`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lexrec.errors import ConfigError

HELP = "look into a run's language model: what its neurons write, what it still knows; and token experts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Runs, what to look at, how."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="finished runs, of idiomoe but for --experts")
    memory = parser.add_argument_group("key-value memory, if nothing else is asked: what neurons write")
    memory.add_argument(
        "--out", type=Path, metavar="DIR", help="writes figures and pictures here (RUN/inspect)"
    )
    memory.add_argument("--column", help="item column whose values are categories (category)")
    memory.add_argument("-k", type=int, default=20, help="nearest items and tokens of a neuron (20)")
    memory.add_argument("--tau", type=float, default=0.5, help="purity of a clustered neuron (0.5)")
    text = parser.add_argument_group("language: loss of a text, beside the pretrained language model's")
    text.add_argument("--text", metavar="FILE", help="a text file, UTF-8")
    text.add_argument("--context", type=int, metavar="N", help="tokens of a window (1024, or fewer it reads)")
    text.add_argument("--stride", type=int, metavar="N", help="new tokens of each window (half of them)")
    tasks = parser.add_argument_group("language: tasks of lm-eval, beside the pretrained language model")
    tasks.add_argument("--tasks", metavar="NAME,NAME", help="such as hellaswag,winogrande,mmlu,bbh")
    tasks.add_argument("--task-folder", type=Path, metavar="DIR", help="tasks of your own, as YAML files")
    tasks.add_argument("--limit", type=int, metavar="N", help="examples of each task, from the first (all)")
    tasks.add_argument("--shots", type=int, metavar="N", help="solved examples before each (the task's own)")
    tasks.add_argument("--batch-size", type=int, default=8, metavar="N", help="examples read together (8)")
    experts = parser.add_argument_group("token tables (MLTFR): gates and tokens over many histories")
    experts.add_argument("--experts", action="store_true", help="of test users, drawn at random")
    experts.add_argument("--histories", type=int, default=2048, metavar="N", help="how many (2048)")
    experts.add_argument("--data", metavar="DIR", help="its data set, where that was moved since training")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Look, write, and print what was found."""
    found: dict[str, Any] = {}
    asks_other = args.text is not None or args.tasks is not None or args.experts
    out = args.out if args.out is not None or asks_other else Path(args.runs[0]) / "inspect"
    if args.out is not None:
        _require_free(args.out)
    if out is not None:
        found["memory"] = _memory(args, out)
    if args.text is not None:
        found["text"] = {name: _text(args, name) for name in args.runs}
    if args.tasks is not None:
        found["tasks"] = _tasks(args)
    if args.experts:
        found["experts"] = {name: _experts(args, name) for name in args.runs}
    print(json.dumps(found)) if args.json else _print(found, out)
    return 0


def _memory(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    from lexrec.serving._memory_plot import require_matplotlib
    from lexrec.serving.memory import read_memory

    require_matplotlib()
    memory = read_memory(args.runs, column=args.column, k=args.k, tau=args.tau, device=args.device)
    memory.write(out)
    return memory.facts


def _require_free(folder: Path) -> None:
    """Refuse a folder where an earlier result would be lost."""
    from lexrec.serving.memory import FILES

    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file; name a folder")
    if taken := [name for name in FILES if (folder / name).exists()]:
        raise ConfigError(f"--out {folder} already holds {', '.join(taken)}; choose another")


def _text(args: argparse.Namespace, name: str) -> dict[str, Any]:
    from lexrec.serving.language import read_file

    return read_file(name, args.text, context=args.context, stride=args.stride, device=args.device)


def _tasks(args: argparse.Namespace) -> dict[str, Any]:
    from pydantic import ValidationError

    from lexrec.lm.harness import TasksConfig
    from lexrec.serving.language import compare_tasks

    try:
        config = TasksConfig(
            tasks=tuple(name for name in args.tasks.split(",") if name),
            folder=args.task_folder,
            limit=args.limit,
            shots=args.shots,
            batch_size=args.batch_size,
        )
    except ValidationError as error:
        wrong = error.errors()[0]
        option = str(wrong["loc"][0]).replace("_", "-").replace("folder", "task-folder")
        raise ConfigError(f"--{option} {wrong['input']!r}: {wrong['msg'].lower()}") from error
    return {name: compare_tasks(name, config, args.device) for name in args.runs}


def _experts(args: argparse.Namespace, name: str) -> dict[str, Any]:
    from lexrec.serving.experts import read_experts

    return read_experts(name, n_histories=args.histories, data=args.data, device=args.device)


def _print(found: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        _print_memory(found["memory"])
        print(f"written: {', '.join(str(path) for path in sorted(out.iterdir()))}")
    if "text" in found:
        _print_text(found["text"])
    if "tasks" in found:
        _print_tasks(found["tasks"])
    if "experts" in found:
        _print_experts(found["experts"])


def _print_memory(facts: dict[str, Any]) -> None:
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
            print(
                f"{run['run']}: items have no categories, so purity is not known; name a --column",
                file=sys.stderr,
            )


def _purity(entry: dict[str, Any]) -> list[str]:
    return [f"{entry['purity']['mean']:.3f}", f"{entry['clustered']:.1%}"]


def _print_text(found: dict[str, dict[str, Any]]) -> None:
    from lexrec.commands._print import print_table

    for name, facts in found.items():
        rows = [
            [
                label,
                f"{facts[key]['nll']:.4f}",
                f"{facts[key]['perplexity']:.2f}",
                f"{facts[key]['bits_per_byte']:.4f}",
            ]
            for label, key in (("this run", "run"), ("as pretrained", "base"))
        ]
        title = (
            f"{name}: {facts['file']}, {facts['tokens']:,} tokens, context {facts['context']}, "
            f"stride {facts['stride']}"
        )
        print_table(title, ["", "nll", "perplexity", "bits/byte"], rows)
        print("all logits are the same, bit for bit" if facts["is_same"] else "text is read otherwise")


def _print_tasks(found: dict[str, dict[str, Any]]) -> None:
    from lexrec.commands._print import print_table

    for name, facts in found.items():
        rows = [
            [task, metric, _with_error(value), _with_error(facts["base"][task][metric])]
            for task, metrics in facts["run"].items()
            for metric, value in metrics.items()
        ]
        limit = f", the first {facts['limit']} of each" if facts["limit"] else ""
        print_table(f"{name}{limit}", ["task", "metric", "this run", "as pretrained"], rows, left=2)


def _with_error(metric: dict[str, float | None]) -> str:
    error = metric["stderr"]
    return f"{metric['value']:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _print_experts(found: dict[str, dict[str, Any]]) -> None:
    from lexrec.commands._print import print_table

    for name, facts in found.items():
        rows = [
            [
                expert["table"],
                f"{expert['gate']['mean']:.1%}",
                f"{expert['first']:.1%}",
                ", ".join(f"{t['text'].strip()} {t['share']:.1%}" for t in expert["tokens"][:_TOKENS]),
            ]
            for expert in facts["experts"]
        ]
        header = ["table", "gate", "largest in", "most attended tokens"]
        print_table(f"{name}: {facts['histories']:,} histories", header, rows, left=4)


_TOKENS = 10
"""Shown of each table; --json has more."""
