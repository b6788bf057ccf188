"""Windows of one batch in one kernel on a GPU: what `Windows.cut` does with nine.

Dimension key: N events, T batches of an epoch, B rows, W window length, w: of one program.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.data.batch import Batch


def cut(
    item_N: Tensor, time_N: Tensor | None, span_3TB: Tensor, at_1: Tensor, length: int, capacity: int
) -> Batch:
    """Batch `at` of the epoch with these spans: start, end and user of each row."""
    _, T, B = span_3TB.shape
    item_BW = span_3TB.new_empty(B, length)
    time_BW = None if time_N is None else time_N.new_empty(B, length)
    length_B, user_B = span_3TB.new_empty(B), span_3TB.new_empty(B)
    # Triton launches on the current GPU, wherever its tensors are.
    with torch.cuda.device_of(item_N):
        _cut[(B,)](
            item_N, item_N if time_N is None else time_N, span_3TB, at_1,
            item_BW, item_BW if time_BW is None else time_BW, length_B, user_B,
            T * B, length, time_N is not None, triton.next_power_of_2(length),
        )  # fmt: skip
    return Batch(item_BW, length_B, user_B, time_BW, capacity=capacity)


@triton.jit
def _cut(
    item, time, span, at, out_item, out_time, out_length, out_user, n_spans, W,
    HAS_TIME: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    b, w = tl.program_id(0), tl.arange(0, TILE_W)
    span += tl.load(at) * tl.num_programs(0) + b
    start, end = tl.load(span), tl.load(span + n_spans)
    place_w = end - W + w
    is_item_w = (place_w >= start) & (w < W)
    item_w = tl.load(item + place_w, mask=is_item_w, other=0)
    tl.store(out_item + b * W + w, item_w.to(tl.int64), mask=w < W)
    if HAS_TIME:
        time_w = tl.load(time + place_w, mask=is_item_w, other=0)
        tl.store(out_time + b * W + w, time_w, mask=w < W)
    tl.store(out_length + b, tl.minimum(end - start, W))
    tl.store(out_user + b, tl.load(span + 2 * n_spans))
