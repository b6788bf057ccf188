"""The one interface between a pretrained language model and what is put into it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn

from lexrec.config import Config
from lexrec.lm.loading import LanguageModel


class AdapterConfig(Config):
    """Base of every adapter's config."""


class Adapter(ABC):
    """Changes a loaded language model in place, once, before training.

    All of it is frozen when it comes, attention and norms excepted where the model's `train_attention` is
    true. What an adapter adds or sets free (`lexrec.lm.loading.train`) is trained and saved; the rest is
    neither. A model that is to stay bit-identical on text must leave it so wherever no stream is given.
    """

    config: AdapterConfig

    @abstractmethod
    def __init__(self, config: AdapterConfig) -> None: ...

    @abstractmethod
    def apply(self, lm: LanguageModel) -> None:
        """Change the language model.

        Raises:
            LmError: its form does not allow it.
            ConfigError: a setting does not fit it.
        """


def chosen(layers: nn.ModuleList, where: str, n_layers: int) -> Sequence[nn.Module]:
    """The layers of a placement: all, the first n or the last n (all where there are fewer)."""
    found = list(layers)
    if where == "all":
        return found
    return found[:n_layers] if where == "first" else found[-n_layers:]


COMPONENT_BASE = Adapter
