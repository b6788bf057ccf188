"""One measurement of one library, in its own environment; prints one JSON line.

python -m benchmarks.peers.worker PEER QUESTION --data DIR --work DIR [--setting JSON] [--seconds S]
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.adapters.base import Adapter
from benchmarks.peers.meter import StepMeter, call_ms, peak_mib
from benchmarks.peers.setting import N_TOGETHER, Histories, K, Setting

_LONG = 50
"""Events of the one history asked about."""


def train(peer: Adapter, histories: Histories, seconds: float) -> dict[str, Any]:
    """How many targets a second, in how much memory?"""
    meter = StepMeter(seconds)
    peer.train(meter)
    return meter.figures()


def evaluate(peer: Adapter, histories: Histories, seconds: float) -> dict[str, Any]:
    """How long do all users take, in how much memory?"""
    peer.load()
    before, cpu = time.perf_counter(), time.process_time()
    metrics = peer.evaluate()
    return {
        "seconds": round(time.perf_counter() - before, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "users": histories.n_users,
        "metrics": metrics,
    }


def recommend(peer: Adapter, histories: Histories, seconds: float) -> dict[str, Any]:
    """How long does one history take, and how many a second together?"""
    peer.load()
    one, many = [histories.user_of(_LONG)], list(range(min(N_TOGETHER, histories.n_users)))
    found: dict[str, Any] = {"history": len(histories.events(one[0], 1)), "together": len(many)}
    for users, name in ((one, "one"), (many, "many")):
        lists = peer.lists(peer.api(users)())
        if [len(items) for items in lists] != [K] * len(users):
            raise SystemExit(f"a list is not of {K} items")
        found[f"seen_{name}"] = sum(
            len(set(items) & set(histories.events(user, 1).tolist()))
            for items, user in zip(lists, users, strict=True)
        )
        found[f"api_{name}_ms"] = call_ms(peer.api(users), seconds / 4)
        found[f"raw_{name}_ms"] = call_ms(peer.raw(users), seconds / 4)
    for way in ("api", "raw"):
        found[f"{way}_users_per_s"] = round(len(many) / found[f"{way}_many_ms"]["p50"] * 1e3, 1)
    return found


def start(peer: Adapter, histories: Histories, seconds: float) -> dict[str, Any]:
    """From nothing to the first list; the caller has the clock."""
    peer.load()
    return {"items": len(peer.lists(peer.api([histories.user_of(_LONG)])())[0])}


QUESTIONS: dict[str, Callable[[Adapter, Histories, float], dict[str, Any]]] = {
    "train": train,
    "evaluate": evaluate,
    "recommend": recommend,
    "start": start,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("peer")
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--setting", type=Setting.parse, default=Setting())
    parser.add_argument("--seconds", type=float, default=15)
    args = parser.parse_args()
    # What a library prints goes to standard error; the answer alone to standard output.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    args.work.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"benchmarks.peers.adapters.{args.peer}")
    histories = Histories(args.data.resolve())
    # Some write logs to where they stand.
    os.chdir(args.work)
    peer: Adapter = module.Library(args.setting, histories, Path.cwd())
    found = QUESTIONS[args.question](peer, histories, args.seconds)
    print(
        json.dumps({"version": peer.version, **found, "peak_mib": round(peak_mib(), 1)}),
        file=answer,
        flush=True,
    )
    # The answer is out: what a library does on its way down is nobody's wait.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
