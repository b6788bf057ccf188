"""The consensus expert: what experts of one width agree on after Round 1, frozen in Round 2.

    theta_SC = sum_r F_r theta_r / sum_r F_r       eq. 14, F from training/fisher.py

It asks with the same item vectors as its experts and reads the tokens of all their tables: side by side
(`source=concat`), or row by row their mean, as the release does (`source=mean`; rows of unlike vocabularies,
so the mean of the k-th choices is no token). With `average=attention` the tokens are those its experts chose,
and the filters are still taught through them; with `average=all` it has a filter of its own, the average of
theirs, and chooses from each table itself. Experts whose width nobody shares take no part.

Dimension key: M interests, U units, Q queries a unit, V tokens, W LLM width, K chosen tokens, E experts,
D width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexrec.item_encoders._attention import Answers, Chosen, CrossAttention
from lexrec.item_encoders._expert import TokenExpert, without_gradient
from lexrec.item_encoders._interest import Interests
from lexrec.item_encoders._mltfr_config import ConsensusConfig, MltfrConfig
from lexrec.kernels.token_filter import ShiftedGumbel, choose_tokens


class Consensus(nn.Module):
    """The frozen average of the experts `members`, over all their tables."""

    def __init__(
        self, members: Sequence[int], width: int, dim: int, config: MltfrConfig, options: ConsensusConfig
    ) -> None:
        super().__init__()
        self.members = tuple(members)
        self.config, self.options = config, options
        self.attention = CrossAttention(width, dim, config)
        self.align = nn.Linear(width, dim) if options.average == "all" else None
        self.logit_scale = (
            nn.Parameter(torch.tensor(config.logit_scale)) if options.average == "all" else None
        )
        self.requires_grad_(False)
        self._constants: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.register_load_state_dict_pre_hook(lambda *_: self.thaw())  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Consensus":
        self.thaw()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, asked: Interests, experts: Sequence[TokenExpert], chosen_E: Sequence[Chosen]) -> Tensor:
        """What the consensus adds to each query, [U, Q, D].

        Args:
            asked: what every expert was asked with.
            experts: all experts of the encoder.
            chosen_E: what each of them chose for each unit.
        """
        answers = []
        for m in self.members:
            answer_VX, aligned_VD = self._constants_of(m, experts[m])
            chosen = chosen_E[m] if aligned_VD is None else self._choose(asked, aligned_VD)
            answers.append(self.attention.read(experts[m].table_VW, chosen, answer_VX))
        return self.attention.answer(asked.query_UQD, self._joined(answers))

    @torch.no_grad()
    def agree(self, experts: Sequence[nn.Module], weight_E: Sequence[dict[str, Tensor]]) -> None:
        """Become the weighted average of the members.

        Args:
            experts: all trained experts of Round 1.
            weight_E: of each expert, the weight of each parameter that was trained: its shape, or one number.
                Of what was not trained the plain mean is taken.
        """
        self.thaw()
        of_expert = [dict(experts[m].named_parameters()) for m in self.members]
        for name, parameter in self.named_parameters():
            values = [parameters[name] for parameters in of_expert]
            weights = [weight_E[m].get(name, torch.zeros(())) for m in self.members]
            parameter.copy_(weighted_average(values, weights))

    def _choose(self, asked: Interests, aligned_VD: Tensor) -> Chosen:
        """The K tokens of each interest by the average filter."""
        assert self.logit_scale is not None
        interest_MD, V = asked.interest_MD.detach(), len(aligned_VD)
        k, is_noisy = min(self.config.k, V), self.training or self.config.eval_noise
        noise = ShiftedGumbel(V, aligned_VD.device) if is_noisy else None
        token_MK = choose_tokens(interest_MD, aligned_VD, k, scale=self.logit_scale, noise=noise)
        chosen = without_gradient(token_MK, self.config)
        return chosen.pooled() if self.config.pool == "batch" else chosen.at(asked.unit_U)

    def _joined(self, answers: Sequence[Answers]) -> Answers:
        keys, values = [one.key_UKD for one in answers], [one.value_UKD for one in answers]
        biases = [one.bias_UK for one in answers if one.bias_UK is not None]
        if self.options.source == "concat":
            return Answers(
                torch.cat(keys, dim=1), torch.cat(values, dim=1), torch.cat(biases, 1) if biases else None
            )
        bias_UK = torch.stack(biases).mean(0) if biases else None
        return Answers(torch.stack(keys).mean(0), torch.stack(values).mean(0), bias_UK)

    def _constants_of(self, m: int, expert: TokenExpert) -> tuple[Tensor | None, Tensor | None]:
        """Keys, values and aligned tokens of a member's table; kept where tables do not change."""
        if self.config.tune_tables:
            return None, self._aligned(expert)
        if m not in self._constants:
            device = expert.table_VW.device.type
            # Also while serving: what is kept there must do for training, and for every arithmetic.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
                self._constants[m] = self.attention.project(expert.table_VW), self._aligned(expert)
        return self._constants[m]

    def _aligned(self, expert: TokenExpert) -> Tensor | None:
        if self.align is None:
            return None
        return F.normalize(self.align(self.attention.rows(expert.table_VW)), dim=-1).detach()

    def thaw(self) -> None:
        """Drop the constants: the weights are about to change."""
        self._constants = {}


def groups(width_E: Sequence[int]) -> list[tuple[int, ...]]:
    """Experts of one width, where there are at least two of them."""
    by_width: dict[int, list[int]] = {}
    for m, width in enumerate(width_E):
        by_width.setdefault(width, []).append(m)
    return [tuple(members) for members in by_width.values() if len(members) > 1]


def weighted_average(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The sum of w v over that of w, element by element; the plain mean where the weights sum to exactly 0.

    Fisher weights are tiny (sums of 4e-14 occur): float64, and nothing added to the denominator.

    Args:
        values: tensors of one shape.
        weights: for each, its weight: of its shape, or one number for all elements; never negative.
    """
    value_E = torch.stack([value.detach().double() for value in values])
    weight_E = torch.stack(
        [w.double().to(v.device).expand_as(v) for w, v in zip(weights, values, strict=True)]
    )
    total = weight_E.sum(0)
    mean = (value_E * weight_E).sum(0) / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, mean, value_E.mean(0)).to(values[0].dtype)
