"""float32 products at inference on a CPU, by oneDNN.

PyTorch gives float32 products to MKL and only those of 16 bits to oneDNN. On processors of other makers than
MKL's own that costs more than half of the speed: 107 against 250 GFLOP/s on a core of an EPYC with AVX-512.
TorchInductor calls oneDNN for float32 by the operator used here, which has no gradient.

Dimension key: N rows, D width in, E width out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels.gpu import is_transformed

_FEWEST = 2**20
"""Multiplications below which beginning costs oneDNN more than it saves."""
_ALIKE, _ALIKE_ELSEWHERE = 2, 4
"""Rows from which on a product's bits depend on nothing but its row, by oneDNN and by others."""


def product(x_ND: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """`F.linear`, [..., N, E]: a new tensor, its sums in float32 in whichever order is the fastest."""
    if x_ND.numel() * len(weight_ED) < _FEWEST or not _is_served(x_ND, weight_ED):
        return F.linear(x_ND, weight_ED, bias_E)
    given_ND = x_ND.flatten(0, -2)
    n_rows = len(given_ND)
    n_padded = _round(n_rows)
    if n_padded != n_rows:
        given_ND = x_ND.new_empty(n_padded, x_ND.shape[-1])
        given_ND[:n_rows] = x_ND.flatten(0, -2)
    y_NE: Tensor = torch.ops.mkldnn._linear_pointwise(given_ND, weight_ED, bias_E, "none", [], "")
    return y_NE[:n_rows].view(*x_ND.shape[:-1], -1)


def scores(x_ND: Tensor, weight_ED: Tensor) -> Tensor:
    """Products whose bits depend neither on where they stand nor on the number of rows, [N, E].

    For few rows libraries take kernels that round the end of a row differently. Such rows are multiplied
    beside copies of themselves.
    """
    n_rows = len(x_ND)
    is_large = _ALIKE * weight_ED.numel() >= _FEWEST and _is_served(x_ND, weight_ED)
    n_least = _ALIKE if is_large else _ALIKE_ELSEWHERE
    if n_rows >= n_least or n_rows == 0:
        return product(x_ND, weight_ED)
    return product(x_ND.repeat(-(-n_least // n_rows), 1), weight_ED)[:n_rows]


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
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and not torch.compiler.is_compiling()
        and not is_transformed()
    )
