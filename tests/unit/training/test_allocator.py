"""Memory that is kept from step to step."""

import os
import subprocess
import sys

import pytest

COUNT = """
import resource
import torch
from lexrec.training.allocator import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        [torch.ones(2**20) for _ in range(16)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
print(keep_memory(), faults(), faults())
"""


def count(**environment: str) -> list[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    ran = subprocess.run(
        [sys.executable, "-c", COUNT], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return ran.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_tensors_of_later_steps_touch_no_new_page() -> None:
    """Sixteen tensors of 4 MiB at once, a thousand pages each, five times over."""
    kept, _, faults = count()
    assert kept == "True"
    assert int(faults) < 100


def test_what_the_user_set_is_left_alone() -> None:
    assert count(MALLOC_TRIM_THRESHOLD_="0")[0] == "False"
