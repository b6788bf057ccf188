"""What the neurons of feed-forward layers write: items or text, and of items, one kind or many.

A feed-forward layer is a memory of keys and values (Geva et al. 2021, https://arxiv.org/abs/2012.14913): each
neuron adds its value vector w, a column of the layer's last map, to the state. IDIOMoE
(https://arxiv.org/abs/2510.05125) compares value vectors with the rows of both vocabularies:

    affinity  a(w) = med_k cos(w, item rows) - med_k cos(w, text rows)      med_k: median of the k largest
    purity    p(w) = largest share of one category among the k items nearest to w
    clustered        p(w) >= tau

Not in the paper's text that is public, hence ours: the median of an even number is the mean of the middle
two; an item without a category takes one of the k places and is of no category; text rows are those of the
language model's input table.

Dimension key: N neurons, W width, J rows of one block, K nearest rows, I items.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.errors import ConfigError
from lexrec.lm.loading import LanguageModel

_COSINES_AT_ONCE = 2**24
"""64 MiB of them; a table of 262,000 rows beside 9,000 neurons goes through in pieces."""

UNKNOWN = -1
"""Category of an item that has none."""


class Values(NamedTuple):
    """The value vectors of one expert of one layer."""

    layer: int
    expert: str
    """What the adapter calls it: item, text, new.0 ...; "all" where every token passes one part."""
    value_NW: Tensor


@dataclass(frozen=True)
class Rows:
    """A table of vectors, handed out block by block."""

    n: int
    take: Callable[[int, int], Tensor]
    """take(first, last): rows first..last-1, [last - first, W]."""

    @staticmethod
    def of(table_RW: Tensor) -> "Rows":
        """Rows of a tensor."""
        return Rows(len(table_RW), lambda first, last: table_RW[first:last])


class Neurons(NamedTuple):
    """What is known of each neuron, on the CPU."""

    affinity_N: Tensor
    purity_N: Tensor
    category_N: Tensor
    """int64 code of the category that purity counts; UNKNOWN where no near item has one."""


def value_vectors(lm: LanguageModel) -> Iterator[Values]:
    """The value vectors of every feed-forward part, layer by layer, as the adapter left them."""
    for number, layer in enumerate(lm.layers):
        for name, part in layer.named_modules():
            down = _last_map(part, lm.width)
            if down is not None:
                yield Values(number, name.partition(".")[2] or "all", _columns(down))


@torch.no_grad()
def read_neurons(
    value_NW: Tensor, items: Rows, texts: Rows, category_I: Tensor | None, k: int = 20
) -> Neurons:
    """Affinity and purity of value vectors.

    Args:
        value_NW: value vectors.
        items: item rows, item index 1 first.
        texts: text rows.
        category_I: int64 category of each item row, UNKNOWN where it has none; None: purity is nan.
        k: rows compared.

    Raises:
        ConfigError: there are fewer than k rows of either kind.
    """
    if not 1 <= k <= min(items.n, texts.n):
        most = min(items.n, texts.n)
        raise ConfigError(f"k={k} nearest of {items.n:,} items and {texts.n:,} tokens; give 1 to {most}")
    item_cosine_NK, item_NK = nearest(value_NW, items, k)
    text_cosine_NK, _ = nearest(value_NW, texts, k)
    affinity_N = _median(item_cosine_NK) - _median(text_cosine_NK)
    if category_I is None:
        unknown_N = torch.full((len(value_NW),), UNKNOWN)
        return Neurons(affinity_N.cpu(), torch.full_like(affinity_N, torch.nan).cpu(), unknown_N)
    purity_N, category_N = _purity(category_I.to(item_NK.device)[item_NK])
    return Neurons(affinity_N.cpu(), purity_N.cpu(), category_N.cpu())


def nearest(value_NW: Tensor, table: Rows, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and places of the k rows nearest to each value vector, nearest first, [N, K]."""
    value_NW = F.normalize(value_NW.float(), dim=-1)
    n_rows = max(k, _COSINES_AT_ONCE // max(len(value_NW), 1))
    best_NK = value_NW.new_zeros(len(value_NW), 0)
    place_NK = best_NK.long()
    for first in range(0, table.n, n_rows):
        row_JW = F.normalize(table.take(first, min(first + n_rows, table.n)).float(), dim=-1)
        top = (value_NW @ row_JW.T).topk(min(k, len(row_JW)))
        both = torch.cat([best_NK, top.values], 1), torch.cat([place_NK, top.indices + first], 1)
        best_NK, order_NK = both[0].topk(min(k, both[0].shape[1]))
        place_NK = both[1].gather(1, order_NK)
    return best_NK, place_NK


def _median(sorted_NK: Tensor) -> Tensor:
    k = sorted_NK.shape[1]
    return (sorted_NK[:, (k - 1) // 2] + sorted_NK[:, k // 2]) / 2


def _purity(category_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Largest share of one category in each row, and which one; the nearest item's, of several as large."""
    is_same_NKK = (category_NK[:, :, None] == category_NK[:, None, :]) & (category_NK != UNKNOWN)[:, None, :]
    count_NK = is_same_NKK.sum(-1)
    most_N = count_NK.max(1).values
    # argmax does not promise the first of equals.
    first_N = (count_NK == most_N[:, None]).int().argmax(1)
    return most_N / category_NK.shape[1], category_NK.gather(1, first_N[:, None])[:, 0]


def _last_map(part: nn.Module, width: int) -> Any:
    """The last linear map of a feed-forward part; None where `part` is something else.

    One or two maps lead up to the inner width, one back; an attention has three that read states, or maps of
    unlike widths.
    """
    maps: list[Any] = [one for one in part.children() if _is_map(one)]
    down = [one for one in maps if one.out_features == width]
    up = [one for one in maps if one.in_features == width and one is not down[-1]] if down else []
    if len(down) != 1 or len(up) not in (1, 2) or len(maps) != len(up) + 1:
        return None
    inner = down[0].in_features
    # Gate and up are one matrix in some families.
    widths = {one.out_features for one in up}
    return down[0] if widths == {inner} or (len(up) == 1 and widths == {2 * inner}) else None


def _is_map(part: nn.Module) -> bool:
    """True of a linear map, and of what peft puts in its place."""
    return isinstance(getattr(part, "in_features", None), int) and hasattr(part, "out_features")


@torch.no_grad()
def _columns(down: Any) -> Tensor:
    """Value vectors [N, W] of a map; of peft's, what it answers to each neuron alone, its update included."""
    if isinstance(down, nn.Linear):
        return down.weight.T.float()
    weight = down.base_layer.weight
    one_NN = torch.eye(down.in_features, device=weight.device, dtype=weight.dtype)
    updated_NW: Tensor = down(one_NN) - down(torch.zeros_like(one_NN[:1]))
    return updated_NW.float()
