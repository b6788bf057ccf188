"""The K nearest tokens on a CPU: what 8 bits cannot rule out is decided in 32.

Vectors are rounded to whole numbers of a step, which processors multiply several times as fast, and exactly.
With q' and t' for the rounded ones,

    |q t - q' t'| <= |q - q'| |t| + |q'| |t - t'|

holds whatever the vectors are, so every token within twice that of the K-th best is scored again in float32:
the choice is that of float32. All vectors are turned alike first, so that no coordinate stands out and makes
the step coarse. The mean of a table's tokens is taken off: it changes no order, and the rounding is in
proportion to what is left.

Dimension key: E tables, V tokens of one, T places for tokens of all, M queries, C queries of a chunk,
R = C * E lists, K chosen tokens, D width, P groups of G tokens, N groups looked into, S scores made again.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_GROUP = 32
"""Tokens of a group; only groups whose best may be among the K are looked into."""
_PAD = 1024
"""Places of a table are a multiple of this."""
_CHUNK_CELLS = 2**20
"""Scores made at once: 4 MiB, which a processor's cache holds."""
_LARGEST, _LEAST = 127, -(2**31)
_FLOAT32 = 2.0**-18
"""More than float32 is off by, in sums of products of vectors of length 1."""


class ShortTokens:
    """Token vectors of one or more tables in 8 bits, beside those in 32.

    Args:
        tables: of each, the vectors that are chosen from, L2-normalised, [V, D].
    """

    def __init__(self, tables: Sequence[Tensor]) -> None:
        self.n_tokens = [len(token_VD) for token_VD in tables]
        self.n_places = -(-max(self.n_tokens) // _PAD) * _PAD
        """Of each table, in `token_TD`."""
        self.turn_DD = _turn(tables[0].shape[1])
        self.token_TD = torch.cat([self._padded(token_VD) for token_VD in tables])
        short, facts = zip(*(self._shortened(token_VD) for token_VD in tables), strict=True)
        self.short_TD = torch.cat(short)
        self.step_E, self.off_E, self.length_E = torch.tensor(facts).T

    @staticmethod
    def of(tables: Sequence[Tensor]) -> "ShortTokens | None":
        """Where they help: on a CPU whose products of 8 bits are quick, and exact in between too."""
        # Older versions of PyTorch do not say.
        can: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        is_fast = can.get("avx512_vnni") or can.get("avx_vnni") or can.get("amx_int8")
        are_plain = all(token_VD.is_cpu and token_VD.dtype == torch.float32 for token_VD in tables)
        n_tokens = [len(token_VD) for token_VD in tables]
        # A small table is given as many places as the largest.
        is_full = len(tables) * max(n_tokens) <= 1.5 * sum(n_tokens)
        # It is no public function.
        has_product = hasattr(torch, "_int_mm")
        return ShortTokens(tables) if is_fast and are_plain and is_full and has_product else None

    def serves(self, k: int) -> bool:
        """True if there are groups enough to tell which tokens may be among the k best."""
        return min(self.n_tokens) // _GROUP >= 2 * k

    def choose(self, unit_MD: Tensor, k: int) -> Tensor:
        """The k tokens of each table with the largest products, largest first, int64 [E, M, K].

        Args:
            unit_MD: queries of length 1, or of zeros; at least one.
            k: for which this `serves`.
        """
        step = max(1, _CHUNK_CELLS // len(self.short_TD))
        chunks = [self._choose(unit_MD[i : i + step], k) for i in range(0, len(unit_MD), step)]
        return torch.cat(chunks, dim=1)

    def _choose(self, unit_CD: Tensor, k: int) -> Tensor:
        C, E = len(unit_CD), len(self.n_tokens)
        score_RV, margin_R = self._scores(unit_CD)
        peak_RP = score_RV.view(C * E, -1, _GROUP).amax(2)
        row_S, place_S = _within(score_RV.numpy(), peak_RP.numpy(), k, margin_R.numpy())
        row_of_all_S = torch.from_numpy(row_S % E * self.n_places + place_S)
        query_S = torch.from_numpy(row_S // E)
        product_S = (self.token_TD.index_select(0, row_of_all_S) * unit_CD.index_select(0, query_S)).sum(1)
        token_RK = _best_of_rows(row_S, place_S, product_S.numpy(), C * E, k)
        return token_RK.view(C, E, k).transpose(0, 1)

    def _scores(self, unit_CD: Tensor) -> tuple[Tensor, Tensor]:
        """Products in steps, int32 [R, n_places], and twice what each row's may be off by, [R]."""
        C, E = len(unit_CD), len(self.n_tokens)
        turned_CD = unit_CD @ self.turn_DD
        step_C1 = _step(turned_CD.abs().amax(1, keepdim=True))
        short_CD = (turned_CD / step_C1).round_()
        off_C1 = (turned_CD - short_CD * step_C1).norm(dim=1, keepdim=True)
        margin_CE = off_C1 * self.length_E + (1 + off_C1) * self.off_E + _FLOAT32
        score_CT = torch._int_mm(short_CD.to(torch.int8), self.short_TD.T)
        score_CEV = score_CT.view(C, E, self.n_places)
        for e, n_tokens in enumerate(self.n_tokens):
            score_CEV[:, e, n_tokens:] = _LEAST
        return score_CEV.flatten(0, 1), (2 * margin_CE / (step_C1 * self.step_E)).flatten()

    def _padded(self, x_VD: Tensor) -> Tensor:
        return F.pad(x_VD, (0, 0, 0, self.n_places - len(x_VD)))

    def _shortened(self, token_VD: Tensor) -> tuple[Tensor, tuple[float, float, float]]:
        """Tokens in 8 bits, their step, the most that one is off by, and the length of the longest."""
        rest_VD = (token_VD - token_VD.mean(0)) @ self.turn_DD
        step = _step(rest_VD.abs().amax())
        short_VD = (rest_VD / step).round_()
        off, length = (x.norm(dim=1).amax().item() for x in (rest_VD - short_VD * step, rest_VD))
        return self._padded(short_VD).to(torch.int8), (step.item(), off, length)


def _turn(width: int) -> Tensor:
    """A rotation, always the same, [D, D]."""
    drawn_DD = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    turn_DD: Tensor = torch.linalg.qr(drawn_DD)[0]
    return turn_DD


def _step(largest: Tensor) -> Tensor:
    """What one stands for where `largest` is the largest number."""
    return (largest / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny * 2**32)


def _within(
    score_RV: NDArray[np.int32], peak_RP: NDArray[np.int32], k: int, margin_R: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and place of the scores that are no further below the k-th best of their row than its margin."""
    P = peak_RP.shape[1]
    # Where k groups reach, k tokens do.
    least_R = np.partition(peak_RP, P - k, axis=1)[:, P - k] - margin_R.astype(np.float64)
    # A query that is not a number decides nothing: what is made of it will be none either.
    least_R = np.fmax(np.floor(least_R), _LEAST + 1).astype(np.int32)
    group_N = np.flatnonzero(peak_RP >= least_R[:, None])
    row_N = group_N // P
    score_NG = score_RV.reshape(-1, _GROUP)[group_N]
    n_S, g_S = np.divmod(np.flatnonzero(score_NG >= least_R[row_N, None]), _GROUP)
    row_S = row_N[n_S]
    return row_S, (group_N[n_S] - row_S * P) * _GROUP + g_S


def _best_of_rows(
    row_S: NDArray[np.int64], token_S: NDArray[np.int64], product_S: NDArray[np.float32], n_rows: int, k: int
) -> Tensor:
    """The k tokens of the largest products of each row, given row by row, int64 [R, K]."""
    n_R = np.bincount(row_S, minlength=n_rows)
    nth_S = np.arange(len(row_S)) - (n_R.cumsum() - n_R)[row_S]
    product_RX = np.full((n_rows, n_R.max()), -np.inf, dtype=np.float32)
    token_RX = np.zeros(product_RX.shape, dtype=np.int64)
    product_RX[row_S, nth_S], token_RX[row_S, nth_S] = product_S, token_S
    best_RK = torch.from_numpy(product_RX).topk(k, dim=1).indices
    return torch.from_numpy(token_RX).gather(1, best_RK)
