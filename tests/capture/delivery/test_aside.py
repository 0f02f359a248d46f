"""Work for a disk is done beside the loop, what follows from it within the loop."""

import threading
import time

import pytest

from capture.delivery.aside import Aside


@pytest.fixture
def aside():
    made = Aside()
    yield made
    made.close()


def test_work_is_done_in_order_and_what_follows_only_when_asked_for(aside):
    done, followed = [], []
    for number in range(3):
        aside.do(lambda number=number: done.append(number) or number, followed.append)
    while len(done) < 3:
        time.sleep(0.001)
    assert followed == []
    aside.wait()
    assert (done, followed) == ([0, 1, 2], [0, 1, 2])


def test_what_follows_is_done_by_who_asks(aside):
    threads = []
    aside.do(threading.get_ident, threads.append)
    aside.do(lambda: None, lambda _: threads.append(threading.get_ident()))
    aside.wait()
    assert threads[0] != threads[1] == threading.get_ident()


def test_what_work_raises_is_its_result(aside):
    results = []
    aside.do(lambda: 1 / 0, results.append)
    aside.do(lambda: "the next", results.append)
    aside.wait()
    assert isinstance(results[0], ZeroDivisionError)
    assert results[1] == "the next"


def test_waiting_includes_what_follows_and_the_work_that_follows_from_it(aside):
    results = []
    aside.do(lambda: 1, lambda one: aside.do(lambda: one + 1, results.append))
    aside.wait()
    assert results == [2]


def test_without_work_there_is_no_thread_and_nothing_to_wait_for():
    idle = Aside()
    idle.wait()
    idle.settle()
    assert idle._thread is None


def test_after_its_end_what_was_handed_over_is_done(aside):
    done = []
    aside.do(lambda: done.append(1))
    aside.close()
    aside._thread.join(5)
    assert done == [1]
