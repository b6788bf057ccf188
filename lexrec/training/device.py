"""Where to compute: the device of a name. Apart from training, so that serving need not import that."""

import importlib.util

import torch

from lexrec.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device of a name; auto is the GPU where there is one and Triton with it.

    Raises:
        ConfigError: no such device here, or a GPU without Triton.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and _has_triton() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{device.type} is neither cpu nor cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not usable here; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not _has_triton():
        raise ConfigError(
            f"device {name!r} needs Triton, which PyTorch's CUDA builds for Linux bring along; "
            "install it, or use cpu"
        )
    return device


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
