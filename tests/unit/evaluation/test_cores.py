"""Pieces of work on cores of their own."""

import threading
from collections.abc import Iterator

import pytest
import torch

from lexrec.evaluation.cores import one_thread, side_by_side


@pytest.fixture(params=[1, 2, 3])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def test_results_stand_in_the_order_of_the_pieces(n_threads: int) -> None:
    assert list(side_by_side(lambda i: i * i, range(50))) == [i * i for i in range(50)]
    assert list(side_by_side(lambda i: i, [])) == []


def test_as_many_at_once_as_pytorch_has_threads(n_threads: int) -> None:
    met = threading.Barrier(n_threads)

    def work(_: int) -> int:
        met.wait(timeout=20)  # Fails unless all are here at the same time.
        return torch.get_num_threads()

    assert list(side_by_side(work, range(2 * n_threads))) == [1] * 2 * n_threads


def test_pieces_are_asked_for_here_and_not_before_they_are_needed(n_threads: int) -> None:
    asked, found = [], []

    def pieces() -> Iterator[int]:
        for i in range(40):
            asked.append((i, threading.current_thread()))
            yield i

    for i in side_by_side(lambda i: i, pieces()):
        found.append(i)
        assert len(asked) <= len(found) + 2 * n_threads + 1
    assert {thread for _, thread in asked} == {threading.current_thread()}
    assert found == list(range(40))


def test_an_error_stands_in_the_place_of_its_result_and_ends_the_work(n_threads: int) -> None:
    done: list[int] = []

    def work(i: int) -> int:
        if i == 5:
            raise KeyError(i)
        done.append(i)
        return i

    results = side_by_side(work, range(1000))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError):
        next(results)
    assert len(done) < 30


def test_modes_of_the_caller_hold_in_every_piece(n_threads: int) -> None:
    def modes(_: int) -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    assert set(side_by_side(modes, range(6))) == {(True, False)}
    with torch.no_grad():
        assert set(side_by_side(modes, range(6))) == {(False, False)}
    with torch.inference_mode():
        assert set(side_by_side(modes, range(6))) == {(False, True)}


def test_whoever_leaves_first_takes_no_thread_from_those_who_come_after() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    inside, may_leave, found = threading.Event(), threading.Event(), []

    def other() -> None:
        with one_thread() as n_usual:
            inside.set()
            may_leave.wait(20)
        found.extend([n_usual, torch.get_num_threads()])

    thread = threading.Thread(target=other)
    with one_thread():
        thread.start()
        inside.wait(20)
    assert torch.get_num_threads() == 2
    may_leave.set()
    thread.join()
    assert (found, torch.get_num_threads()) == ([2, 2], 2)
    torch.set_num_threads(before)
