"""Means of the known vectors of a row, and of each of its prefixes.

In PyTorch that is a dozen kernels, two of them scans; on a GPU, where no gradient passes, it is one.

Dimension key: B rows, L positions, D width.
"""

import torch
from torch import Tensor

from lexrec.kernels.gpu import on_gpu


def prefix_means(x_BLD: Tensor, is_known_BL: Tensor) -> Tensor:
    """Of the known vectors up to each position, [B, L, D]; what stands there where nothing is known yet."""
    if on_gpu(x_BLD) and not x_BLD.requires_grad:
        from lexrec.kernels import _means_triton

        return _means_triton.prefix_means(x_BLD, is_known_BL)
    is_known_BL1 = is_known_BL[..., None]
    n_known_BL1 = is_known_BL1.cumsum(1)
    mean_BLD = (x_BLD * is_known_BL1).cumsum(1) / n_known_BL1.clamp(min=1)
    return torch.where(n_known_BL1 > 0, mean_BLD, x_BLD)


def row_means(x_BLD: Tensor, is_known_BL: Tensor) -> Tensor:
    """Of the known vectors of each row, [B, D]; the newest vector where nothing is known."""
    if on_gpu(x_BLD) and not x_BLD.requires_grad:
        from lexrec.kernels import _means_triton

        return _means_triton.row_means(x_BLD, is_known_BL)
    n_known_B1 = is_known_BL.sum(1, keepdim=True)
    mean_BD = (x_BLD * is_known_BL[..., None]).sum(1) / n_known_B1.clamp(min=1)
    return torch.where(n_known_B1 > 0, mean_BD, x_BLD[:, -1])
