"""Which tokens a feed-forward expert gets: decided by their type, known before anything is computed.

Dimension key: M tokens of all rows, R rows, S slots.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Expert = Callable[[Tensor], Tensor]
"""Any position-wise map."""


class Route(NamedTuple):
    """Tokens grouped by type: each passes one expert, and how many pass which is known on the host."""

    n_items: int
    """Item tokens, unused places of theirs included."""
    order_M: Tensor | None = None
    """int64 places of the tokens, items first; None: every token is an item."""
    back_M: Tensor | None = None
    """int64 place in `order_M` of each token."""

    @staticmethod
    def strided(n_events: int, n_texts: int, device: torch.device) -> "Route":
        """One item token, then `n_texts` text tokens, `n_events` times."""
        if n_texts == 0:
            return Route(n_events)
        place_NT = torch.arange(n_events * (1 + n_texts), device=device).view(n_events, 1 + n_texts)
        order_M = torch.cat([place_NT[:, 0], place_NT[:, 1:].flatten()])
        # The event's number is its item's place; texts follow, n_texts an event.
        text_NT = torch.arange(n_events * n_texts, device=device).view(n_events, n_texts) + n_events
        item_N1 = torch.arange(n_events, device=device)[:, None]
        return Route(n_events, order_M, torch.cat([item_N1, text_NT], 1).flatten())

    @staticmethod
    def of(is_item_RS: Tensor, n_items: int) -> "Route":
        """Any order of types, of which `n_items` tokens are items."""
        order_M = torch.argsort((~is_item_RS).flatten().to(torch.int8), stable=True)
        return Route(n_items, order_M, torch.argsort(order_M))

    def apply(self, x: Tensor, item: Expert, text: Expert) -> Tensor:
        """Each token of `x`, [R, S, ...], through its expert; without texts the other one is not run."""
        if self.order_M is None or self.back_M is None:
            return item(x)
        x_M = _reordered(x.flatten(0, 1), self.order_M, self.back_M)
        y_M = torch.cat([item(x_M[: self.n_items]), text(x_M[self.n_items :])])
        y_M = _reordered(y_M, self.back_M, self.order_M)
        return y_M.view(*x.shape[:2], *y_M.shape[1:])


def _reordered(x_M: Tensor, order_M: Tensor, back_M: Tensor) -> Tensor:
    """`x_M[order_M]`; `back_M` puts it back."""
    y_M: Tensor = _Reorder.apply(x_M, order_M, back_M)  # type: ignore[no-untyped-call]
    return y_M


class _Reorder(torch.autograd.Function):
    """A permutation, whose gradient is read by its inverse: PyTorch would add into zeros atomically."""

    @staticmethod
    def forward(ctx: Any, x_M: Tensor, order_M: Tensor, back_M: Tensor) -> Tensor:
        ctx.save_for_backward(back_M)
        return x_M.index_select(0, order_M)

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor, None, None]:
        (back_M,) = ctx.saved_tensors
        return grad_M.index_select(0, back_M), None, None
