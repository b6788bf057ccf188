"""Stops a run whose loss is no longer a number, and keeps the batch it happened on."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lexrec.data.windows import Batches
from lexrec.errors import RunError

_GPU_EVERY = 256


class LossWatch:
    """Looks at each loss; on a GPU in groups, so that the host rarely waits for it."""

    def __init__(self, folder: Path, epoch: Batches) -> None:
        self._folder, self._epoch = folder, epoch
        self._every = _GPU_EVERY if epoch.device.type == "cuda" else 1
        self._pending: list[tuple[int, Tensor, int]] = []

    def see(self, step: int, loss: Tensor, i: int) -> None:
        """Remember the loss of an optimizer step, on batch i of the epoch; check once enough have come."""
        self._pending.append((step, loss, i))
        if len(self._pending) >= self._every:
            self.check()

    def check(self) -> None:
        """Check what has been seen. To be called before the epoch is filled anew.

        Raises:
            RunError: a loss was NaN or infinite; nan_batch.safetensors holds the first such batch.
        """
        if not self._pending:
            return
        is_finite = torch.stack([loss for _, loss, _ in self._pending]).isfinite().tolist()
        for (step, loss, i), fine in zip(self._pending, is_finite, strict=True):
            if not fine:
                batch, path = self._epoch.batch(i), self._folder / "nan_batch.safetensors"
                kept = {"item_BL": batch.item_BL, "user_B": batch.user_B, "step": torch.tensor(step)}
                save_file({name: tensor.cpu().contiguous() for name, tensor in kept.items()}, path)
                raise RunError(
                    f"the loss became {loss.item()} at step {step}; the batch is kept in {path}. "
                    "Try a lower train.lr, train.clip_norm=1 or train.precision=fp32"
                )
        self._pending.clear()
