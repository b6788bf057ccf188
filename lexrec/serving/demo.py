"""`lexrec demo`: the whole way from ratings of films to recommendations, with token tables and without.

    MovieLens-100K -> data set -> baselines, SASRec, SASRec + MLTFR, the same with random tables
                   -> one protocol -> did the tokens help? -> three users

What is done is an ordinary data set folder and ordinary run directories under one folder. Run again, it
reuses what is complete and continues what is not.

Dimension key: E events, H items of a history, K recommended items.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lexrec.config import AnyRunConfig, RunConfig, differences, load_recipe
from lexrec.data.dataset import MANIFEST, Dataset
from lexrec.data.vocabulary import Id
from lexrec.errors import DataError, RunError
from lexrec.evaluation.evaluate import Evaluation
from lexrec.evaluation.events import evaluation_events
from lexrec.run_dir import RunDir
from lexrec.serving._demo_data import Movies, movielens
from lexrec.serving._demo_verdict import Difference, paired_difference
from lexrec.serving.explain import Expert, explain
from lexrec.serving.recommender import Recommender
from lexrec.tokens.catalogue import load_table
from lexrec.training.evaluate_run import evaluate, place
from lexrec.training.train import train

PLAIN, TOKENS, RANDOM = "sasrec", "sasrec_mltfr", "sasrec_mltfr_random"
_N_PEOPLE = 3
_N_RECOMMENDED = 5
_N_RECENT = 5

Say = Callable[[str, str], None]


class Arm(NamedTuple):
    """One line of the table: what is trained."""

    name: str
    """Name of its run directory."""
    label: str
    recipe: str
    overrides: tuple[str, ...] = ()


ARMS = (
    Arm("popularity", "Popularity", "popularity"),
    Arm("markov", "Markov", "markov"),
    Arm("item_knn", "Item-kNN", "item_knn"),
    Arm(PLAIN, "SASRec", "demo_sasrec"),
    Arm(TOKENS, "SASRec + MLTFR", "demo_mltfr"),
    Arm(RANDOM, "SASRec + MLTFR, random", "demo_mltfr", ("item_encoder.random_seed=1",)),
)
_FAST = ("model.max_len=20", "train.max_epochs=10")
"""What --fast changes in every trained arm alike."""
_FAST_TOKENS = ("item_encoder.max_tokens=4096",)
"""And in those with tables."""


@dataclass(frozen=True)
class Measured:
    """A finished run and how it did on the test events."""

    label: str
    run: RunDir
    test: Evaluation

    @property
    def is_trained(self) -> bool:
        return isinstance(self.run.config, RunConfig)


@dataclass(frozen=True)
class Person:
    """One user: what they rated, what is recommended after it, and what they rated next."""

    user_id: Id
    n_history: int
    recent: list[str]
    """Titles of the newest items before the test event, newest first."""
    next_title: str
    rank: float
    """Place of what came next in the whole ranking, as the evaluation counted it."""
    n_competing: int
    """Items of that ranking."""
    recommended: list[str]
    is_next: list[bool]
    """True where the recommended item is the one that came next."""
    leans_on: str
    """The item of the history without which the first recommendation loses most."""
    experts: list[Expert]


@dataclass(frozen=True)
class Demo:
    """Everything the demo found out."""

    out: Path
    dataset: Dataset
    arms: dict[str, Measured]
    """By name, in the order of `ARMS`."""
    over_plain: Difference
    """SASRec + MLTFR less SASRec."""
    over_random: Difference
    """SASRec + MLTFR less the same with random tables."""
    people: list[Person]
    seconds: float


def demo(
    out: str | Path = "demo",
    *,
    fast: bool = False,
    data_from: str | Path | None = None,
    say: Say = lambda what, text: None,
    tables: Sequence[str] = ("wordllama", "minilm"),
    overrides: Sequence[str] = (),
) -> Demo:
    """Prepare, train, compare, recommend.

    Args:
        out: folder for the data set and the runs.
        fast: shorter histories and fewer epochs.
        data_from: a folder with u.data and u.item, instead of a download.
        say: is told each thing that is done: what, and how it went.
        tables: token tables; their order is that of the experts.
        overrides: changes to the recipes of all trained arms.

    Raises:
        DataError: the data cannot be had, or `out` holds other data.
        TokensError: a token table cannot be had.
        RunError: a run in `out` was made with other settings.
    """
    began = time.monotonic()
    out = Path(out)
    dataset = _prepared(out / "data", None if data_from is None else Path(data_from), say)
    for name in tables:
        table = load_table(name)
        facts = f"{table.n_tokens:,} tokens x {table.width}, licence {table.licence or 'unknown'}"
        say(f"token table {table.name}", facts)
    changed = (*(_FAST if fast else ()), *overrides)
    changed_tokens = (f"item_encoder.tables=[{','.join(tables)}]", *(_FAST_TOKENS if fast else ()))
    folder = out / ("runs-fast" if fast else "runs")
    arms = {}
    for arm in ARMS:
        config = _config(arm, changed, changed_tokens)
        arms[arm.name] = _measured(arm, config, folder / arm.name, dataset, say)
    for other in arms.values():
        arms[TOKENS].test.protocol.require_alike(other.test.protocol)
    rank_E = arms[TOKENS].test.rank_E
    return Demo(
        out,
        dataset,
        arms,
        paired_difference(rank_E, arms[PLAIN].test.rank_E),
        paired_difference(rank_E, arms[RANDOM].test.rank_E),
        _people(arms[TOKENS], dataset),
        time.monotonic() - began,
    )


def _prepared(folder: Path, data_from: Path | None, say: Say) -> Dataset:
    """The data set folder, made where it is not there yet."""
    if not (folder / MANIFEST).is_file():
        movies = movielens(data_from)
        say("MovieLens-100K", f"from {movies.source}")
        dataset = _prepare(movies, folder)
        say("", _facts(dataset))
        return dataset
    dataset = Dataset.load(folder)
    if data_from is not None and _build(movielens(data_from)).fingerprint != dataset.fingerprint:
        raise DataError(f"{folder} was made from other data than {data_from}; choose another --out")
    say("MovieLens-100K", f"prepared before, in {folder}")
    return dataset


def _facts(dataset: Dataset) -> str:
    n_tied = dataset.manifest["ties"]["adjacent"]
    return (
        f"{dataset.n_users:,} users, {dataset.n_items:,} films, {len(dataset.item_N):,} ratings. Each user's "
        "last film is held out for the test, the one before it for choosing the best epoch. "
        f"{n_tied:,} ratings carry the same second as the user's rating before: these stay in the order of "
        "the file"
    )


def _prepare(movies: Movies, folder: Path) -> Dataset:
    from lexrec.data.prepare import ItemTable, prepare

    items = ItemTable(movies.items, title="title", category="category")
    return prepare(movies.events, time="timestamp", out=folder, items=items)


def _build(movies: Movies) -> Dataset:
    from lexrec.data.prepare import Columns, ItemTable, Options, build

    items = ItemTable(movies.items, title="title", category="category")
    return build(movies.events, Columns("user_id", "item_id", "timestamp"), items=items, options=Options())


def _config(arm: Arm, changed: Sequence[str], changed_tokens: Sequence[str]) -> AnyRunConfig:
    plain = load_recipe(arm.recipe)
    if not isinstance(plain, RunConfig):
        return plain
    has_tables = bool(plain.item_encoder.tables)  # type: ignore[attr-defined]
    return load_recipe(arm.recipe, [*arm.overrides, *(changed_tokens if has_tables else ()), *changed])


def _measured(arm: Arm, config: AnyRunConfig, path: Path, dataset: Dataset, say: Say) -> Measured:
    """The run of an arm and its test, each made unless it is there."""
    was_done = (path / "config.yaml").is_file() and _same(path, config).is_done
    if not was_done and isinstance(config, RunConfig):
        say(arm.label, f"training, at most {config.train.max_epochs} epochs")
    run = train(config, data=dataset, out=path, resume=True)
    kept = place(run, "test")
    test = Evaluation.load(kept) if (kept / "metrics.json").is_file() else evaluate(run)
    measured = Measured(arm.label, run, test)
    say(arm.label, _how(measured) + (", done before" if was_done else ""))
    return measured


def _same(path: Path, config: AnyRunConfig) -> RunDir:
    run = RunDir.reopen(path)
    if changed := differences(run.config, config):
        raise RunError(
            f"{path} was made with other settings ({'; '.join(changed)}); remove it or choose another --out"
        )
    return run


def _how(measured: Measured) -> str:
    facts = measured.run.summary
    if not measured.is_trained:
        return "counted"
    return f"best epoch {facts['best_epoch']} of {facts['epochs']}, {facts['seconds']:.0f} s"


def _people(measured: Measured, dataset: Dataset) -> list[Person]:
    """The first users of the data set: nobody chose them for how well it went."""
    recommender = Recommender.load(measured.run.path)
    n_people = min(_N_PEOPLE, len(measured.test.rank_E))
    return [_person(recommender, dataset, event, measured.test) for event in range(n_people)]


def _person(recommender: Recommender, dataset: Dataset, event: int, test: Evaluation) -> Person:
    events = evaluation_events(dataset, "test")
    item_H = dataset.item_N[events.start_E[event] : events.end_E[event]]
    history = recommender.items.take(item_H.astype(np.int64))
    (next_id,) = recommender.items.take(events.target_E[event : event + 1])
    why = explain(recommender, history, _N_RECOMMENDED)
    on_first = [row[0] for row in why.influence]
    heaviest = why.history[int(np.argmax(on_first))]
    return Person(
        user_id=dataset.users.id(int(events.user_E[event])),
        n_history=len(history),
        recent=recommender.titles(history[: -_N_RECENT - 1 : -1]),
        next_title=recommender.titles([next_id])[0],
        rank=float(test.rank_E[event]),
        n_competing=test.protocol.n_candidates - len(set(history) - {next_id}),
        recommended=recommender.titles(why.item_ids),
        is_next=[item_id == next_id for item_id in why.item_ids],
        leans_on=recommender.titles([heaviest])[0],
        experts=why.experts,
    )
