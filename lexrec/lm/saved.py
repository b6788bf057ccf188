"""A model over a frozen language model is saved without it: a state dict holds what was trained, no more."""

from typing import Any

from torch import nn


def save_only_trained(model: nn.Module) -> None:
    """From now on `state_dict` leaves out frozen parameters, and `load_state_dict` does not ask for them."""
    model.register_state_dict_post_hook(_drop_frozen)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_post_hook(_do_not_miss_frozen)  # type: ignore[no-untyped-call]


def frozen_names(model: nn.Module) -> set[str]:
    """Parameters that are not trained, under each of their names."""
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}


def _drop_frozen(model: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in frozen_names(model):
        state.pop(prefix + name, None)


def _do_not_miss_frozen(model: nn.Module, keys: Any) -> None:
    # A parent's names have a prefix that is not known here, and end alike.
    frozen = tuple(frozen_names(model))
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.endswith(frozen)]
