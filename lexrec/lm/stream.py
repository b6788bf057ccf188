"""Histories as streams of tokens, and attention that keeps them apart.

Packed, all histories of a batch are one row, one after another, each with positions of its own. Where no
history has more than C tokens, a token finds all it may see in its own block of C or in the one before; of
long ones a block is a quarter, and four come before:

    [ a a a b b | b c c c c | c d d e e ]     block 2 looks at blocks 1 and 2, and in them at its own history

Shapes depend on the number of places alone and nothing is spent on padding. The attention is a function of
transformers' registry, so every family that takes its attention from there can run on streams; called
without a stream it is transformers' own.

Dimension key: R rows, S slots of a row, N slots of a packed row, Q queries, T keys, C tokens of a block,
G blocks, H heads, K head width, B histories, W width.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels._training import trains_in_16_bits
from lexrec.kernels.stream_attention import Look, places, serves, stream_attention
from lexrec.lm.routing import Route

_LONG = 128
"""Histories of more tokens than this are cut into parts."""
_PARTS = 4
"""So many."""
_ROUNDING = 8
"""Blocks are rounded up to this: a GPU copies masks of other sizes in each layer."""
ATTENTION = "lexrec"
"""What the attention is called in transformers' registry."""


class Reach(NamedTuple):
    """How far back a token looks, itself included."""

    tokens: int | None = None
    """In every layer; None: to the beginning of its history."""
    window: int | None = None
    """In the layers that have a sliding window, as the language model was pretrained; None: none has."""


class PackedRow(NamedTuple):
    """Who sees whom, without masks."""

    place_4N: Tensor
    """See `lexrec.kernels.stream_attention.places`."""
    reaches: dict[int | None, int | None]
    """Positions that a token looks back, by the window of the layer."""

    def look(self, settings: dict[str, Any], head_width: int) -> Look:
        """By a layer's own settings."""
        reach = self.reaches.get(settings.get("sliding_window"), self.reaches[None])
        scale = settings.get("scaling")
        return Look(self.place_4N, reach, head_width**-0.5 if scale is None else scale)


class Stream(NamedTuple):
    """What a language model's layers are told of their tokens, beside the vectors."""

    position_RS: Tensor
    """int64, from 0 in each history."""
    masks: dict[int | None, Tensor]
    """Where each token may look, for layers that look back without end (None) or over a window: [R, 1, S, T],
    or [G, 1, C, T] for a packed row that is cut into blocks."""
    route: Route | None = None
    """None: every token is text."""
    added_RSW: Tensor | None = None
    """Joins the output of the first layer."""
    is_token_RS: Tensor | None = None
    """True where there is a token; None: everywhere."""
    row: "PackedRow | None" = None
    """How a packed row is told to the kernel of a training step; None: `masks` alone say who sees whom."""
    prefix: "Layers" = ()
    """Of a packed row: keys and values of the tokens that stand before each of its histories."""
    kept: "dict[int, tuple[Tensor, Tensor]] | None" = None
    """Where each layer's attention puts its keys and values; None: nobody asks for them."""
    aux: dict[str, Tensor] | None = None
    """Where layers put auxiliary losses, summed by name, already weighted; None: nobody asks for them."""


def packed(
    history_N: Tensor,
    position_N: Tensor,
    is_token_N: Tensor,
    longest: int,
    reach: Reach,
    prefix: "Layers" = (),
) -> Stream:
    """One row of many histories, each contiguous.

    Args:
        history_N: which history each slot is of.
        position_N: position in the history.
        is_token_N: True where there is a token; what is none sees itself and is seen by nobody.
        longest: slots of the longest history there can be.
        reach: how far back a token looks.
        prefix: keys and values, [1, H, P, K], of P tokens before each history; positions go on after them.
    """
    N = len(history_N)
    C, n_before = _block_size(N, longest)
    place_N = torch.arange(N, device=history_N.device)
    # What fills up blocks is no place, of no history, and no token.
    blocks = [_blocks(values_N, C) for values_N in (place_N, history_N, position_N, is_token_N.long())]
    query_GC, history_GC, position_GC, _ = blocks
    key_GT, history_GT, position_GT, token_GT = (_with_before(part_GC, n_before) for part_GC in blocks)
    may_look_GCT = (history_GC[:, :, None] == history_GT[:, None]) & (token_GT == 1)[:, None]
    may_look_GCT &= key_GT[:, None] <= query_GC[:, :, None]
    itself_GCT = key_GT[:, None] == query_GC[:, :, None]
    distance_GCT = position_GC[:, :, None] - position_GT[:, None]
    if prefix:
        before_P = torch.arange(prefix[0][0].shape[2], device=history_N.device)
        distance_GCP = position_GC[:, :, None] - before_P
        may_look_GCT = torch.cat([torch.ones_like(distance_GCP, dtype=torch.bool), may_look_GCT], 2)
        itself_GCT = torch.cat([torch.zeros_like(distance_GCP, dtype=torch.bool), itself_GCT], 2)
        distance_GCT = torch.cat([distance_GCP, distance_GCT], 2)
    masks = _masks(may_look_GCT, itself_GCT, distance_GCT, reach)
    row = None
    if trains_in_16_bits(position_N):
        row = PackedRow(places(history_N, position_N, is_token_N), _reaches(reach))
    return Stream(position_N[None], masks, is_token_RS=is_token_N[None], row=row, prefix=prefix)


def in_rows(position_BS: Tensor, is_token_BS: Tensor, seen: "Seen", reach: Reach) -> Stream:
    """A history a row, padding anywhere.

    Args:
        position_BS: position of each token in its history.
        is_token_BS: True where there is one.
        seen: the places before these, whose keys and values are kept.
        reach: how far back a token looks.
    """
    S = position_BS.shape[1]
    position_BT = torch.cat([seen.position_BT, position_BS], 1)
    is_token_BT = torch.cat([seen.is_token_BT, is_token_BS], 1)
    T = position_BT.shape[1]
    key_T = torch.arange(T, device=position_BS.device)
    query_S1 = key_T[T - S :, None]
    may_look_BST = is_token_BT[:, None] & (key_T <= query_S1)
    distance_BST = position_BS[:, :, None] - position_BT[:, None]
    masks = _masks(may_look_BST, key_T == query_S1, distance_BST, reach)
    return Stream(position_BS, masks, is_token_RS=is_token_BS)


def _masks(may_look: Tensor, itself: Tensor, distance: Tensor, reach: Reach) -> dict[int | None, Tensor]:
    if reach.tokens is not None:
        may_look = may_look & (distance < reach.tokens)
    # A place without a token looks at itself: a softmax over nothing is NaN.
    masks: dict[int | None, Tensor] = {None: (may_look | itself)[:, None]}
    if reach.window is not None:
        masks[reach.window] = (may_look & (distance < reach.window) | itself)[:, None]
    return masks


def _reaches(reach: Reach) -> dict[int | None, int | None]:
    """By the window of a layer, as `_masks`."""
    if reach.window is None:
        return {None: reach.tokens}
    window = reach.window if reach.tokens is None else min(reach.window, reach.tokens)
    return {None: reach.tokens, reach.window: window}


def _block_size(N: int, longest: int) -> tuple[int, int]:
    """Tokens of a block, and how many blocks before its own a token must see to see all of its history."""
    if longest >= N:
        return N, 0
    # Smaller blocks look at less that is not theirs: 5/4 of the longest history, not twice as much.
    C = longest if longest <= _LONG else -(-longest // _PARTS)
    C = -(-C // _ROUNDING) * _ROUNDING
    n_before = -(-longest // C)
    return C, min(n_before, -(-N // C) - 1)


def _blocks(values_N: Tensor, C: int) -> Tensor:
    """[N] -> [G, C], filled up with -1 at the end."""
    return F.pad(values_N, (0, -len(values_N) % C), value=-1).view(-1, C)


def _with_before(values_GC: Tensor, n_before: int) -> Tensor:
    """Each block after those before it, [G, (n_before + 1) C]; -1 before the first."""
    padded_GC = F.pad(values_GC, (0, 0, n_before, 0), value=-1)
    return padded_GC.unfold(0, n_before + 1, 1).transpose(1, 2).flatten(1)


def register() -> None:
    """Make the attention known to transformers, under the name ATTENTION."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _attend(
    module: Any,
    q_RHSK: Tensor,
    k_RHTK: Tensor,
    v_RHTK: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """The signature is that of attention functions in transformers: layers hand on what they were given."""
    stream: Stream | None = settings.pop("stream", None)
    if stream is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, q_RHSK, k_RHTK, v_RHTK, attention_mask, **settings
        )
        return plain
    if stream.kept is not None:
        stream.kept[module.layer_idx] = (k_RHTK, v_RHTK)
    empty = k_RHTK.detach()[:, :, :0], v_RHTK.detach()[:, :, :0]
    before = stream.prefix[module.layer_idx] if stream.prefix else empty
    if stream.row is not None and serves(v_RHTK, before[0].shape[2]) and not settings.get("dropout"):
        look = stream.row.look(settings, q_RHSK.shape[-1])
        return stream_attention(q_RHSK, k_RHTK, v_RHTK, look, before), None
    mask = stream.masks.get(settings.get("sliding_window"), stream.masks[None])
    n_groups = q_RHSK.shape[1] // k_RHTK.shape[1]
    if n_groups > 1:
        k_RHTK, v_RHTK = (part.repeat_interleave(n_groups, 1) for part in (k_RHTK, v_RHTK))
        before = (before[0].repeat_interleave(n_groups, 1), before[1].repeat_interleave(n_groups, 1))
    is_blocked = mask.shape[2] != q_RHSK.shape[2]
    how = {"attn_mask": mask, "dropout_p": settings.get("dropout", 0.0), "scale": settings.get("scaling")}
    if not is_blocked:
        k_RHTK, v_RHTK = _after(before[0], k_RHTK), _after(before[1], v_RHTK)
        y_RHSK = F.scaled_dot_product_attention(q_RHSK, k_RHTK, v_RHTK, **how)
        return y_RHSK.transpose(1, 2), None
    N, C = q_RHSK.shape[2], mask.shape[2]
    n_before = (mask.shape[3] - before[0].shape[2]) // C - 1
    k_GHTK = _after(before[0], _keys_with_before(k_RHTK, C, n_before))
    v_GHTK = _after(before[1], _keys_with_before(v_RHTK, C, n_before))
    y_GHCK = F.scaled_dot_product_attention(_cut(q_RHSK, C), k_GHTK, v_GHTK, **how)
    y_NHK = y_GHCK.transpose(1, 2).flatten(0, 1)[:N]
    return y_NHK[None], None


def _after(prefix_1HPK: Tensor, x_RHTK: Tensor) -> Tensor:
    """What stands before each row and its own keys or values, [R, H, P + T, K]."""
    if not prefix_1HPK.shape[2]:
        return x_RHTK
    return torch.cat([prefix_1HPK.expand(len(x_RHTK), -1, -1, -1).to(x_RHTK.dtype), x_RHTK], 2)


def _cut(x_1HNK: Tensor, C: int) -> Tensor:
    """[1, H, N, K] -> [G, H, C, K]."""
    x_HNK = F.pad(x_1HNK[0], (0, 0, 0, -x_1HNK.shape[2] % C))
    return x_HNK.view(len(x_HNK), -1, C, x_HNK.shape[2]).transpose(0, 1)


def _keys_with_before(x_1HNK: Tensor, C: int, n_before: int) -> Tensor:
    """Each block's keys or values after those of the blocks before, [G, H, (n_before + 1) C, K]: a view."""
    x_HNK = F.pad(x_1HNK[0], (0, 0, n_before * C, -x_1HNK.shape[2] % C))
    return x_HNK.unfold(1, (n_before + 1) * C, C).permute(1, 0, 3, 2)


Layers = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of each layer."""


class KeyValues:
    """Keys and values of earlier tokens, for one forward pass; what it was given is never changed.

    transformers' layers call `update` of whatever cache they are handed.
    """

    def __init__(self, before: Layers, n_layers: int) -> None:
        self._before = before
        self._now: list[tuple[Tensor, Tensor] | None] = [None] * n_layers

    def update(self, k_BHSK: Tensor, v_BHSK: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Those of a layer, the earlier ones first."""
        if self._before:
            k_BHTK, v_BHTK = self._before[layer]
            k_BHSK, v_BHSK = torch.cat([k_BHTK, k_BHSK], 2), torch.cat([v_BHTK, v_BHSK], 2)
        self._now[layer] = (k_BHSK, v_BHSK)
        return k_BHSK, v_BHSK

    def get_seq_length(self, layer: int = 0) -> int:
        """Places before these."""
        return self._before[layer][0].shape[2] if self._before else 0

    def all(self) -> Layers:
        """Keys and values of every layer, after the pass."""
        assert all(pair is not None for pair in self._now)
        return tuple(pair for pair in self._now if pair is not None)


class Seen(NamedTuple):
    """Tokens read so far, a history a row, for what follows them."""

    keys_values: Layers
    """Empty before the first token."""
    position_BT: Tensor
    is_token_BT: Tensor

    @staticmethod
    def nothing(position_B0: Tensor) -> "Seen":
        """Before the first token of rows, of whose positions there are none yet, [B, 0]."""
        return Seen((), position_B0, position_B0.bool())

    def rows(self, B: int) -> "Seen":
        """The same before each of B histories, of one."""
        keys_values = tuple((k.expand(B, -1, -1, -1), v.expand(B, -1, -1, -1)) for k, v in self.keys_values)
        return Seen(keys_values, self.position_BT.expand(B, -1), self.is_token_BT.expand(B, -1))

    @property
    def length_B1(self) -> Tensor:
        """Tokens of each row."""
        return self.is_token_BT.sum(1, keepdim=True)

    def with_(self, cache: KeyValues, position_BS: Tensor, is_token_BS: Tensor) -> "Seen":
        """These and the tokens that `cache` has passed by since."""
        position_BT = torch.cat([self.position_BT, position_BS], 1)
        return Seen(cache.all(), position_BT, torch.cat([self.is_token_BT, is_token_BS], 1))
