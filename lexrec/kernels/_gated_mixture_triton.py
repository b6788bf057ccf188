"""Kernels of `gated_mixture.py`: a program has a few whole rows.

Dimension key: R rows, E experts, D width; BR, BE, BD: of one tile.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-untyped"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexrec.kernels._jit import kernel


def mixture(gate_RE: Tensor, out_ERD: Tensor, vector_RD: Tensor, cap: float | None) -> Tensor:
    """See `gated_mixture.gated_mixture`."""
    (_, R, D), dtype = out_ERD.shape, torch.promote_types(out_ERD.dtype, vector_RD.dtype)
    added_RD = torch.empty(R, D, dtype=dtype, device=out_ERD.device)
    grid, sizes = _sizes(out_ERD, cap)
    _mixture[grid](gate_RE, out_ERD, vector_RD, added_RD, R, cap or 0.0, **sizes)
    return added_RD


def gradients(
    grad_RD: Tensor, gate_RE: Tensor, out_ERD: Tensor, vector_RD: Tensor, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the gate and of what the experts said."""
    of_gate_RE, of_out_ERD = torch.empty_like(gate_RE), torch.empty_like(out_ERD)
    grid, sizes = _sizes(out_ERD, cap)
    R = len(grad_RD)
    _gradients[grid](grad_RD, gate_RE, out_ERD, vector_RD, of_gate_RE, of_out_ERD, R, cap or 0.0, **sizes)
    return of_gate_RE, of_out_ERD


def _sizes(out_ERD: Tensor, cap: float | None) -> tuple[tuple[int], dict[str, Any]]:
    E, R, D = out_ERD.shape
    BD = triton.next_power_of_2(D)
    BR = max(1, min(16, 1024 // BD))
    sizes = {"E": E, "D": D, "BE": triton.next_power_of_2(E), "BD": BD, "BR": BR, "CAPPED": cap is not None}
    return (triton.cdiv(R, BR),), sizes


@kernel
def _mixture(
    gate_ptr,
    out_ptr,
    vector_ptr,
    added_ptr,
    R,
    cap,
    E: tl.constexpr,
    D: tl.constexpr,
    BE: tl.constexpr,
    BD: tl.constexpr,
    BR: tl.constexpr,
    CAPPED: tl.constexpr,
):
    r, d = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR), tl.arange(0, BD)
    at_RD, is_there_RD = r[:, None] * D + d[None, :], (r < R)[:, None] & (d < D)[None, :]
    share_RE = _shares(gate_ptr, r, R, E, BE)
    mixed_RD = _mixed(share_RE, out_ptr, at_RD, is_there_RD, R, E, D, BE, BR, BD)
    if CAPPED:
        vector_RD = tl.load(vector_ptr + at_RD, is_there_RD, 0.0).to(tl.float32)
        mixed_RD *= tl.minimum(_ratio(mixed_RD, vector_RD, cap), 1.0)[:, None]
    tl.store(added_ptr + at_RD, mixed_RD, is_there_RD)


@kernel
def _gradients(
    grad_ptr,
    gate_ptr,
    out_ptr,
    vector_ptr,
    gate_grad_ptr,
    out_grad_ptr,
    R,
    cap,
    E: tl.constexpr,
    D: tl.constexpr,
    BE: tl.constexpr,
    BD: tl.constexpr,
    BR: tl.constexpr,
    CAPPED: tl.constexpr,
):
    r, d, e = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR), tl.arange(0, BD), tl.arange(0, BE)
    at_RD, is_there_RD = r[:, None] * D + d[None, :], (r < R)[:, None] & (d < D)[None, :]
    share_RE = _shares(gate_ptr, r, R, E, BE)
    grad_RD = tl.load(grad_ptr + at_RD, is_there_RD, 0.0).to(tl.float32)
    if CAPPED:
        # Of a mixture that was shortened, only what turns it comes through.
        mixed_RD = _mixed(share_RE, out_ptr, at_RD, is_there_RD, R, E, D, BE, BR, BD)
        vector_RD = tl.load(vector_ptr + at_RD, is_there_RD, 0.0).to(tl.float32)
        ratio_R = _ratio(mixed_RD, vector_RD, cap)
        unit_RD = mixed_RD / tl.maximum(tl.sqrt(tl.sum(mixed_RD * mixed_RD, 1)), 1e-12)[:, None]
        turned_RD = grad_RD - tl.sum(grad_RD * unit_RD, 1)[:, None] * unit_RD
        grad_RD = tl.where((ratio_R < 1)[:, None], ratio_R[:, None] * turned_RD, grad_RD)
    pull_RE = tl.zeros([BR, BE], tl.float32)
    for i in tl.static_range(E):
        at_ERD = at_RD + i * R * D
        out_RD = tl.load(out_ptr + at_ERD, is_there_RD, 0.0).to(tl.float32)
        pull_RE += tl.where((e == i)[None, :], tl.sum(grad_RD * out_RD, 1)[:, None], 0.0)
        share_R = tl.sum(tl.where((e == i)[None, :], share_RE, 0.0), 1)
        tl.store(out_grad_ptr + at_ERD, share_R[:, None] * grad_RD, is_there_RD)
    slope_RE = share_RE * (pull_RE - tl.sum(share_RE * pull_RE, 1)[:, None])
    tl.store(gate_grad_ptr + r[:, None] * E + e[None, :], slope_RE, (r < R)[:, None] & (e < E)[None, :])


@kernel
def _shares(gate_ptr, r, R, E: tl.constexpr, BE: tl.constexpr):
    e = tl.arange(0, BE)
    logit_RE = tl.load(gate_ptr + r[:, None] * E + e[None, :], (r < R)[:, None] & (e < E)[None, :], 0.0)
    logit_RE = tl.where((e < E)[None, :], logit_RE.to(tl.float32), float("-inf"))
    share_RE = tl.exp(logit_RE - tl.max(logit_RE, 1)[:, None])
    return share_RE / tl.sum(share_RE, 1)[:, None]


@kernel
def _mixed(
    share_RE,
    out_ptr,
    at_RD,
    is_there_RD,
    R,
    E: tl.constexpr,
    D: tl.constexpr,
    BE: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    e = tl.arange(0, BE)
    mixed_RD = tl.zeros([BR, BD], tl.float32)
    for i in tl.static_range(E):
        share_R = tl.sum(tl.where((e == i)[None, :], share_RE, 0.0), 1)
        mixed_RD += share_R[:, None] * tl.load(out_ptr + at_RD + i * R * D, is_there_RD, 0.0).to(tl.float32)
    return mixed_RD


@kernel
def _ratio(mixed_RD, vector_RD, cap):
    """Longest allowed over actual length."""
    length_R = tl.maximum(tl.sqrt(tl.sum(mixed_RD * mixed_RD, 1)), 1e-12)
    return cap * tl.sqrt(tl.sum(vector_RD * vector_RD, 1)) / length_R
