"""lexrec: next-item recommendation that brings in what language models know.

    import lexrec
    lexrec.prepare(events, user="user_id", item="item_id", time="timestamp", out="data/shop")
    lexrec.train("sasrec", data="data/shop", out="runs/a")
    lexrec.evaluate("runs/a", split="test")
    lexrec.Recommender.load("runs/a").recommend([["B004756YJA", "B004ZT0SSG"]], k=10)

Nothing heavy is imported until it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lexrec.data.dataset import Dataset as Dataset

__version__ = "0.1.0"

_PUBLIC = {
    "Dataset": "lexrec.data.dataset",
    "prepare": "lexrec.data.prepare",
    "TokenTable": "lexrec.tokens.table",
    "load_table": "lexrec.tokens.catalogue",
    "train": "lexrec.training.train",
    "evaluate": "lexrec.training.evaluate_run",
    "sweep": "lexrec.compare.sweep",
    "SweepConfig": "lexrec.compare.sweep",
    "EvaluationConfig": "lexrec.evaluation.evaluate",
    "compare": "lexrec.compare.compare",
    "CompareConfig": "lexrec.compare.settings",
    "Recommender": "lexrec.serving.recommender",
    "Session": "lexrec.serving.session",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lexrec' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
