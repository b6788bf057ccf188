"""How long do exact lists of the k best, and exact ranks, take over a whole catalogue? One JSON line.

    python benchmarks/ranking.py --users 1e6 --items 100e3 --k 100 --seen 50      # on a GPU

Users are states drawn at random, already encoded; items are a model's fresh table. Every user has `--seen`
items that may not be shown. Timed `--rounds` times, kinds taking turns; medians, with the quickest and the
slowest beside them:

    lists    k best items of each user        lexrec.evaluation.ranks.top_k
    ranks    rank of one target of each user  lexrec.evaluation.ranks.target_ranks
    both     from scores made once            lexrec.evaluation.ranks.ranks_and_lists
    scores   the matrix product alone, in tiles of the same size: the floor

`--select` also times the two ways of finding the k best of one tile (plain PyTorch; Triton on a GPU). Lists
of some users are compared with those of sorting float64 scores; `wrong` counts places that differ by more
than rounding.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import here_and_now
from lexrec.config import RunConfig, load_recipe
from lexrec.evaluation.events import Pairs
from lexrec.evaluation.ranks import Aside, TopK, ranks_and_lists, target_ranks, top_k
from lexrec.evaluation.scorer import ModelScorer
from lexrec.item_encoders.base import Catalogue
from lexrec.kernels import ranking
from lexrec.models import build_model

CHECKED = 64


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    sizes = {"users": 1e6, "items": 100e3} if on_gpu else {"users": 4096, "items": 12e3}
    for name, default in {**sizes, "dim": 64, "k": 100, "seen": 50, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=lambda text: int(float(text)), default=int(default))
    parser.add_argument("--kinds", default="lists,ranks,both,scores")
    parser.add_argument("--select", action="store_true")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if on_gpu else "cpu")
    with torch.inference_mode():
        here = {**here_and_now(), "threads": torch.get_num_threads()}
        print(json.dumps({**vars(args), **here, **measure(args, device)}))


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    scorer = scorer_of(args.items, args.dim, device)
    query_BD = torch.randn(args.users, args.dim, device=device)
    target_B = torch.randint(1, args.items + 1, (args.users,), device=device)
    row_S = torch.arange(args.users, device=device).repeat_interleave(args.seen)
    aside = Aside.of(Pairs(row_S, torch.randint(1, args.items + 1, row_S.shape, device=device)))
    tile_rows = max(1, (2**28 if device.type == "cuda" else 2**20) // args.items)

    def scores() -> None:
        for first in range(0, args.users, tile_rows):
            scorer.score(query_BD[first : first + tile_rows], 1, args.items + 1)

    kinds: dict[str, Callable[[], Any]] = {
        "lists": lambda: top_k(scorer, query_BD, args.k, aside),
        "ranks": lambda: target_ranks(scorer, query_BD, target_B, aside),
        "both": lambda: ranks_and_lists(scorer, query_BD, target_B, args.k, aside),
        "scores": scores,
    }
    kinds = {name: kinds[name] for name in args.kinds.split(",")}
    found: dict[str, Any] = timed(kinds, args.rounds, device)
    if "lists" in found:
        found["lists"]["users_per_s"] = round(args.users / found["lists"]["s"])
    if args.select:
        found["select_one_tile"] = select(scorer.score(query_BD[:tile_rows], 1, args.items + 1), args, device)
    checked = Aside.of(aside.exclude.split([0, CHECKED, args.users])[0])
    found["wrong"] = wrong(
        scorer, query_BD[:CHECKED], top_k(scorer, query_BD[:CHECKED], args.k, checked), checked
    )
    return found


def select(score_BJ: Tensor, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Finding the k best of one tile: keys, then the k greatest of them."""
    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: ranking.best_keys_by_groups(score_BJ, 1, args.k).topk(args.k, dim=1),
        "used": lambda: ranking.best_keys(score_BJ, 1, args.k).topk(args.k, dim=1),
        "used_without_topk": lambda: ranking.best_keys(score_BJ, 1, args.k),
    }
    return {"rows": len(score_BJ), **timed(ways, max(5, args.rounds), device)}


def timed(
    kinds: dict[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Seconds of each kind: median, quickest and slowest; and a GPU's peak memory."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    peak: dict[str, float] = {}
    for i in range(rounds + 1):
        for name, run in kinds.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
                peak[name] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            if i:  # the first round sets up libraries
                seconds[name].append(time.perf_counter() - began)
    return {
        name: {
            "s": round(statistics.median(s), 5),
            "spread": [round(min(s), 5), round(max(s), 5)],
            "peak_GiB": peak.get(name),
        }
        for name, s in seconds.items()
    }


def wrong(scorer: ModelScorer, query_BD: Tensor, top: TopK, aside: Aside) -> int:
    """Places of lists whose float64 score is not that of the same place after sorting all float64 scores."""
    exact_BI = query_BD.double() @ scorer.table.block(1, scorer.n_items + 1).double().T
    row_S, item_S = aside.exclude
    is_shown_B1 = top.item_BK > 0
    own_BK = exact_BI.gather(1, (top.item_BK - 1).clamp(min=0)).masked_fill(~is_shown_B1, -torch.inf)
    exact_BI[row_S, item_S - 1] = -torch.inf
    best_BK = exact_BI.topk(top.item_BK.shape[1], dim=1).values
    is_close_BK = torch.isclose(own_BK, best_BK, rtol=1e-5, atol=1e-6)
    return int((~is_close_BK).sum())


def scorer_of(n_items: int, dim: int, device: torch.device) -> ModelScorer:
    config = load_recipe("sasrec", [f"model.dim={dim}"])
    assert isinstance(config, RunConfig)
    return ModelScorer(build_model(config, Catalogue(n_items, dim)).to(device))


if __name__ == "__main__":
    main()
