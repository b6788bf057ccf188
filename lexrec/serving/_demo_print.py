"""What the demo found, for a person who sees lexrec for the first time. Every number comes from the runs."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from lexrec.serving._demo_verdict import METRIC, Difference, verdict
from lexrec.serving.demo import PLAIN, RANDOM, TOKENS, Demo, Measured, Person

_SHOWN = ("hr@10", "ndcg@10", "hr@20", "ndcg@20")
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
    row.add_column(width=30)
    row.add_column()
    row.add_row(Text(what), Text(text))
    out.print(row)


def report(found: Demo, out: Console) -> None:
    """The table, the verdict, three users, and what to type next."""
    for part in (_results(found), _answer(found), _people(found), _next(found)):
        for line in part:
            out.print(line)


def _results(found: Demo) -> Iterator[RenderableType]:
    protocol = found.arms[TOKENS].test.protocol
    yield ""
    yield Text(f"How often is the held-out film found? {protocol.n_events:,} users, one film each", "bold")
    yield (
        f"Each user's last film is ranked among all {protocol.n_candidates:,} films but those the user rated "
        "before. HR@10: share of users whose film is among the first ten. NDCG@10: the same, but a higher "
        "place counts more. Larger is better."
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in (*_SHOWN, "parameters", "best epoch", "seconds"):
        table.add_column(name.upper() if "@" in name else name, justify="right")
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
        f"{facts['best_epoch']} of {facts['epochs']}",
        f"{facts['seconds']:.0f}",
    ]


def _answer(found: Demo) -> Iterator[RenderableType]:
    yield Text("Did the tokens help?", "bold")
    label = found.arms[TOKENS].label
    for difference, other in ((found.over_plain, PLAIN), (found.over_random, RANDOM)):
        yield f"{label} less {found.arms[other].label}: {_signed(difference)}"
    yield Text(verdict(found.over_plain, found.over_random), "bold")
    yield (
        "The intervals hold 95 % of 10,000 draws of as many users: they say how much depends on who was "
        "asked. How much depends on the luck of one training they do not say, and one seed proves nothing. "
        "The same recipe with another train.seed may turn the order round: see below."
    )


def _signed(difference: Difference) -> str:
    said = {1: "better", -1: "worse", 0: "may be chance"}[difference.sign]
    interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
    return f"{METRIC.upper()} {difference.mean:+.4f} (95 % interval {interval}), {said}"


def _people(found: Demo) -> Iterator[RenderableType]:
    yield ""
    label = found.arms[TOKENS].label
    n_people = len(found.people)
    yield Text(f"What {label} recommends to the first {n_people} users", "bold")
    for person in found.people:
        yield from _person(person, found.arms[TOKENS].test.protocol.n_candidates)


def _person(person: Person, n_items: int) -> Iterator[RenderableType]:
    n_competing = n_items - person.n_history
    yield ""
    yield Text(f"User {person.user_id}: {person.n_history} films rated before the held-out one")
    table = Table(box=box.SIMPLE_HEAD, expand=True)
    table.add_column("rated last, newest first", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("recommended", ratio=1, no_wrap=True, overflow="ellipsis")
    n_rows = max(len(person.recent), len(person.recommended))
    shown = [f"{i}. {title}" for i, title in enumerate(person.recommended, 1)]
    for i in range(n_rows):
        hit = i < len(shown) and person.is_next[i]
        right = Text(shown[i] if i < len(shown) else "", "bold" if hit else "")
        right.append(" <- rated next" if hit else "")
        table.add_row(Text(person.recent[i] if i < len(person.recent) else ""), right)
    yield table
    yield Text(f"  rated next     {person.next_title}: place {person.rank:g} of {n_competing:,}")
    yield Text(f"  1. leans on    {person.leans_on}")
    for table_name, gate, tokens in person.experts:
        words = [token.text.strip() for token in tokens if token.text.strip()]
        yield Text(f"  {table_name:<12}   {gate:.0%} of the gate: {', '.join(words[:_N_TOKENS])}")


def _next(found: Demo) -> Iterator[RenderableType]:
    lexrec, data = _program(), shlex.quote(str(found.out / "data"))
    run = shlex.quote(str(found.arms[TOKENS].run.path))
    again = shlex.quote(str(found.out / "seed-2"))
    ids, titles = _popular(found)
    history = ",".join(ids)
    yield ""
    yield Text(f"All of it took {found.seconds:.0f} s. What to type next", "bold")
    rows = [
        (f"someone who rated {' and '.join(titles)}", f"recommend {run} --history {history}"),
        ("why these films", f"explain {run} --history {history}"),
        ("another seed, to see what luck does", f"train demo_mltfr --data {data} --out {again} train.seed=2"),
        ("is a token table sane?", "tokens show wordllama --near guitar"),
        ("your own table of events", "prepare events.parquet --time timestamp --out data/mine"),
    ]
    for about, words in rows:
        yield Text(f"  # {about}\n  {lexrec} {words}", overflow="fold")
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
