"""A linear layer and what stands around it, one kernel forward and two backward.

    y = onto + drop(W before(x) + b)     before: layer norm, relu, gelu or nothing; onto: a residual, or none

The backward pass makes before(x) and the dropout anew. Its first kernel does both gradients at once: of what
is added to a residual a program takes a strip of rows and some columns of x, and their share of W; after a
norm, which sees whole rows, some programs take a strip of x, others its share of W. The second kernel adds
the strips up, always in the same order. Operands of products are 16-bit, products and sums float32.

Dimension key: N rows, D width in, E width out, S strips of rows, X flat weights, n, d, e: of one tile.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._dropout_triton import drop_below, hashed
from lexrec.kernels._jit import kernel

_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_ROWS, _WIDTH, _WARPS = 64, 64, 4
"""Rows of a tile; columns of a tile, but for a norm, which sees whole rows."""
_WIDEST_NORM, _WIDEST_ADDED = 128, 256
"""Width of x before a norm, and of what is added to a residual, that a tile holds."""
_X_ROWS, _W_ROWS = 64, 64
"""After a norm: rows of a tile of programs that take x (32 of more than 64 columns), and of those that
take W."""
_INPUT_STRIPS, _WEIGHT_STRIPS, _WEIGHT_PROGRAMS = 256, 64, 256
"""Programs at most for the rows of x, for those of one tile of W, for all tiles of W."""


class Plan(NamedTuple):
    """How the gradients of what is added are cut."""

    rows: int
    width: int
    """Rows and columns of x in a tile."""
    n_warps: int
    n_stages: int
    n_programs: int
    """At most, unless x has more tiles of columns."""


_ADDED, _WIDE_ADDED = Plan(64, 64, 4, 2, 528), Plan(32, 32, 4, 2, 528)
"""The second where more than 64 columns are added."""


class Layer(NamedTuple):
    """One linear layer, what comes before its product and what after."""

    weight_ED: Tensor
    bias_E: Tensor
    norm_D: tuple[Tensor, Tensor] | None
    """Scale and shift of a layer norm."""
    eps: float
    activation: str
    """relu, gelu or nothing: "". None with a norm."""
    dropout: float
    dtype: torch.dtype
    """Of operands: 16 bits."""

    @property
    def before(self) -> str:
        return self.activation if self.norm_D is None else "norm"

    @property
    def tile_d(self) -> int:
        whole: int = triton.next_power_of_2(self.weight_ED.shape[1])
        return max(16, whole if self.norm_D is not None else min(whole, _WIDTH))

    @property
    def tile_e(self) -> int:
        whole: int = triton.next_power_of_2(self.weight_ED.shape[0])
        return max(16, min(whole, _WIDTH))


class Gradients(NamedTuple):
    """Of a layer's input and weights; None: of a norm that is not there."""

    x_ND: Tensor
    weight_ED: Tensor
    bias_E: Tensor
    norm_D: tuple[Tensor, Tensor] | None


def norms(width: int) -> bool:
    """True where rows of this width can be normed here."""
    return width <= _WIDEST_NORM


def adds(width: int) -> bool:
    """True where rows of this width can be added to a residual here."""
    return width <= _WIDEST_ADDED


def forward(x_ND: Tensor, layer: Layer, onto_NE: Tensor | None, seed_1: Tensor | None) -> Tensor:
    """y, [N, E]: float32 if it is added to something, else of the layer's type."""
    x_ND, onto_NE = x_ND.contiguous(), None if onto_NE is None else onto_NE.contiguous()
    (N, D), E = x_ND.shape, len(layer.weight_ED)
    dtype = layer.dtype if onto_NE is None else torch.float32
    y_NE = x_ND.new_empty(N, E, dtype=dtype)
    scale_D, shift_D = layer.norm_D or (x_ND, x_ND)
    _forward[(triton.cdiv(N, _ROWS), triton.cdiv(E, layer.tile_e))](
        x_ND, scale_D, shift_D, layer.weight_ED, layer.bias_E,
        x_ND if onto_NE is None else onto_NE, x_ND if seed_1 is None else seed_1, y_NE,
        N, layer.eps, layer.dropout, drop_below(layer.dropout),
        D, E, layer.before, onto_NE is not None, layer.dropout > 0, _TYPES[layer.dtype],
        _ROWS, layer.tile_d, layer.tile_e, num_warps=_WARPS,
    )  # fmt: skip
    return y_NE


def normed_gradients(grad_NE: Tensor, x_ND: Tensor, layer: Layer, beside_ND: Tensor | None) -> Gradients:
    """Of a layer after a norm; `beside` is a gradient of x from elsewhere, to be added to it."""
    assert layer.norm_D is not None
    grad_NE, x_ND = grad_NE.contiguous(), x_ND.contiguous()
    beside_ND = None if beside_ND is None else beside_ND.contiguous()
    (N, D), E = x_ND.shape, len(layer.weight_ED)
    n_e = triton.cdiv(E, layer.tile_e)
    x_rows = _X_ROWS if layer.tile_d <= _WIDTH else min(_X_ROWS, 32)
    n_x = min(max(1, triton.cdiv(N, x_rows)), _INPUT_STRIPS)
    n_w = min(max(1, triton.cdiv(N, _W_ROWS)), _WEIGHT_STRIPS, max(1, _WEIGHT_PROGRAMS // n_e))
    of_x_ND = torch.empty_like(x_ND)
    part = x_ND.new_empty(n_w * (E * D + E) + n_x * 2 * D, dtype=torch.float32)
    beside = x_ND if beside_ND is None else beside_ND
    _normed_gradients[(n_x + n_w * n_e,)](
        grad_NE, x_ND, *layer.norm_D, layer.weight_ED, beside, of_x_ND, part, N, layer.eps, n_x, n_w,
        D, E, beside_ND is not None, _TYPES[layer.dtype],
        x_rows, _W_ROWS, layer.tile_d, layer.tile_e, num_warps=_WARPS,
    )  # fmt: skip
    of_weight_ED, of_bias_E, of_norm_2D = _sum_up(part, (n_w, n_x), (E, D), 2 * D)
    return Gradients(of_x_ND, of_weight_ED, of_bias_E, (of_norm_2D[:D], of_norm_2D[D:]))


def added_gradients(grad_NE: Tensor, x_ND: Tensor, layer: Layer, seed_1: Tensor | None) -> Gradients:
    """Of a layer that is added to a residual, whose own gradient is `grad`."""
    grad_NE, x_ND = grad_NE.contiguous(), x_ND.contiguous()
    (N, D), E = x_ND.shape, len(layer.weight_ED)
    tile_e = max(16, triton.next_power_of_2(E))
    plan = _ADDED if tile_e <= 64 else _WIDE_ADDED
    tile_d = min(max(16, triton.next_power_of_2(D)), plan.width)
    n_d = triton.cdiv(D, tile_d)
    n_strips = min(max(1, triton.cdiv(N, plan.rows)), max(1, plan.n_programs // n_d))
    of_x_ND = torch.empty_like(x_ND)
    part = x_ND.new_empty(n_strips * (E * D + E), dtype=torch.float32)
    _added_gradients[(n_strips, n_d)](
        grad_NE, x_ND, layer.weight_ED, x_ND if seed_1 is None else seed_1, of_x_ND, part,
        N, layer.dropout, drop_below(layer.dropout),
        D, E, layer.activation, layer.dropout > 0, _TYPES[layer.dtype],
        plan.rows, tile_d, tile_e, num_warps=plan.n_warps, num_stages=plan.n_stages,
    )  # fmt: skip
    of_weight_ED, of_bias_E, _ = _sum_up(part, (n_strips, 0), (E, D), 0)
    return Gradients(of_x_ND, of_weight_ED, of_bias_E, None)


def _sum_up(
    part: Tensor, n_strips: tuple[int, int], shape: tuple[int, int], n_norm: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the strips: [E, D], [E], and of the norm's [n_norm]."""
    E, D = shape
    n_flat = E * D + E
    total_X = part.new_empty(n_flat + n_norm)
    n_blocks = triton.cdiv(n_flat, 64) + triton.cdiv(n_norm, 64)
    _summed[(n_blocks,)](part, total_X, n_strips[0], n_flat, n_strips[1], n_norm, 32, 64)
    return total_X[: E * D].view(E, D), total_X[E * D : n_flat], total_X[n_flat:]


@kernel
def _rows(pointer, n, d, N, D):
    """Rows `n` of a [N, D] array as float32, zero beyond its ends."""
    is_in_nd = (n < N)[:, None] & (d < D)[None, :]
    at_nd = n[:, None].to(tl.int64) * D + d[None, :]
    return tl.load(pointer + at_nd, mask=is_in_nd, other=0.0).to(tl.float32)


@kernel
def _unit(x_nd, d, D, eps):
    """Rows with mean 0 and variance 1, zero beyond their ends, and what they were multiplied by."""
    centred_nd = tl.where((d < D)[None, :], x_nd - (tl.sum(x_nd, 1) / D)[:, None], 0.0)
    factor_n = 1 / tl.sqrt(tl.sum(centred_nd * centred_nd, 1) / D + eps)
    return centred_nd * factor_n[:, None], factor_n


@kernel
def _before(x_nd, scale, shift, d, D, eps, BEFORE: tl.constexpr):
    if BEFORE == "norm":
        unit_nd, _ = _unit(x_nd, d, D, eps)
        scale_d = tl.load(scale + d, mask=d < D, other=0.0)
        x_nd = unit_nd * scale_d[None, :] + tl.load(shift + d, mask=d < D, other=0.0)[None, :]
    elif BEFORE == "relu":
        x_nd = tl.maximum(x_nd, 0.0)
    elif BEFORE == "gelu":
        x_nd = x_nd * _normal_cdf(x_nd)
    return x_nd


@kernel
def _normal_cdf(x):
    return 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)


@kernel
def _dropped(y_ne, n, e, E, seed, dropout, threshold):
    place_ne = n[:, None].to(tl.uint32) * E + e[None, :].to(tl.uint32)
    return tl.where(hashed(place_ne, tl.load(seed)) >= threshold, y_ne / (1 - dropout), 0.0)


@kernel
def _forward(
    x, scale, shift, weight, bias, onto, seed, out, N, eps, dropout, threshold,
    D: tl.constexpr, E: tl.constexpr,
    BEFORE: tl.constexpr, HAS_ONTO: tl.constexpr, DROPS: tl.constexpr, TYPE: tl.constexpr,
    ROWS: tl.constexpr, TILE_D: tl.constexpr, TILE_E: tl.constexpr,
):  # fmt: skip
    n, e = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * TILE_E + tl.arange(0, TILE_E)
    y_ne = tl.zeros([ROWS, TILE_E], tl.float32)
    for first in range(0, D, TILE_D):
        d = first + tl.arange(0, TILE_D)
        x_nd = _before(_rows(x, n, d, N, D), scale, shift, d, D, eps, BEFORE).to(TYPE)
        y_ne = tl.dot(x_nd, tl.trans(_rows(weight, e, d, E, D).to(TYPE)), y_ne)
    y_ne += tl.load(bias + e, mask=e < E, other=0.0)[None, :]
    if DROPS:
        y_ne = _dropped(y_ne, n, e, E, seed, dropout, threshold)
    if HAS_ONTO:
        y_ne += _rows(onto, n, e, N, E)
    at_ne = n[:, None].to(tl.int64) * E + e[None, :]
    tl.store(out + at_ne, y_ne, mask=(n < N)[:, None] & (e < E)[None, :])


@kernel
def _added_gradients(
    grad, x, weight, seed, of_x, part, N, dropout, threshold,
    D: tl.constexpr, E: tl.constexpr,
    BEFORE: tl.constexpr, DROPS: tl.constexpr, TYPE: tl.constexpr,
    ROWS: tl.constexpr, TILE_D: tl.constexpr, TILE_E: tl.constexpr,
):  # fmt: skip
    """Of a strip of rows, some columns of x and of W."""
    strip, n_strips = tl.program_id(0), tl.num_programs(0)
    d, e = tl.program_id(1) * TILE_D + tl.arange(0, TILE_D), tl.arange(0, TILE_E)
    weight_ed = _rows(weight, e, d, E, D).to(TYPE)
    of_weight_ed, of_bias_e = tl.zeros([TILE_E, TILE_D], tl.float32), tl.zeros([TILE_E], tl.float32)
    for start in range(strip * ROWS, N, n_strips * ROWS):
        n = start + tl.arange(0, ROWS)
        x_nd, grad_ne = _rows(x, n, d, N, D), _rows(grad, n, e, N, E)
        if DROPS:
            grad_ne = _dropped(grad_ne, n, e, E, seed, dropout, threshold)
        of_bias_e += tl.sum(grad_ne, 0)
        of_x_nd = tl.dot(grad_ne.to(TYPE), weight_ed)
        if BEFORE == "relu":
            of_x_nd = tl.where(x_nd > 0, of_x_nd, 0.0)
            x_nd = tl.maximum(x_nd, 0.0)
        elif BEFORE == "gelu":
            cdf_nd = _normal_cdf(x_nd)
            of_x_nd *= cdf_nd + x_nd * tl.exp(-0.5 * x_nd * x_nd) * 0.3989422804014327
            x_nd *= cdf_nd
        of_weight_ed = tl.dot(tl.trans(grad_ne.to(TYPE)), x_nd.to(TYPE), of_weight_ed)
        at_nd = n[:, None].to(tl.int64) * D + d[None, :]
        tl.store(of_x + at_nd, of_x_nd, mask=(n < N)[:, None] & (d < D)[None, :])
    part += strip * (E * D + E)
    tl.store(part + e[:, None] * D + d[None, :], of_weight_ed, mask=(e < E)[:, None] & (d < D)[None, :])
    if tl.program_id(1) == 0:
        tl.store(part + E * D + e, of_bias_e, mask=e < E)


@kernel
def _normed_gradients(
    grad, x, scale, shift, weight, beside, of_x, part, N, eps, n_x, n_w,
    D: tl.constexpr, E: tl.constexpr, HAS_BESIDE: tl.constexpr, TYPE: tl.constexpr,
    X_ROWS: tl.constexpr, W_ROWS: tl.constexpr, TILE_D: tl.constexpr, TILE_E: tl.constexpr,
):  # fmt: skip
    n_e = tl.cdiv(E, TILE_E)
    at = tl.program_id(0) - n_x
    if at < 0:
        strip = tl.program_id(0)
        part += n_w * (E * D + E) + strip * 2 * D
        _of_x(
            grad, x, scale, weight, beside, of_x, part, strip, n_x,
            N, eps, D, E, HAS_BESIDE, TYPE, X_ROWS, TILE_D, TILE_E,
        )  # fmt: skip
    else:
        strip = at // n_e
        part += strip * (E * D + E)
        _of_weight(
            grad, x, scale, shift, part, strip, n_w, at % n_e * TILE_E,
            N, eps, D, E, TYPE, W_ROWS, TILE_D, TILE_E,
        )  # fmt: skip


@kernel
def _of_x(
    grad, x, scale, weight, beside, of_x, part, strip, n_strips, N, eps,
    D: tl.constexpr, E: tl.constexpr, HAS_BESIDE: tl.constexpr, TYPE: tl.constexpr,
    ROWS: tl.constexpr, TILE_D: tl.constexpr, TILE_E: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, TILE_D)
    scale_d = tl.load(scale + d, mask=d < D, other=0.0)
    of_scale_d, of_shift_d = tl.zeros([TILE_D], tl.float32), tl.zeros([TILE_D], tl.float32)
    for start in range(strip * ROWS, N, n_strips * ROWS):
        n = start + tl.arange(0, ROWS)
        of_normed_nd = tl.zeros([ROWS, TILE_D], tl.float32)
        for first in range(0, E, TILE_E):
            e = first + tl.arange(0, TILE_E)
            grad_ne, weight_ed = _rows(grad, n, e, N, E).to(TYPE), _rows(weight, e, d, E, D).to(TYPE)
            of_normed_nd = tl.dot(grad_ne, weight_ed, of_normed_nd)
        unit_nd, factor_n = _unit(_rows(x, n, d, N, D), d, D, eps)
        of_scale_d += tl.sum(of_normed_nd * unit_nd, 0)
        of_shift_d += tl.sum(of_normed_nd, 0)
        of_unit_nd = of_normed_nd * scale_d[None, :]
        along_n, mean_n = tl.sum(of_unit_nd * unit_nd, 1) / D, tl.sum(of_unit_nd, 1) / D
        of_x_nd = (of_unit_nd - mean_n[:, None] - unit_nd * along_n[:, None]) * factor_n[:, None]
        if HAS_BESIDE:
            of_x_nd += _rows(beside, n, d, N, D)
        at_nd = n[:, None].to(tl.int64) * D + d[None, :]
        tl.store(of_x + at_nd, of_x_nd, mask=(n < N)[:, None] & (d < D)[None, :])
    tl.store(part + d, of_scale_d, mask=d < D)
    tl.store(part + D + d, of_shift_d, mask=d < D)


@kernel
def _of_weight(
    grad, x, scale, shift, part, strip, n_strips, first_e, N, eps,
    D: tl.constexpr, E: tl.constexpr, TYPE: tl.constexpr,
    ROWS: tl.constexpr, TILE_D: tl.constexpr, TILE_E: tl.constexpr,
):  # fmt: skip
    d, e = tl.arange(0, TILE_D), first_e + tl.arange(0, TILE_E)
    of_weight_ed, of_bias_e = tl.zeros([TILE_E, TILE_D], tl.float32), tl.zeros([TILE_E], tl.float32)
    for start in range(strip * ROWS, N, n_strips * ROWS):
        n = start + tl.arange(0, ROWS)
        grad_ne = _rows(grad, n, e, N, E)
        normed_nd = _before(_rows(x, n, d, N, D), scale, shift, d, D, eps, "norm")
        of_weight_ed = tl.dot(tl.trans(grad_ne.to(TYPE)), normed_nd.to(TYPE), of_weight_ed)
        of_bias_e += tl.sum(grad_ne, 0)
    tl.store(part + e[:, None] * D + d[None, :], of_weight_ed, mask=(e < E)[:, None] & (d < D)[None, :])
    tl.store(part + E * D + e, of_bias_e, mask=e < E)


@kernel
def _summed(part, out, n_strips, X, n_norm_strips, X_NORM, TILE_S: tl.constexpr, TILE_X: tl.constexpr):
    """Sums of two stacks of strips, one after the other: weight and bias, then the norm's."""
    block, n_blocks = tl.program_id(0), tl.cdiv(X, TILE_X)
    is_norm = block >= n_blocks
    S, width = tl.where(is_norm, n_norm_strips, n_strips), tl.where(is_norm, X_NORM, X)
    x = tl.where(is_norm, block - n_blocks, block) * TILE_X + tl.arange(0, TILE_X)
    part += tl.where(is_norm, n_strips * X, 0)
    sum_x = tl.zeros([TILE_X], tl.float32)
    for first in range(0, S, TILE_S):
        s = first + tl.arange(0, TILE_S)
        at_sx = s[:, None].to(tl.int64) * width + x[None, :]
        sum_x += tl.sum(tl.load(part + at_sx, mask=(s < S)[:, None] & (x < width)[None, :], other=0.0), 0)
    tl.store(out + tl.where(is_norm, X, 0) + x, sum_x, mask=x < width)
