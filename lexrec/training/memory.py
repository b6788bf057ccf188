"""How much memory a run took at most."""

import sys

import torch


def peak_mib(device: torch.device) -> int | None:
    """Most memory so far, in MiB: of tensors on a GPU, of the whole process on a CPU; None: not to be had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB elsewhere.
    return peak >> (20 if sys.platform == "darwin" else 10)
