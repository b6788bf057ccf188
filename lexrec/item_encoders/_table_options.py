"""What an encoder does to token tables before it uses them, in a fixed order."""

from collections.abc import Sequence

from lexrec.item_encoders._comparable import comparable
from lexrec.item_encoders._mltfr_config import MltfrConfig
from lexrec.tokens import transforms
from lexrec.tokens.table import TokenTable

_KEPT = 8
_reduced_before: dict[tuple[str, str, int, int], TokenTable] = {}
"""Reduced tables of this process, newest last: a run in two rounds needs each twice, and on two cores a large
one takes half a minute."""


def prepared_tables(tables: Sequence[TokenTable], config: MltfrConfig) -> list[TokenTable]:
    """Cut, reduce, randomise, centre and scale: cut first, so that statistics are those of what is kept."""
    prepared = []
    for i, table in enumerate(tables):
        if config.max_tokens is not None:
            table = transforms.first(table, config.max_tokens)
        if config.pca is not None:
            table = _reduced(table, config.pca)
        if config.source == "constant":
            table = transforms.first(table, config.k).random_like((config.random_seed or 0) + i)
        elif config.random_seed is not None:
            table = table.random_like(config.random_seed + i)
        prepared.append(comparable(table, centre=config.centre, scale=config.table_scale))
    return prepared


def _reduced(table: TokenTable, width: int) -> TokenTable:
    key = (table.source, table.sha256, table.n_tokens, width)
    if key not in _reduced_before:
        for oldest in list(_reduced_before)[: 1 - _KEPT]:
            del _reduced_before[oldest]
        _reduced_before[key] = transforms.pca(table, width)
    return _reduced_before[key]
