"""From a run's config to its model."""

from lexrec import registry
from lexrec.config import RunConfig
from lexrec.item_encoders.base import Catalogue
from lexrec.models.base import SequenceModel


def build_model(config: RunConfig, catalogue: Catalogue) -> SequenceModel:
    """The model of a run, with fresh weights drawn from torch's default generator.

    Args:
        config: names the model and the item encoder.
        catalogue: item count, width, and the token tables in the order the config names them.
    """
    encoder = registry.load("item_encoders", config.item_encoder.name)  # type: ignore[attr-defined]
    backbone = registry.load("models", config.model.name)  # type: ignore[attr-defined]
    items = encoder(config.item_encoder, catalogue)
    model: SequenceModel = backbone(config.model, items)
    model.describe(catalogue)
    return model


def model_width(config: RunConfig) -> int:
    """Width of item vectors and hidden states of a run's model."""
    backbone: type[SequenceModel] = registry.load("models", config.model.name)  # type: ignore[attr-defined]
    return backbone.width(config.model)  # type: ignore[arg-type]
