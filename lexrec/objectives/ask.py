"""Next items, and the same after questions: "nail polish, please" once a user has met these.

Beside `next_item`, some rows of a batch are cut at a random event, and asked for that event by a value it has
in the item table (lexrec/lm/questions.py); the answer is a softmax over the whole catalogue, not over what
has the value: that the answer has to fit is what is learned. Ours, not in the IDIOMoE paper.

Dimension key: B rows, L positions, R rows that are asked, H positions that they keep, D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lexrec.data.batch import PAD, Batch
from lexrec.errors import ConfigError
from lexrec.models.base import SequenceModel
from lexrec.models.idiomoe import Idiomoe
from lexrec.objectives._losses import LossConfig, mean_loss
from lexrec.objectives.base import Objective, Targets
from lexrec.objectives.next_item import NextItem, NextItemConfig


class AskConfig(LossConfig):
    """The loss of next items, and how much is asked."""

    name: Literal["ask"] = "ask"
    share: float = Field(0.25, gt=0, le=1)
    """Questions of a batch, as a share of its rows."""
    history: int = Field(10, ge=1)
    """Newest events before the answer that a question's row keeps; each costs a place in every such row."""
    weight: float = Field(1.0, gt=0)
    """Of the mean loss of questions, beside that of next items."""
    reasons: float = Field(0.0, ge=0)
    """Weight of a language model's loss on reasons for the answers (lexrec/lm/reasons.py)."""
    reason_places: int = Field(256, ge=1)
    """Places of reasons, drawn at random, that this loss is taken at; each costs a softmax over all text."""


class Ask(Objective):
    """Shifted-sequence training over all positions, and questions."""

    sampling = "history"

    config: AskConfig

    def __init__(self, config: AskConfig, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.n_items = n_items
        plain = {name: getattr(config, name) for name in LossConfig.model_fields}
        self.next_item = NextItem(NextItemConfig(**plain), n_items)

    def check(self, model: SequenceModel) -> None:
        if not isinstance(model, Idiomoe) or model.questions is None:
            raise ConfigError(
                f"objective ask trains a language model on questions, and {type(model).__name__} has none; "
                "use model.name=idiomoe with model.ask=[category]"
            )
        if self.config.reasons and model.reasons is None:
            raise ConfigError(
                f"objective.reasons={self.config.reasons} trains on titles, and the items have none; "
                "prepare the data again with --items FILE --title COLUMN, or set objective.reasons=0"
            )
        self.next_item.check(model)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Targets:
        """As `next_item`; `views[0]` has the rows that are asked, [R, H + 1], the answer at their end."""
        targets = self.next_item.prepare(batch, generator)
        item_BL, device = batch.item_BL, batch.item_BL.device
        (B, L), H = item_BL.shape, min(self.config.history, item_BL.shape[1] - 1)
        R = max(1, round(self.config.share * B))
        row_R = torch.randint(B, (R,), generator=generator, device=device)
        length_R = (item_BL[row_R] != PAD).sum(1)
        # Any event but a row's first; of a row with one event that one, which the loss leaves out.
        drawn_R = torch.rand(R, generator=generator, device=device)
        back_R = (drawn_R * (length_R - 1).clamp(min=1)).long()
        place_RL = L - 1 - back_R[:, None] + torch.arange(-H, 1, device=device)
        item_RL = item_BL[row_R[:, None], place_RL.clamp(min=0)] * (place_RL >= 0)
        time_RL = None
        if batch.time_BL is not None:
            time_RL = batch.time_BL[row_R[:, None], place_RL.clamp(min=0)] * (place_RL >= 0)
        view = Batch(item_RL, (item_RL != PAD).sum(1), batch.user_B[row_R], time_RL)
        return targets._replace(views=(view,))

    def loss(self, model: SequenceModel, batch: Batch, targets: Targets) -> dict[str, Tensor]:
        assert isinstance(model, Idiomoe)
        assert model.questions is not None
        losses = self.next_item.loss(model, batch, targets)
        view = targets.views[0]
        target_R = view.item_BL[:, -1]
        text, has_question_R = model.questions.draw(target_R)
        is_asked_R = has_question_R & (view.length_B > 1)
        target_R = torch.where(is_asked_R, target_R, 1)
        time_RL = None if view.time_BL is None else view.time_BL[:, :-1]
        history = Batch(view.item_BL[:, :-1], (view.length_B - 1).clamp(min=0), view.user_B, time_RL)
        asked = Targets(history, target_R, target_R, is_asked_R.float())
        answers = mean_loss(model.answer(history, text), model.scoring(), asked, LossConfig())
        losses |= {"loss": losses["loss"] + self.config.weight * answers, "answers": answers}
        if self.config.reasons:
            reasons = self._reason_loss(model, view)
            losses |= {"loss": losses["loss"] + self.config.reasons * reasons, "reasons": reasons}
        return losses

    def _reason_loss(self, model: Idiomoe, view: Batch) -> Tensor:
        """Mean loss of tokens of reasons after their opening, at places drawn at random."""
        assert model.reasons is not None
        text, has_reason_R = model.reasons.texts(view.item_BL)
        hidden_RSD = model.read_around(view, text, n_after=0)
        n_opening, (R, Q) = model.reasons.n_opening, text.token_BQ.shape
        n_said = Q - n_opening
        drawn_K = torch.randint(R * n_said, (self.config.reason_places,), device=hidden_RSD.device)
        row_K, place_K = drawn_K // n_said, n_opening + drawn_K % n_said
        before_RQD = hidden_RSD[:, hidden_RSD.shape[1] - Q :]
        logit_KV = model.lm.text_logits(before_RQD[row_K, place_K - 1])
        loss_K = F.cross_entropy(logit_KV.float(), text.token_BQ[row_K, place_K], reduction="none")
        is_said_K = text.is_token_BQ[row_K, place_K] & has_reason_R[row_K]
        return (loss_K * is_said_K).sum() / is_said_K.sum().clamp(min=1)
