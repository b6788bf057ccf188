"""The unit of training that is wrapped, compiled or captured: model and objective as one module.

Data parallelism must wrap this, not the model alone: an objective may call the model twice or score its table
outside the model's forward, and gradients taken outside the wrapper would never be averaged.
"""

from torch import Tensor, nn

from lexrec.data.batch import Batch
from lexrec.models.base import SequenceModel
from lexrec.objectives.base import Objective, Targets


class Step(nn.Module):
    """forward(batch, targets) -> named losses, the total under "loss"."""

    def __init__(self, model: SequenceModel, objective: Objective) -> None:
        super().__init__()
        objective.check(model)
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch, targets: Targets) -> dict[str, Tensor]:
        return self.objective.loss(self.model, batch, targets)
