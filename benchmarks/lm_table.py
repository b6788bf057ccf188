"""IDIOMoE beside its baselines and ablations, all with one budget, on one data set: a table, in Markdown.

    python benchmarks/lm_table.py --data data/beauty --out compared/lm --lm smollm2-135m --steps 2000
    python benchmarks/lm_table.py ... --rates 1e-4,3e-4,1e-3

Every row takes the same number of optimizer steps on batches of the same number of histories, so all see the
same events; those that read titles see more tokens, and the table says how many. Nothing stops early: the
best validation along the way is what is tested. Small models need more steps than large ones, so SASRec and
the ID decoder stand there a second time (`_own`) with their recipe's own.

`--rows main` are the systems, `--rows ablations` what is changed in IDIOMoE, `--rows NAME,NAME` some of them.
With `--rates` each row over a language model runs with seed 1 at each learning rate first; the one that the
validation events pick is what the other seeds are trained at, and what the table shows.
The work is done by `lexrec compare`: killed, it goes on with the same command, and its own report, with
intervals and tests, is in OUT/report.json. `--commands` prints the arms and runs nothing.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import lexrec
from lexrec.run_dir import RunDir

TEXT = "[title,category]"


class Row(NamedTuple):
    """A row of the table: a recipe, with changes where it needs them."""

    recipe: str
    changes: tuple[str, ...] = ()
    has_lm: bool = True
    has_budget: bool = True
    """False: the recipe's own length of training and batches."""


MAIN = {
    "sasrec": Row("sasrec", has_lm=False),
    "id_decoder": Row("id_decoder", has_lm=False),
    "sasrec_own": Row("sasrec", has_lm=False, has_budget=False),
    "id_decoder_own": Row("id_decoder", has_lm=False, has_budget=False),
    "id_transformer": Row("id_transformer"),
    "item_llm": Row("item_llm"),
    "item_llm_text": Row("item_llm", (f"model.columns={TEXT}",)),
    "text_attr_llm": Row("text_attr_llm"),
    "title_llm": Row("title_llm"),
    "idiomoe": Row("idiomoe"),
    "idiomoe_text": Row("idiomoe_text"),
    "idiomoe_attention": Row("idiomoe", ("model.train_attention=true",)),
}
ABLATIONS = {
    name: Row(name)
    for name in (
        "lora_llm",
        "wide_ffn",
        "append_blocks",
        "prepend_blocks",
        "moa",
        "mot",
        "idiomoe_learned",
        "idiomoe_hybrid",
        "idiomoe_first8",
        "idiomoe_last8",
        "idiomoe_shrink2",
        "idiomoe_shrink4",
        "idiomoe_shrink8",
        "idiomoe_ids_first",
    )
}
ROWS = MAIN | ABLATIONS


def main() -> int:
    args = _arguments()
    names = chosen(args.rows)
    rates = [rate for rate in args.rates.split(",") if rate]
    arms = [arm(name, args, rate) for rate in rates or [None] for name in names if ROWS[name].has_lm]
    arms += [arm(name, args) for name in names if not ROWS[name].has_lm]
    if args.commands:
        print(*arms, sep="\n")
        return 0
    if len(rates) > 1:
        _compare(arms, 1, args)
        arms = [arm(name, args, best_rate(name, rates, Path(args.out))) for name in names]
    report = _compare(arms, args.seeds, args)
    print(table(report.arms))
    print(f"\n{report.verdict}")
    return 2 if any(found["failed"] for found in report.arms.values()) else 0


def _compare(arms: list[str], seeds: int, args: argparse.Namespace) -> Any:
    return lexrec.compare(
        arms,
        data=args.data,
        out=args.out,
        settings=lexrec.CompareConfig(seeds=seeds, keep_weights=args.keep_weights),
        device=args.device,
        jobs=args.jobs,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )


def best_rate(name: str, rates: list[str], out: Path) -> str | None:
    """The learning rate at which seed 1 of a row did best on the validation events; None: its recipe's own.

    Raises:
        SystemExit: none of its runs succeeded.
    """
    if not ROWS[name].has_lm:
        return None
    runs = {rate: RunDir(out / "arms" / _named(name, rate) / "seed-1") for rate in rates}
    found = {rate: run.summary["ndcg@10"] for rate, run in runs.items() if run.is_done}
    if not found:
        raise SystemExit(f"{name}: no run succeeded at any of {', '.join(rates)}; see {out / 'logs'}")
    return max(found, key=lambda rate: found[rate])


def _named(name: str, rate: str | None) -> str:
    return name if rate is None else f"{name}-lr{rate}"


def chosen(rows: str) -> list[str]:
    """Names of rows: of a group, or named one by one."""
    groups = {"main": list(MAIN), "ablations": ["idiomoe", *ABLATIONS], "all": list(ROWS)}
    names = groups.get(rows, rows.split(","))
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise SystemExit(f"no row {', '.join(unknown)}; known: {', '.join([*groups, *ROWS])}")
    return names


def arm(name: str, args: argparse.Namespace, rate: str | None = None) -> str:
    """The row as an arm of `lexrec compare`, with its share of the budget; `rate` None: its recipe's own."""
    row, n_steps = ROWS[name], args.steps
    changes = [*row.changes, f"model.max_len={args.max_len}"]
    if name == "idiomoe_ids_first":
        n_steps = args.steps // 2
        first = f'["model.columns=[]", "train.max_steps={args.steps - n_steps}"]'
        changes.append(f"'first={first}'")
    if row.has_budget:
        changes += [f"train.batch_size={args.batch}", f"train.evaluate_every={args.evaluate_every}"]
        changes += [f"train.{key}={n_steps}" for key in ("max_steps", "max_epochs", "patience")]
        changes.append(f"train.warmup_steps={min(200, n_steps // 10)}")
    if row.has_lm:
        changes += [f"lm.model={args.lm}", f"lm.dtype={args.dtype}"]
        changes += ["lm.checkpointing=true"] if args.checkpointing else []
    changes += [] if rate is None else [f"train.lr={rate}"]
    return f"{_named(name, rate)}: {row.recipe} {' '.join(changes)}"


def table(arms: dict[str, dict[str, Any]]) -> str:
    """A line an arm: what it reached, what it trained, and what that cost."""
    header = [
        "", "runs", "NDCG@10", "sd", "HR@10", "trained, M", "in all, M", "steps", "tokens, M", "PFLOP", "s"
    ]  # fmt: skip
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    lines += [_line(name, arm) for name, arm in arms.items() if arm["metrics"]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(name: str, arm: dict[str, Any]) -> list[str]:
    ndcg, hits = arm["metrics"]["ndcg@10"], arm["metrics"]["hr@10"]
    sd = "" if ndcg["std"] is None else f"{ndcg['std']:.4f}"
    line = [f"`{name}`", str(len(ndcg["values"])), f"{ndcg['mean']:.4f}", sd, f"{hits['mean']:.4f}"]
    if "parameters" not in arm:
        return line + [""] * 6
    n_steps = arm["steps"] + arm["steps_before"]
    flops = _flops(arm)
    return [
        *line,
        f"{arm['parameters'] / 1e6:.1f}",
        f"{arm['parameters_total'] / 1e6:.1f}",
        f"{n_steps:,.0f}",
        f"{arm['tokens'] / 1e6:.2f}",
        "" if flops is None else f"{flops / 1e15:.2f}",
        f"{arm['seconds']:.0f}",
    ]


def _flops(arm: dict[str, Any]) -> float | None:
    """Of all steps, each round's its own; None where they could not be counted."""
    counted = arm["flops"] or {}
    rounds = [(arm["steps"], counted), (arm["steps_before"], counted.get("before", {}))]
    steps = [(n_steps, flops.get("step")) for n_steps, flops in rounds if n_steps]
    return None if any(each is None for _, each in steps) else sum(n * each for n, each in steps)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="a prepared data set with title and category")
    parser.add_argument("--out", required=True, help="runs and report; goes on where it ended")
    parser.add_argument("--rows", default="all", help="all (default), main, ablations, or NAME,NAME")
    parser.add_argument("--lm", default="smollm2-135m")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"], help="of frozen weights")
    parser.add_argument("--checkpointing", action="store_true", help="less memory, a third more time")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of each row")
    parser.add_argument("--batch", type=int, default=128, help="histories in a step")
    parser.add_argument("--rates", default="", help="learning rates to pick from on validation, R,R")
    parser.add_argument("--max-len", type=int, default=50)
    parser.add_argument("--evaluate-every", type=int, default=1, help="epochs between validations")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs side by side; seconds are then not a run's own"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep-weights", action="store_true")
    parser.add_argument("--commands", action="store_true", help="print the arms and run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
