"""Which device a name means."""

import pytest
import torch

from lexrec.errors import ConfigError
from lexrec.training import device


def test_auto_takes_a_gpu_only_with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for found in (False, True):
        monkeypatch.setattr(device, "_has_triton", lambda found=found: found)
        assert device.choose_device("auto").type == ("cuda" if found else "cpu")


def test_a_gpu_without_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(device, "_has_triton", lambda: False)
    with pytest.raises(ConfigError, match=r"device 'cuda:0' needs Triton, .*; install it, or use cpu"):
        device.choose_device("cuda:0")
    assert device.choose_device("cpu") == torch.device("cpu")
