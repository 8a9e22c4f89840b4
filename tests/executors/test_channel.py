import os
import socket
import threading

import pytest

from gmcli.executors.channel import DriverEnd, WorkerEnd, _frame
from gmcli.executors.pulse import Pulse, make_pulse


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    driver, worker = DriverEnd(ours), WorkerEnd(theirs.detach())
    yield driver, worker
    ours.close()
    worker._socket.close()


def test_messages_arrive_whole_and_in_order(ends):
    driver, worker = ends
    for message in ("a", {"b": 1}, b"c" * 1000):
        worker.send(message)
    assert list(driver.receive()) == ["a", {"b": 1}, b"c" * 1000]
    assert list(driver.receive()) == []
    assert not driver.ended
    driver.send("down")
    driver.send(7)
    assert (worker.receive(), worker.receive()) == ("down", 7)


def test_half_a_message_is_kept_until_the_rest_is_there(ends):
    driver, worker = ends
    data = _frame("first") + _frame(list(range(100)))
    for start in range(0, len(data), 5):
        worker._socket.sendall(data[start : start + 5])
        found = list(driver.receive())
        if found:
            assert found == (["first"] if start < 40 else [list(range(100))])
    assert found == [list(range(100))]


def test_what_an_ended_worker_left_is_delivered_but_for_a_torn_message(ends):
    driver, worker = ends
    worker.send("whole")
    worker._socket.sendall(_frame("torn")[:-1])
    worker._socket.shutdown(socket.SHUT_RDWR)
    assert list(driver.rest()) == ["whole"]
    assert driver.ended


def test_the_driver_does_not_wait_for_a_worker_that_does_not_read(ends):
    driver, worker = ends
    long = os.urandom(3_000_000)
    driver.send(long)
    assert driver.unsent
    got = []
    reader = threading.Thread(target=lambda: got.append(worker.receive()))
    reader.start()
    while driver.unsent:
        driver.flush()
    reader.join()
    assert got == [long]


def test_each_end_says_that_the_other_is_gone():
    ours, theirs = socket.socketpair()
    worker = WorkerEnd(theirs.detach())
    ours.close()
    with pytest.raises(EOFError):
        worker.receive()
    with pytest.raises(OSError, match="Broken pipe"):
        worker.send("x")
    worker._socket.close()
    ours, theirs = socket.socketpair()
    driver = DriverEnd(ours)
    theirs.close()
    driver.send("x")
    assert not driver.unsent
    assert list(driver.receive()) == []
    assert driver.ended
    ours.close()


def test_a_pulse_is_seen_from_the_other_side():
    fd = make_pulse()
    worker, driver = Pulse(fd), Pulse(fd)
    os.close(fd)
    assert driver.look() == (0, "")
    worker.beat("decode")
    worker.beat("sam_encoder")
    assert driver.look() == (2, "sam_encoder")
    worker.beat("")
    assert driver.look() == (3, "")
    worker.close()
    driver.close()
