"""The probability of chosen tokens among a whole vocabulary, which is streamed, never held.

    score[m, v] = scale * cos(interest_m, token_v) + gumbel[row(m), v]
    p[m, v]     = softmax over v of score[m, v] / tau

Every token of the vocabulary gets gradient from it. Off a GPU a chunk of rows is scored at a time, forward
and again backward; on a GPU tiles are (`_token_probability_triton.py`). Sums are float32 (float64 for
float64); on a GPU the slopes of the scores are rounded to the type of the tokens, as factors of a product.

Dimension key: M queries, V tokens, K chosen tokens, D width, C rows of a chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lexrec.kernels.gpu import is_transformed
from lexrec.kernels.token_filter import Scores, ShiftedGumbel, fits


def choice_probability(
    query_MD: Tensor,
    token_VD: Tensor,
    token_MK: Tensor,
    *,
    scale: Tensor,
    tau: float,
    noise: ShiftedGumbel | None,
) -> Tensor:
    """Probability of each chosen token among all V, float32 [M, K], with its gradient.

    Args:
        query_MD: interests; normalised here.
        token_VD: token vectors, already L2-normalised.
        token_MK: what was chosen.
        scale: multiplies the cosine.
        tau: temperature.
        noise: what was added to the scores of the choice.
    """
    unit_MD = F.normalize(query_MD, dim=-1)
    if is_transformed():
        # A sample at a time nothing is large, and PyTorch's own operations know what to do.
        score_MV = scale * (unit_MD @ token_VD.T)
        score_MV = score_MV if noise is None else score_MV + noise.rows(0, len(unit_MD))
        return (score_MV / tau).softmax(dim=1).gather(1, token_MK)
    way = _OnGpu if fits(token_VD) else _InChunks
    p_MK: Tensor = way.apply(unit_MD, token_VD, scale, (token_MK, tau, noise))  # type: ignore[no-untyped-call]
    return p_MK


class _InChunks(torch.autograd.Function):
    """exp(score / tau - logsumexp) of chosen tokens; both passes stream over chunks of queries."""

    @staticmethod
    def forward(
        ctx: Any,
        unit_MD: Tensor,
        token_VD: Tensor,
        scale: Tensor,
        chosen: tuple[Tensor, float, ShiftedGumbel | None],
    ) -> Tensor:
        token_MK, tau, noise = chosen
        score = Scores(unit_MD, token_VD, scale, noise)
        logit_MK = score.unit_MD.new_empty(token_MK.shape)
        log_sum_M = score.unit_MD.new_empty(len(unit_MD))
        for part in score.chunks():
            logit_CV = score.of(part).div_(tau)
            logit_MK[part] = logit_CV.gather(1, token_MK[part])
            log_sum_M[part] = logit_CV.logsumexp(1)
        p_MK = (logit_MK - log_sum_M[:, None]).exp_()
        ctx.save_for_backward(unit_MD, token_VD, scale, token_MK, log_sum_M, p_MK)
        ctx.tau, ctx.noise = tau, noise
        return p_MK

    @staticmethod
    def backward(ctx: Any, grad_MK: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        unit_MD, token_VD, scale, token_MK, log_sum_M, p_MK = ctx.saved_tensors
        score = Scores(unit_MD, token_VD, scale, ctx.noise)
        pull_MK = grad_MK * p_MK
        pull_M1 = pull_MK.sum(1, keepdim=True)
        of_unit_MD, of_token_VD = torch.zeros_like(score.unit_MD), torch.zeros_like(score.token_VD)
        for part in score.chunks():
            logit_CV = score.of(part).div_(ctx.tau)
            slope_CV = logit_CV.sub_(log_sum_M[part, None]).exp_().mul_(-pull_M1[part])
            slope_CV.scatter_add_(1, token_MK[part], pull_MK[part]).div_(ctx.tau)
            of_unit_MD[part] = slope_CV @ score.token_VD
            of_token_VD.addmm_(slope_CV.T, score.unit_MD[part])
        # The slope of each score times its cosine, summed: no need to make the cosines again.
        of_scale = (of_unit_MD * score.unit_MD).sum().to(scale.dtype)
        factor = scale.to(of_unit_MD.dtype)
        of_unit_MD, of_token_VD = of_unit_MD.mul_(factor), of_token_VD.mul_(factor)
        return of_unit_MD.to(unit_MD.dtype), of_token_VD.to(token_VD.dtype), of_scale, None


class _OnGpu(torch.autograd.Function):
    """The same by kernels: a pull at all tokens through the normaliser, and one at each chosen token."""

    @staticmethod
    def forward(
        ctx: Any,
        unit_MD: Tensor,
        token_VD: Tensor,
        scale: Tensor,
        chosen: tuple[Tensor, float, ShiftedGumbel | None],
    ) -> Tensor:
        from lexrec.kernels import _token_probability_triton as kernels

        token_MK, tau, noise = chosen
        rounded_MD, factor = unit_MD.to(token_VD.dtype).contiguous(), scale.detach().float()
        ctx.asked = kernels.Asked(rounded_MD, token_VD.contiguous(), factor, tau, noise)
        row_MKD = F.embedding(token_MK, ctx.asked.token_VD)
        score_MK = factor * (row_MKD.float() * rounded_MD.float()[:, None]).sum(2)
        if noise is not None:
            score_MK += noise.of(token_MK)
        log_sum_M = kernels.log_sums(ctx.asked)
        p_MK = (score_MK / tau - log_sum_M[:, None]).exp_()
        ctx.save_for_backward(token_MK, log_sum_M, p_MK)
        ctx.types = unit_MD.dtype, token_VD.dtype, scale.dtype
        return p_MK

    @staticmethod
    def backward(ctx: Any, grad_MK: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        from lexrec.kernels import _token_probability_triton as kernels

        token_MK, log_sum_M, p_MK = ctx.saved_tensors
        unit_MD, token_VD, factor, tau, _ = ctx.asked
        pull_MK = grad_MK * p_MK
        of_unit_MD, of_token_VD = kernels.slopes(ctx.asked, log_sum_M, pull_MK.sum(1))
        slope_MK = (pull_MK / tau).to(token_VD.dtype)
        of_unit_MD += (slope_MK[:, None] @ F.embedding(token_MK, token_VD))[:, 0]
        pulled_MKD = slope_MK[:, :, None] * unit_MD[:, None]
        of_token_VD += torch.ops.aten.embedding_dense_backward(pulled_MKD, token_MK, len(token_VD), -1, False)
        of_scale = (of_unit_MD * unit_MD).sum()
        types = ctx.types
        of_unit_MD, of_token_VD = (of_unit_MD * factor).to(types[0]), (of_token_VD * factor).to(types[1])
        return of_unit_MD, of_token_VD, of_scale.to(types[2]), None
