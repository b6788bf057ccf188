"""Where does the time of a recommendation go? One JSON line: milliseconds of each stage of a request.

    python benchmarks/serving.py RUN --together 1,16,256 --length 50 --k 20

Histories are drawn from the run's items, every one of `--length` events (0: the users of its data set as they
are). A request goes through `Recommender.recommend`; the stages are its parts, called one after another (the
request itself lets cores share the histories, the stages let them share each operation):

    whole    ids in, ids and scores out
    indexes  ids to item indexes
    batch    indexes to left-padded rows, and the pairs that may not be shown
    encode   rows to states
    lists    states to the k best items, scores and exclusion included
    ids      items and scores to Python lists

Times are medians of `--rounds` requests, with the 99th percentile of the whole. `start` is a new process up
to its first list, by what it does, in seconds, the median of three.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from benchmarks.machine import here_and_now
from lexrec.evaluation.cores import one_thread
from lexrec.evaluation.ranks import Aside, top_k
from lexrec.serving.recommender import Recommender
from lexrec.serving.scorer_ranker import _ALONE, ScorerRanker, _pairs

START = """
import time; before = time.perf_counter()
def lap():
    global before
    now = time.perf_counter(); taken = now - before; before = now
    return taken
import torch; laps = [lap()]
from lexrec import Recommender; laps += [lap()]
recommender = Recommender.load({run!r}); laps += [lap()]
recommender.recommend([recommender.items.ids[:1]], k={k}); laps += [lap()]
print(*laps)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--together", default="1,16,256")
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    recommender = Recommender.load(args.run)
    requests = {int(n): histories(recommender, int(n), args.length) for n in args.together.split(",")}
    found = {n: stages(recommender, ids, args.k, args.rounds) for n, ids in requests.items()}
    here = {**here_and_now(), "threads": torch.get_num_threads()}
    print(json.dumps({**vars(args), **here, "ms": found, "start": start(args.run, args.k)}))


def histories(recommender: Recommender, n: int, length: int) -> list[list[Any]]:
    if length:
        rng = np.random.default_rng(0)
        return [recommender.items.take(rng.integers(1, len(recommender.items) + 1, length)) for _ in range(n)]
    users = recommender.dataset.users.ids[:n]
    return [recommender.items.take(recommender.history(user)) for user in users]


def stages(recommender: Recommender, ids: list[list[Any]], k: int, rounds: int) -> dict[str, float]:
    ranker = recommender.ranker
    assert isinstance(ranker, ScorerRanker)
    split = [recommender.items.split_known(history) for history in ids]
    known: list[Sequence[int]] = [items for items, _ in split]
    batch, aside = ranker._batch(known), Aside.of(_pairs(known))
    ranked = ranker.rank(known, k, known)
    with torch.inference_mode():
        query = ranker.scorer.encode(batch)
    kinds: dict[str, Callable[[], Any]] = {
        "whole": lambda: recommender.recommend(ids, k),
        "indexes": lambda: [recommender.items.split_known(history) for history in ids],
        "batch": lambda: (ranker._batch(known), _pairs(known)),
        "encode": lambda: ranker.scorer.encode(batch),
        "lists": lambda: top_k(ranker.scorer, query, k, aside),
        "ids": lambda: recommender._with_ids(ranked, [[]] * len(ids), [False] * len(ids)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    is_alone = len(ids) * ranker.n_items <= _ALONE
    for _ in range(max(5, rounds // len(ids))):
        for name, run in kinds.items():
            began = time.perf_counter()
            with torch.inference_mode(), one_thread() if is_alone else nullcontext():
                run()
            seconds[name].append(time.perf_counter() - began)
    ms = {name: round(statistics.median(s) * 1000, 4) for name, s in seconds.items()}
    whole = sorted(seconds["whole"])
    ms["whole_p99"] = round(whole[int(len(whole) * 0.99)] * 1000, 4)
    return ms | {"histories_per_s": round(len(ids) / ms["whole"] * 1000)}


def start(run: str, k: int) -> dict[str, float]:
    """Seconds of a new process, by what it does; Python's own start is in the whole alone."""
    laps = []
    for _ in range(3):
        began = time.perf_counter()
        code = START.format(run=run, k=k)
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
        laps.append([*map(float, done.stdout.split()), time.perf_counter() - began])
    names = ("import_torch", "import_lexrec", "load", "first", "whole")
    return {
        name: round(statistics.median(lap), 3)
        for name, lap in zip(names, zip(*laps, strict=True), strict=True)
    }


if __name__ == "__main__":
    main()
