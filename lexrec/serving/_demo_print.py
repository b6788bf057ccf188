"""What the demo found, for a person who sees lexrec for the first time. Every number comes from the runs."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from lexrec.serving._demo_verdict import METRIC, verdict
from lexrec.serving.demo import PLAIN, RANDOM, TOKENS, Demo, Measured, Person

_SHOWN = ("hr@10", "ndcg@10", "ndcg@20")
_WIDTH = 100
"""Columns of output that goes to no terminal."""
_N_TOKENS = 8


def console() -> Console:
    """Standard output, as wide as the terminal but no wider than is good to read."""
    width = min(shutil.get_terminal_size().columns, _WIDTH) if sys.stdout.isatty() else _WIDTH
    return Console(width=width, highlight=False)


def step(out: Console, what: str, text: str) -> None:
    """One thing that was done: what on the left, how it went on the right."""
    row = Table.grid(padding=(0, 2))
    row.add_column(width=22)
    row.add_column()
    row.add_row(Text(what), Text(text))
    out.print(row)


def report(found: Demo, out: Console) -> None:
    """The table, the verdict, three users, and what to type next."""
    for part in (_results(found), _answer(found), _people(found)):
        for line in part:
            out.print(line)
    for line in _next(found):
        # A command that is broken over two lines cannot be copied.
        out.print(line, soft_wrap=True)


def _results(found: Demo) -> Iterator[RenderableType]:
    protocol = found.arms[TOKENS].test.protocol
    yield ""
    yield Text(f"How often is the held-out film found? {protocol.n_events:,} users, one film each", "bold")
    yield (
        f"Each user's last film is ranked among all {protocol.n_candidates:,} films but those the user rated "
        "before. HR@10: share of users whose film is among the first ten. NDCG@10: the same, but a higher "
        "place counts more. Larger is better. Random: tables of random numbers in place of the real ones."
    )
    # Narrow gaps, so that it fits a terminal of 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in (*_SHOWN, "parameters", "epoch", "seconds"):
        table.add_column(name.upper() if "@" in name else name, justify="right", no_wrap=True)
    best = {name: max(arm.test.metrics[name] for arm in found.arms.values()) for name in _SHOWN}
    for arm in found.arms.values():
        values = [arm.test.metrics[name] for name in _SHOWN]
        cells = [
            Text(f"{value:.4f}", "bold" if value == best[name] else "")
            for name, value in zip(_SHOWN, values, strict=True)
        ]
        table.add_row(Text(arm.label), *cells, *_costs(arm))
    yield table


def _costs(arm: Measured) -> list[str]:
    if not arm.is_trained:
        return ["counted", "", ""]
    facts = arm.run.summary
    return [
        f"{facts['parameters']:,}",
        f"{facts['best_epoch']}/{facts['epochs']}",
        f"{facts['seconds']:.0f}",
    ]


def _answer(found: Demo) -> Iterator[RenderableType]:
    label = found.arms[TOKENS].label
    yield Text(f"Did the tokens help? {METRIC.upper()} of {label}, compared on the same users", "bold")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("with", no_wrap=True)
    table.add_column("difference", justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("", no_wrap=True)
    for difference, other in ((found.over_plain, PLAIN), (found.over_random, RANDOM)):
        interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
        said = {1: "better", -1: "worse", 0: "may be chance"}[difference.sign]
        table.add_row(Text(found.arms[other].label), f"{difference.mean:+.4f}", interval, said)
    yield table
    yield Text(verdict(found.over_plain, found.over_random), "bold")
    yield _best(found)
    yield from _unfinished(found)
    yield (
        "The intervals come from drawing as many users again, 10,000 times: they say how much depends on who "
        "was asked. They do not say how much depends on the luck of one training, and one seed proves "
        "nothing: another train.seed may turn the order round."
    )


def _best(found: Demo) -> str:
    best = max(found.arms.values(), key=lambda arm: arm.test.metrics[METRIC])
    said = f"The highest {METRIC.upper()} is that of {best.label}"
    return f"{said}." if best.is_trained else f"{said}, which only counts: no model beat it here."


def _unfinished(found: Demo) -> Iterator[str]:
    trained = [arm for arm in found.arms.values() if arm.is_trained]
    rising = [arm.label for arm in trained if arm.run.summary["best_epoch"] == arm.run.summary["epochs"]]
    if rising:
        yield f"Still getting better when training ended: {'; '.join(rising)}."


def _people(found: Demo) -> Iterator[RenderableType]:
    yield ""
    label = found.arms[TOKENS].label
    yield Text(f"What {label} recommends to the first {len(found.people)} users", "bold")
    yield (
        "Tokens: those of each table that got the most attention, and the table's share of the mixture. "
        "Attention says what was looked at, not that it helped."
    )
    for person in found.people:
        yield from _person(person)


def _person(person: Person) -> Iterator[RenderableType]:
    yield ""
    yield Text(f"User {person.user_id}, {person.n_history} films rated before the held-out one")
    table = Table(box=box.SIMPLE_HEAD, expand=True)
    table.add_column("rated last, newest first", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("recommended", ratio=1, no_wrap=True, overflow="ellipsis")
    numbered = (f"{i}. {title}" for i, title in enumerate(person.recommended, 1))
    right = [
        Text(f"{title} <- rated next", "bold") if hit else Text(title)
        for title, hit in zip(numbered, person.is_next, strict=True)
    ]
    for left, listed in zip_longest(map(Text, person.recent), right, fillvalue=Text("")):
        table.add_row(left, listed)
    yield table
    facts = Table.grid(padding=(0, 2))
    facts.add_column(width=20)
    facts.add_column()
    facts.add_row(
        "  rated next", Text(f"{person.next_title}: place {person.rank:g} of {person.n_competing:,}")
    )
    facts.add_row("  1. mostly due to", Text(person.leans_on))
    for name, gate, tokens in person.experts:
        # " Port" and "Port" are two tokens and one word.
        words = list(dict.fromkeys(word for token in tokens if (word := token.text.strip())))
        facts.add_row(Text(f"  {name} {gate:.0%}"), Text(", ".join(words[:_N_TOKENS])))
    yield facts


def _next(found: Demo) -> Iterator[RenderableType]:
    lexrec, data = _program(), shlex.quote(str(found.out / "data"))
    run = shlex.quote(str(found.arms[TOKENS].run.path))
    recipe = shlex.quote(str(found.arms[TOKENS].run.path / "config.yaml"))
    again = shlex.quote(str(found.out / "seed-2"))
    ids, titles = _popular(found)
    history = ",".join(ids)
    yield ""
    yield Text(f"All of it took {found.seconds:.0f} s. What to type next", "bold")
    rows = [
        (f"someone who rated {' and '.join(titles)}", f"recommend {run} --history {history}"),
        ("why these films", f"explain {run} --history {history}"),
        ("another seed, to see what luck does", f"train {recipe} --data {data} --out {again} train.seed=2"),
        ("is a token table sane?", "tokens show wordllama --near guitar"),
        ("your own table of events", "prepare events.parquet --time timestamp --out data/mine"),
    ]
    for about, words in rows:
        yield Text(f"  # {about}\n  {lexrec} {words}")
    yield Text("The guide begins at docs/guide/first-run.md.")


def _popular(found: Demo) -> tuple[list[str], list[str]]:
    """The two items most taken in training: ids and titles."""
    top = np.argsort(-found.dataset.train_count_I, kind="stable")[:2]
    rows = found.dataset.item_table.take(top - 1).to_pylist()
    return [str(row["item_id"]) for row in rows], [row["title"] for row in rows]


def _program() -> str:
    """How this command is called here: by its name, or by its path where the shell would not find it."""
    if shutil.which("lexrec"):
        return "lexrec"
    beside = Path(sys.executable).with_name("lexrec")
    return shlex.quote(os.path.relpath(beside)) if beside.exists() else "python -m lexrec.commands"
