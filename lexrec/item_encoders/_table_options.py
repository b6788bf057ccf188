"""What an encoder does to token tables before it uses them, in a fixed order."""

from collections.abc import Sequence

from lexrec.item_encoders._mltfr_config import MltfrConfig
from lexrec.tokens import transforms
from lexrec.tokens.table import TokenTable


def prepared_tables(tables: Sequence[TokenTable], config: MltfrConfig) -> list[TokenTable]:
    """Cut, randomise, centre and scale: cut first, so that statistics are those of the tokens kept."""
    prepared = []
    for i, table in enumerate(tables):
        if config.max_tokens is not None:
            table = transforms.first(table, config.max_tokens)
        if config.random_seed is not None:
            table = table.random_like(config.random_seed + i)
        if config.centre:
            table = transforms.centred(table)
        if config.table_scale != "raw":
            table = transforms.scaled(table)
        if config.table_scale == "unit":
            table = table.with_weight(table.weight_VW * table.width**-0.5)
        prepared.append(table)
    return prepared
