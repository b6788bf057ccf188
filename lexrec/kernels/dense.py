"""Linear layers, layer norms and dropout of a training step in 16 bits on a GPU; elsewhere PyTorch's own.

These layers are narrow and their inputs long: [N, 64] with N in the tens of thousands. What stands around a
product (norm, activation, bias, dropout, residual, casts) takes several times as long as the product if each
is a kernel; `normed_linear` and `added_linear` are one kernel forward and two backward (`_linear_triton.py`).
Where a layer or norm stands alone, sums over N are what is slow: a hundred programs each sum a strip of rows,
and a second kernel sums the strips, always in the same order.

Dimension key: N rows, D width in, E width out.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels._training import trains_in_16_bits
from lexrec.kernels.products import product

Activation = Literal["", "relu", "gelu"]


class Norm(NamedTuple):
    """A layer norm over rows."""

    scale_D: Tensor
    shift_D: Tensor
    eps: float


def normed_linear(
    x_ND: Tensor, norm: Norm, weight_ED: Tensor, bias_E: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`linear(layer_norm(x))`, and x itself: who reads x from here adds its gradient in the same kernel.

    Under autocast the norm's result has its 16 bits.
    """
    if bias_E is None or not trains_in_16_bits(x_ND) or not _norms(x_ND.shape[1]):
        normed_ND = layer_norm(x_ND, *norm, narrow=True)
        return linear(normed_ND, weight_ED, bias_E), x_ND
    form = norm.eps, "", 0.0, torch.get_autocast_dtype("cuda")
    y_NE, same_ND = _NormedLinear.apply(x_ND, *norm[:2], weight_ED, bias_E, form)  # type: ignore[no-untyped-call]
    return y_NE, same_ND


def added_linear(
    x_ND: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor | None,
    onto_NE: Tensor | None,
    dropout: float,
    activation: Activation = "",
) -> Tensor:
    """`onto + drop(linear(activation(x)))`, [N, E] in the type of `onto`, or of `linear` where that is None.

    Args:
        x_ND: what the layer reads, before the activation.
        weight_ED: weights.
        bias_E: bias.
        onto_NE: the residual; None: nothing is added.
        dropout: share of the layer's outputs that is dropped; 0 where nothing is trained.
        activation: of x; none by default.
    """
    is_served = trains_in_16_bits(x_ND) and (onto_NE is None or onto_NE.dtype == torch.float32)
    if bias_E is None or not is_served or not _adds(len(weight_ED)):
        added_NE = linear(activated(x_ND, activation), weight_ED, bias_E)
        added_NE = drop(added_NE, dropout) if dropout else added_NE
        return added_NE if onto_NE is None else onto_NE + added_NE
    form = 0.0, activation, dropout, torch.get_autocast_dtype("cuda")
    y_NE: Tensor = _AddedLinear.apply(x_ND, weight_ED, bias_E, onto_NE, form)  # type: ignore[no-untyped-call]
    return y_NE


def activated(x: Tensor, activation: Activation) -> Tensor:
    """relu(x), gelu(x) or x."""
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x) if activation == "gelu" else x


def linear(x_ND: Tensor, weight_ED: Tensor, bias_E: Tensor | None) -> Tensor:
    """`F.linear`, [N, E]."""
    if not torch.is_grad_enabled():
        return product(x_ND, weight_ED, bias_E)
    if bias_E is None or not trains_in_16_bits(x_ND):
        return F.linear(x_ND, weight_ED, bias_E)
    y_NE: Tensor = _Linear.apply(x_ND, weight_ED, bias_E, torch.get_autocast_dtype("cuda"))  # type: ignore[no-untyped-call]
    return y_NE


def layer_norm(x_ND: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, narrow: bool = False) -> Tensor:
    """`F.layer_norm` over the last dimension.

    Args:
        x_ND: any leading dimensions; float32 or 16 bits.
        weight_D: scale.
        bias_D: shift.
        eps: added to the variance.
        narrow: the result only goes into linear layers, so under autocast it may have their 16 bits.
    """
    if not trains_in_16_bits(x_ND):
        return F.layer_norm(x_ND, (x_ND.shape[-1],), weight_D, bias_D, eps)
    dtype = torch.get_autocast_dtype("cuda") if narrow else torch.float32
    y_ND: Tensor = _LayerNorm.apply(x_ND, weight_D, bias_D, eps, dtype)  # type: ignore[no-untyped-call]
    return y_ND


def drop(x: Tensor, p: float) -> Tensor:
    """Each entry zero with probability p, else divided by 1 - p."""
    if x.is_cuda or p == 0:
        return F.dropout(x, p)
    # Uniform numbers come five times as fast as the coins that F.dropout tosses.
    return x * (torch.rand_like(x) >= p).to(x.dtype).mul_(1 / (1 - p))


def _norms(width: int) -> bool:
    from lexrec.kernels import _linear_triton

    return _linear_triton.norms(width)


def _adds(width: int) -> bool:
    from lexrec.kernels import _linear_triton

    return _linear_triton.adds(width)


_Form = tuple[float, str, float, torch.dtype]
"""eps of the norm, activation, dropout and type of operands: the rest of a `Layer`."""


class _NormedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        scale_D: Tensor,
        shift_D: Tensor,
        weight_ED: Tensor,
        bias_E: Tensor,
        form: _Form,
    ) -> tuple[Tensor, Tensor]:
        from lexrec.kernels import _linear_triton

        ctx.set_materialize_grads(False)
        ctx.form = form
        ctx.save_for_backward(x_ND, scale_D, shift_D, weight_ED, bias_E)
        layer = _linear_triton.Layer(weight_ED, bias_E, (scale_D, shift_D), *ctx.form)
        return _linear_triton.forward(x_ND, layer, None, None), x_ND

    @staticmethod
    def backward(ctx: Any, grad_NE: Tensor, beside_ND: Tensor | None) -> tuple[Tensor | None, ...]:
        from lexrec.kernels import _linear_triton

        x_ND, scale_D, shift_D, weight_ED, bias_E = ctx.saved_tensors
        layer = _linear_triton.Layer(weight_ED, bias_E, (scale_D, shift_D), *ctx.form)
        of = _linear_triton.normed_gradients(grad_NE, x_ND, layer, beside_ND)
        assert of.norm_D is not None
        return of.x_ND, *of.norm_D, of.weight_ED, of.bias_E, None


class _AddedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_ED: Tensor,
        bias_E: Tensor,
        onto_NE: Tensor | None,
        form: _Form,
    ) -> Tensor:
        from lexrec.kernels import _dropout_triton, _linear_triton

        ctx.form = form
        dropout = form[2]
        seed_1 = _dropout_triton.draw_seed(x_ND.device) if dropout else None
        ctx.save_for_backward(x_ND, weight_ED, bias_E, seed_1)
        layer = _linear_triton.Layer(weight_ED, bias_E, None, *ctx.form)
        return _linear_triton.forward(x_ND, layer, onto_NE, seed_1)

    @staticmethod
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor | None, ...]:
        from lexrec.kernels import _linear_triton

        x_ND, weight_ED, bias_E, seed_1 = ctx.saved_tensors
        layer = _linear_triton.Layer(weight_ED, bias_E, None, *ctx.form)
        of = _linear_triton.added_gradients(grad_NE, x_ND, layer, seed_1)
        return of.x_ND, of.weight_ED, of.bias_E, grad_NE if ctx.needs_input_grad[3] else None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_ED: Tensor, bias_E: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.types = x_ND.dtype, weight_ED.dtype, bias_E.dtype
        with torch.autocast("cuda", enabled=False):
            x, weight = x_ND.flatten(0, -2).to(dtype), weight_ED.to(dtype)
            ctx.save_for_backward(x, weight)
            return torch.addmm(bias_E.to(dtype), x, weight.T).view(*x_ND.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        from lexrec.kernels import _dense_triton

        x, weight = ctx.saved_tensors
        x_type, weight_type, bias_type = ctx.types
        grad = grad_NE.flatten(0, -2).to(x.dtype)
        of_x = (grad @ weight).view(*grad_NE.shape[:-1], -1).to(x_type)
        return of_x, (grad.T @ x).to(weight_type), _dense_triton.column_sums(grad).to(bias_type), None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        from lexrec.kernels import _dense_triton

        x = x_ND.contiguous()
        ctx.save_for_backward(x, weight_D, bias_D)
        ctx.eps = eps
        return _dense_triton.layer_norm(x, weight_D, bias_D, eps, dtype)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        from lexrec.kernels import _dense_triton

        x, weight_D, _ = ctx.saved_tensors
        return *_dense_triton.layer_norm_gradients(grad_ND.contiguous(), x, weight_D, ctx.eps), None, None


def wide_product(grad_NE: Tensor, x_ND: Tensor) -> Tensor:
    """grad^T x, [E, D]; of 16-bit numbers on a GPU in float32, which is what it is summed in."""
    # Older versions of PyTorch than 2.8 cannot.
    if grad_NE.is_cuda and grad_NE.element_size() == 2 and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(grad_NE.T, x_ND, out_dtype=torch.float32)
    return grad_NE.T @ x_ND
