"""Progress in a real pseudo-terminal and piped; and how often it reads the loss, by a clock set by hand."""

import io
import os
import pty
import re
import subprocess
import sys
import threading

import pytest

from lexrec.training.progress import Progress, is_terminal

TRAINING = """
from lexrec.training.progress import Progress

with Progress(8, metric="ndcg@10"{options}) as progress:
    for epoch in (1, 2):
        for _ in range(4):
            progress.step(loss=lambda: 2.5, n_items=100)
        progress.validated(epoch, {{"hr@10": 0.5, "ndcg@10": epoch / 10}}, best=True)
print("RESULT")
"""


class Clock:
    """Seconds that pass only when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def in_a_terminal(code: str, **environment: str) -> tuple[str, str]:
    """Runs code with standard error on a new pseudo-terminal; what came out there, and on standard output."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environment},
    )
    os.close(terminal)
    shown: list[bytes] = []

    def read() -> None:
        # Reading a terminal whose last user has gone is an error on Linux, the end of file elsewhere.
        try:
            while chunk := os.read(controller, 4096):
                shown.append(chunk)
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    printed, _ = process.communicate(timeout=60)
    reader.join(timeout=60)
    os.close(controller)
    assert process.returncode == 0, b"".join(shown)
    return b"".join(shown).decode(), printed


def test_a_terminal_gets_a_bar_that_is_redrawn():
    shown, printed = in_a_terminal(TRAINING.format(options=""))
    assert printed == "RESULT\n"
    assert "\x1b[2K\x1b[1A" in shown
    assert "━" in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    percents = [int(n) for n in re.findall(r"(\d+)%", plain)]
    assert (percents[0], percents[-1]) == (0, 100)
    assert percents == sorted(percents)
    last = plain.splitlines()[-1]
    assert re.fullmatch(
        r"epoch 2 ndcg@10 0\.2000 \| best 0\.2000 \| loss 2\.5000 \| [\d,]+ items/s \| ETA 0:00:00", last
    )
    # The cursor that was hidden is back.
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_a_bar_fits_a_narrow_terminal():
    shown, _ = in_a_terminal(TRAINING.format(options=""), COLUMNS="40")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert max(len(line) for line in re.split(r"[\r\n]+", plain)) <= 40


def test_a_terminal_that_cannot_move_its_cursor_gets_lines():
    shown, _ = in_a_terminal(TRAINING.format(options=""), TERM="dumb")
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 2


def test_a_pipe_gets_one_line_a_validation_on_standard_error(python):
    done = python("-c", TRAINING.format(options=""), FORCE_COLOR="1")
    assert done.stdout == "RESULT\n"
    first, second = done.stderr.splitlines()
    assert re.fullmatch(
        r"epoch 1 ndcg@10 0\.1000 \| best 0\.1000 \| loss 2\.5000 \| [\d,]+ items/s \| ETA 0:00:00", first
    )
    assert second.startswith("epoch 2 ndcg@10 0.2000 | best 0.2000 | ")


def test_quiet_says_nothing_anywhere(python):
    code = TRAINING.format(options=", quiet=True")
    assert python("-c", code).stderr == ""
    assert in_a_terminal(code) == ("", "RESULT\n")


def lines(*, file: io.StringIO, clock: Clock, total: int = 10, done: int = 0) -> Progress:
    return Progress(total, done=done, file=file, clock=clock)


def test_speed_and_time_left_are_of_this_process_and_leave_out_validation():
    file, clock = io.StringIO(), Clock()
    with lines(file=file, clock=clock, done=2) as progress:
        for _ in range(4):
            clock.now += 2
            progress.step(1.5, 100)
        clock.now += 12
        progress.validated(1, {"ndcg@10": 0.25}, best=True)
        for _ in range(2):
            clock.now += 1
            progress.step(1.25, 100)
        progress.validated(2, {"ndcg@10": 0.125}, best=False)
    # 8 s of steps and 12 s of validation for 4 steps, 4 more to go; then 2 s for 2 steps, 2 to go.
    assert file.getvalue().splitlines() == [
        "epoch 1 ndcg@10 0.2500 | best 0.2500 | loss 1.5000 | 50 items/s | ETA 0:00:20",
        "epoch 2 ndcg@10 0.1250 | best 0.2500 | loss 1.2500 | 100 items/s | ETA 0:00:07",
    ]


def test_hours_are_shown():
    file, clock = io.StringIO(), Clock()
    with lines(file=file, clock=clock, total=3601) as progress:
        clock.now += 2
        progress.step(1.0, 1)
        progress.validated(1, {}, best=True)
    assert file.getvalue() == "epoch 1 | loss 1.0000 | 0 items/s | ETA 2:00:00\n"


def test_without_a_step_the_time_left_is_unknown():
    file = io.StringIO()
    with lines(file=file, clock=Clock(), total=0) as progress:
        progress.validated(0, {"hr@5": 0.5}, best=True)
    assert file.getvalue() == "epoch 0 hr@5 0.5000 | best 0.5000 | loss nan | ETA -:--:--\n"


@pytest.fixture
def reads() -> list[int]:
    return []


def train(progress: Progress, clock: Clock, reads: list[int], seconds_a_step: float) -> None:
    def loss(step: int) -> float:
        reads.append(step)
        return 1.0

    with progress:
        for step in range(100):
            clock.now += seconds_a_step
            progress.step(lambda step=step: loss(step), 1)


def test_on_a_terminal_the_loss_is_read_twice_a_second(reads, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    clock = Clock()
    train(Progress(100, file=Terminal(), clock=clock), clock, reads, seconds_a_step=0.125)
    # Every fourth step, and once more when the bar is left.
    assert reads == [*range(3, 100, 4), 99]


def test_elsewhere_the_loss_is_not_read_between_validations(reads):
    clock = Clock()
    train(Progress(100, file=io.StringIO(), clock=clock), clock, reads, seconds_a_step=10)
    assert reads == []


def test_a_tensor_is_a_loss():
    import torch

    file = io.StringIO()
    with lines(file=file, clock=Clock()) as progress:
        progress.step(torch.tensor(0.75), 1)
        progress.validated(1, {"hr@5": 0.5}, best=True)
    assert "| loss 0.7500 |" in file.getvalue()


@pytest.mark.parametrize(("term", "expected"), [("xterm", True), ("dumb", False), ("", False), (None, False)])
def test_what_counts_as_a_terminal(monkeypatch, term, expected):
    monkeypatch.delenv("TERM", raising=False)
    if term is not None:
        monkeypatch.setenv("TERM", term)
    assert is_terminal(Terminal()) is expected
    assert is_terminal(io.StringIO()) is False
