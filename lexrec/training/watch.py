"""Stops a run whose loss is no longer a number, and keeps the batch it happened on."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lexrec.data.batch import Batch
from lexrec.errors import RunError

_GPU_EVERY = 32


class LossWatch:
    """Looks at each loss; on a GPU in groups, so that the host rarely waits for it."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder = folder
        self._every = _GPU_EVERY if device.type == "cuda" else 1
        self._pending: list[tuple[int, Tensor, Batch]] = []

    def see(self, step: int, loss: Tensor, batch: Batch) -> None:
        """Remember a loss, and check once enough have come."""
        self._pending.append((step, loss.detach().clone(), batch))
        if len(self._pending) >= self._every:
            self.check()

    def check(self) -> None:
        """Check what has been seen.

        Raises:
            RunError: a loss was NaN or infinite; nan_batch.safetensors holds the first such batch.
        """
        if not self._pending:
            return
        is_finite = torch.stack([loss for _, loss, _ in self._pending]).isfinite().tolist()
        for (step, loss, batch), fine in zip(self._pending, is_finite, strict=True):
            if not fine:
                path = self._folder / "nan_batch.safetensors"
                kept = {"item_BL": batch.item_BL, "user_B": batch.user_B, "step": torch.tensor(step)}
                save_file({name: tensor.cpu().contiguous() for name, tensor in kept.items()}, path)
                raise RunError(
                    f"the loss became {loss.item()} at step {step}; the batch is kept in {path}. "
                    "Try a lower train.lr, train.clip_norm=1 or train.precision=fp32"
                )
        self._pending.clear()
