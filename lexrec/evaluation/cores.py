"""Work on the cores of a CPU: whole pieces of it side by side, each on one thread.

PyTorch parts single operations among threads. Operations of a tenth of a millisecond, as here, lose by that
nearly what they gain, and many do not take part in it; pieces wait for nothing but the last of them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Found = TypeVar("Found")


class _Threads:
    """How many threads PyTorch takes when nobody asks for one: it cannot be asked once somebody did."""

    def __init__(self) -> None:
        self._lock, self._n_inside, self._usual = Lock(), 0, 1

    def enter(self) -> int:
        with self._lock:
            if self._n_inside == 0:
                self._usual = torch.get_num_threads()
            self._n_inside += 1
            torch.set_num_threads(1)
            return self._usual

    def leave(self) -> None:
        with self._lock:
            self._n_inside -= 1
            torch.set_num_threads(self._usual)


_THREADS = _Threads()


@contextmanager
def one_thread() -> Iterator[int]:
    """PyTorch on one thread; gives the number of threads it has before and afterwards."""
    n_usual = _THREADS.enter()
    try:
        yield n_usual
    finally:
        _THREADS.leave()


def side_by_side(work: Callable[[Piece], Found], pieces: Iterable[Piece]) -> Iterator[Found]:
    """What `work` finds for each piece, in their order, as many at once as PyTorch has threads.

    Pieces are asked for as they are needed, and by the caller's thread alone. An error of `work` is raised in
    the place of its result; what has not begun by then does not begin.
    """
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def begun(piece: Piece) -> Found:
        # Both are a thread's own.
        with torch.inference_mode(modes[1]), torch.set_grad_enabled(modes[0]):
            return work(piece)

    with one_thread() as n_threads:
        if n_threads == 1:
            yield from map(work, pieces)
            return
        waiting: deque[Future[Found]] = deque()
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for piece in pieces:
                    waiting.append(pool.submit(begun, piece))
                    if len(waiting) > 2 * n_threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
