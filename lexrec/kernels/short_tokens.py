"""The K nearest tokens on a CPU: what 8 bits cannot rule out is decided in 32.

Vectors are rounded to whole numbers of a step, which processors multiply several times as fast, and exactly;
the products are rounded to 8 bits as well, so that a request's stay in a core's own cache. With q' and t' for
rounded vectors,

    |q t - q' t'| <= |q - q'| |t| + |q'| |t - t'|

holds whatever the vectors are, so every token within twice that of the K-th best, and the roundings of the
products, is scored again in float32: the choice is that of float32. All vectors are turned alike first, so
that no coordinate stands out and makes the step coarse. The mean of a table's tokens is taken off: it changes
no order, and the rounding is in proportion to what is left.

Dimension key: E tables, V tokens of one, T places for tokens of all, M queries, C queries of a chunk,
R = C * E lists, K chosen tokens, D width, P groups of G tokens, S scores made again, X those of a list at
most.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lexrec.kernels.products import ByteProducts

_GROUP = 32
"""Tokens of a group: the K-th best group has a token that is no better than the K-th best."""
_PAD = 8 * _GROUP
"""Places of a table are a multiple of this, so that groups can be told apart eight at once."""
_CHUNK_CELLS = 2**21
"""Scores made at once: 2 MiB."""
_LARGEST, _LEAST = 127, 2.0**-94
_HIGHEST = 255
"""Where scores end, as they do at 0: what lies beyond may be among the best, or cannot."""
_SHARP = 0.4
"""A query with this for its largest number has scores of 255 for what the longest token could have."""
_ROUNDING = 1.01
"""More than two rounded scores are off by, together."""
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
        self.first_E1 = torch.arange(len(tables))[:, None] * self.n_places
        self.turn_DD = _turn(tables[0].shape[1])
        self.token_TD = torch.cat([self._padded(token_VD) for token_VD in tables])
        rests = [(token_VD - token_VD.mean(0)) @ self.turn_DD for token_VD in tables]
        # Scores are shares of what the longest token of their table could have, and so is what they miss.
        length_E = [max(rest_VD.norm(dim=1).amax().item(), _LEAST) for rest_VD in rests]
        shares = [rest_VD / length for rest_VD, length in zip(rests, length_E, strict=True)]
        self.step = max(share_VD.abs().amax().item() for share_VD in shares) / _LARGEST or _LEAST
        short, off = zip(*(self._shortened(share_VD) for share_VD in shares), strict=True)
        self.off_E = np.array(off, dtype=np.float32)
        self.blur_E = np.array([_FLOAT32 / length for length in length_E], dtype=np.float32)
        self.products = ByteProducts(torch.cat(short), self.step * _HIGHEST * _SHARP / _LARGEST)

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
        step = max(1, _CHUNK_CELLS // len(self.token_TD))
        chunks = [self._choose(unit_MD[i : i + step], k) for i in range(0, len(unit_MD), step)]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)

    def _choose(self, unit_CD: Tensor, k: int) -> Tensor:
        C, E = len(unit_CD), len(self.n_tokens)
        score_RV, margin_R = self._scores(unit_CD)
        least_R = _least(score_RV, k, margin_R)
        if not least_R.min() >= 1:
            return self._choose_plainly(unit_CD, k)
        row_S, place_S = _reaching(score_RV, least_R.astype(np.uint8))
        token_RX, n_R = _by_rows(row_S, place_S, C * E)
        place_CX = (token_RX.view(C, E, -1) + self.first_E1).flatten(1)
        near_CXD = F.embedding(place_CX, self.token_TD)
        product_RX = torch.bmm(unit_CD[:, None], near_CXD.transpose(1, 2)).view(token_RX.shape).numpy()
        product_RX[np.arange(token_RX.shape[1]) >= n_R[:, None]] = -np.inf
        # Sorting is what NumPy does without a branch, of which none could be foretold.
        best_RK = torch.from_numpy(np.argsort(-product_RX, axis=1)[:, :k])
        return token_RX.gather(1, best_RK).view(C, E, k).transpose(0, 1)

    def _choose_plainly(self, unit_CD: Tensor, k: int) -> Tensor:
        """In 32 bits alone: queries of which the best tokens are no better than the average one."""
        tables = self.token_TD.view(len(self.n_tokens), self.n_places, -1)
        return torch.stack(
            [
                (unit_CD @ token_VD[:n].T).topk(k, dim=1).indices
                for token_VD, n in zip(tables, self.n_tokens, strict=True)
            ]
        )

    def _scores(self, unit_CD: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Products in 256 steps, [R, n_places], and what two of each row may be off by together, [R]."""
        # Of few numbers NumPy is told more quickly what to do than PyTorch.
        turned_CD = (unit_CD @ self.turn_DD).numpy()
        step_C1 = np.maximum.reduce(np.abs(turned_CD), axis=1, keepdims=True) / _LARGEST + _LEAST
        short_CD = np.rint(turned_CD / step_C1)
        off_CD = turned_CD - short_CD * step_C1
        off_C1 = np.sqrt(np.add.reduce(off_CD * off_CD, axis=1, keepdims=True))
        margin_CE = off_C1 + (1 + off_C1) * self.off_E + self.blur_E
        margin_CE *= 2 * _HIGHEST * _SHARP / _LARGEST / step_C1
        score_RV = self.products(torch.from_numpy(short_CD)).numpy().reshape(-1, self.n_places)
        return score_RV, margin_CE.ravel()

    def _padded(self, x_VD: Tensor) -> Tensor:
        return F.pad(x_VD, (0, 0, 0, self.n_places - len(x_VD)))

    def _shortened(self, x_VD: Tensor) -> tuple[Tensor, float]:
        """Vectors in 8 bits, and the most that one is off by."""
        short_VD = (x_VD / self.step).round_()
        off = (x_VD - short_VD * self.step).norm(dim=1).amax().item()
        return self._padded(short_VD).to(torch.int8), off


def _turn(width: int) -> Tensor:
    """A rotation, always the same, [D, D]."""
    drawn_DD = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    turn_DD: Tensor = torch.linalg.qr(drawn_DD)[0]
    return turn_DD


def _least(score_RV: NDArray[np.uint8], k: int, margin_R: NDArray[np.float32]) -> NDArray[np.float32]:
    """The score that a token of each row needs to be among the k best; below 1 where all may be."""
    n_groups = score_RV.shape[1] // _GROUP
    # Tokens of a group stand far apart, so that many maxima are found at once.
    peak_RP = score_RV.reshape(-1, _GROUP, n_groups).max(axis=1)
    # Where k groups reach, k tokens do. Of 16 bits NumPy finds the k-th without a branch.
    reached_R = np.partition(peak_RP.astype(np.int16), n_groups - k, axis=1)[:, n_groups - k]
    least_R: NDArray[np.float32] = np.ceil(reached_R - margin_R - np.float32(_ROUNDING))
    return least_R


def _reaching(
    score_RV: NDArray[np.uint8], least_R: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and place of the scores that reach what their row needs, in order."""
    near_S = _true((score_RV >= least_R[:, None]).ravel())
    return np.divmod(near_S, score_RV.shape[1])


def _true(is_so_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where few of many are true, in order: eight are passed over at once, and eight times eight."""
    word_N = is_so_N.view(np.uint64)
    word_S = _true(word_N != 0) if len(word_N) % 8 == 0 else np.flatnonzero(word_N)
    byte_S = np.flatnonzero(word_N[word_S].view(np.bool_))
    true_S: NDArray[np.int64] = word_S[byte_S >> 3] * 8 + (byte_S & 7)
    return true_S


def _by_rows(
    row_S: NDArray[np.int64], token_S: NDArray[np.int64], n_rows: int
) -> tuple[Tensor, NDArray[np.int64]]:
    """Tokens given row by row, side by side, int64 [R, X], and how many there are of each row, [R]."""
    n_R = np.bincount(row_S, minlength=n_rows)
    nth_S = np.arange(len(row_S)) - (n_R.cumsum() - n_R)[row_S]
    token_RX = np.zeros((n_rows, n_R.max()), dtype=np.int64)
    token_RX[row_S, nth_S] = token_S
    return torch.from_numpy(token_RX), n_R
