"""Where to compute: the device of a name. Apart from training, so that serving need not import that."""

import torch

from lexrec.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device of a name; auto is the GPU where there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{device.type} is neither cpu nor cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not usable here; use auto, cpu, cuda or cuda:N") from error
    return device
