"""What a training process loads."""

import subprocess
import sys
from pathlib import Path

from tests.worlds import world

TRAIN = """
import sys
from lexrec.training.train import train
train("sasrec", data=sys.argv[1], out=sys.argv[2], overrides=["train.max_epochs=1", "model.dim=8"], track=())
print(*(name for name in ("torch._dynamo", "sympy", "pandas", "ibis", "transformers") if name in sys.modules))
"""


def test_a_training_loads_no_compiler_and_no_data_frames(tmp_path: Path) -> None:
    world([[(u + t) % 9 + 1 for t in range(7)] for u in range(30)], 9).save(tmp_path / "data")
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "data"), str(tmp_path / "run")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == ""
