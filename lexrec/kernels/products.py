"""Products at inference on a CPU, by oneDNN: of float32, and of 8 bits (`ByteProducts`).

PyTorch gives float32 products to MKL and only those of 16 bits to oneDNN. On processors of other makers than
MKL's own that costs more than half of the speed: 107 against 250 GFLOP/s on a core of an EPYC with AVX-512.
TorchInductor calls oneDNN for float32 by the operator used here, which has no gradient.

Dimension key: N rows, D width in, E width out.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels.gpu import is_transformed

_FEWEST = 2**20
"""Multiplications below which beginning costs oneDNN more than it saves."""
_ALIKE, _STRIP = 2, 4
"""Rows from which on a product's bits depend on nothing but its row by oneDNN; by others, those of a strip:
on several threads they round the end of a short one differently."""

_MOST, _SHIFT = 255, 128
"""The largest number of 8 bits, and what numbers without a sign are more than those with one."""
_MOST_LAID_OUT = 2**24
"""Numbers of a table up to which a second copy, laid out for oneDNN, is kept: 64 MiB."""


def product(x_ND: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """`F.linear`, [..., N, E]: a new tensor, its sums in float32 in whichever order is the fastest."""
    if x_ND.numel() * len(weight_ED) < _FEWEST or not _is_served(x_ND, weight_ED):
        return F.linear(x_ND, weight_ED, bias_E)
    y_NE = _multiplied(x_ND.flatten(0, -2), weight_ED, bias_E)
    return y_NE.view(*x_ND.shape[:-1], -1)


class ScoredRows:
    """Rows that queries are multiplied by, such that equal rows have equal products wherever they stand.

    For few queries libraries take kernels that round the end of a row differently. Such queries are
    multiplied beside copies of themselves.

    Args:
        row_ED: float32, and none of them changes later.
    """

    def __init__(self, row_ED: Tensor) -> None:
        self.row_ED = row_ED
        self._laid_out_ED: Tensor | None = None
        is_large = _ALIKE * row_ED.numel() >= _FEWEST
        with torch.no_grad():
            if is_large and row_ED.numel() <= _MOST_LAID_OUT and _is_served(row_ED, row_ED):
                self._laid_out_ED = torch.ops.mkldnn._reorder_linear_weight(row_ED)

    def scores(self, x_ND: Tensor, first: int, last: int) -> Tensor:
        """Products with rows first..last-1, a new tensor without gradient, [N, last - first]."""
        n_rows, is_whole = len(x_ND), last - first == len(self.row_ED)
        row_JD = self.row_ED[first:last]
        is_large = _ALIKE * row_JD.numel() >= _FEWEST and _is_served(x_ND, row_JD)
        n_alike = max(n_rows, _ALIKE) if is_large else -(-n_rows // _STRIP) * _STRIP
        if 0 < n_rows < n_alike:
            x_ND = x_ND[torch.arange(n_alike, device=x_ND.device) % n_rows]
        if is_large and is_whole and self._laid_out_ED is not None and n_rows:
            return _multiplied(x_ND, self._laid_out_ED, None)[:n_rows]
        return product(x_ND, row_JD)[:n_rows]


def _multiplied(x_ND: Tensor, weight_ED: Tensor, bias_E: Tensor | None) -> Tensor:
    """The product by oneDNN, [N, E]."""
    n_rows = len(x_ND)
    n_padded = _round(n_rows)
    given_ND = x_ND
    if n_padded != n_rows:
        given_ND = x_ND.new_empty(n_padded, x_ND.shape[1])
        given_ND[:n_rows] = x_ND
    y_NE: Tensor = torch.ops.mkldnn._linear_pointwise(given_ND, weight_ED, bias_E, "none", [], "")
    return y_NE[:n_rows]


def _round(n: int) -> int:
    """The next of 1 to 8, 10, 12, 14, 16 ...: oneDNN compiles each shape and keeps half a megabyte of it."""
    step = 1 << max(0, (n - 1).bit_length() - 3)
    return -(-n // step) * step


def _is_served(x_ND: Tensor, weight_ED: Tensor) -> bool:
    return (
        x_ND.is_cpu
        and x_ND.dtype == weight_ED.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and _has_operator()
        and not torch.compiler.is_compiling()
        and not is_transformed()
    )


@cache
def _has_operator() -> bool:
    """True if this PyTorch has the operators; they are no public interface."""
    try:
        return bool(torch.ops.mkldnn._linear_pointwise and torch.ops.mkldnn._reorder_linear_weight)
    except AttributeError:
        return False


class ByteProducts:
    """Products of whole numbers of 8 bits with rows that stay, rounded to 8 bits themselves.

    What is multiplied and added up is exact in between. The operator is TorchInductor's here too; it writes a
    quarter of the bytes that exact products have. Without it those are made first.

    Args:
        row_ED: int8, none below -127.
        unit: what a product of 1 is worth.
    """

    def __init__(self, row_ED: Tensor, unit: float) -> None:
        self.unit = unit
        self._is_laid_out = _multiplies_bytes()
        self._row_ED = _laid_out(row_ED) if self._is_laid_out else row_ED

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Products times the unit, what is below 0 as 0 and above 255 as 255, uint8 [N, E].

        Args:
            x_ND: whole numbers from -127 to 127, in float32.
        """
        if self._is_laid_out:
            return _byte_products(x_ND, self._row_ED, self.unit)
        sum_NE = torch._int_mm(x_ND.to(torch.int8), self._row_ED.T)
        return (sum_NE * self.unit).round_().clamp_(0, _MOST).to(torch.uint8)


def _laid_out(row_ED: Tensor) -> Tensor:
    laid_out_ED: Tensor = torch.ops.onednn.qlinear_prepack(row_ED, [_STRIP, row_ED.shape[1]])
    return laid_out_ED


def _byte_products(x_ND: Tensor, laid_out_ED: Tensor, unit: float) -> Tensor:
    """By oneDNN, whose numbers on the left have no sign: they are shifted; it takes off what that adds."""
    given = (x_ND + _SHIFT).to(torch.uint8), unit, _SHIFT
    rows = laid_out_ED, torch.ones(1), torch.zeros(1, dtype=torch.int64)
    y_NE: Tensor = torch.ops.onednn.qlinear_pointwise(
        *given, *rows, None, 1.0, 0, torch.uint8, "none", [], ""
    )
    return y_NE


@cache
def _multiplies_bytes() -> bool:
    """True if this PyTorch has the operators, and this processor adds up the largest numbers exactly."""
    largest_ED = torch.full((_STRIP, 64), 127)
    try:
        y_NE = _byte_products(largest_ED.float(), _laid_out(largest_ED.to(torch.int8)), 1 / 127**2)
    except (AttributeError, RuntimeError):
        return False
    # Without instructions for it, sums of two end at 2**15.
    return bool((y_NE == largest_ED.shape[1]).all())
