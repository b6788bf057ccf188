"""Token tables of one scale, though the models they come from differ by two orders of magnitude."""

from typing import Literal

from lexrec.tokens import transforms
from lexrec.tokens.table import TokenTable

TableScale = Literal["unit", "rms", "raw"]


def comparable(table: TokenTable, *, centre: bool, scale: TableScale) -> TokenTable:
    """A table as encoders use it.

    Args:
        table: as it was read, or noise in its place.
        centre: remove its mean vector.
        scale: as a whole, so that a row's norm is about 1 (unit) or its entries' size is (rms); raw: not.
    """
    if centre:
        table = transforms.centred(table)
    if scale != "raw":
        table = transforms.scaled(table)
    if scale == "unit":
        table = table.with_weight(table.weight_VW * table.width**-0.5)
    return table
