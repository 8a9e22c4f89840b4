import threading
import time

import pytest

from gmcli.overlap import ahead


def test_values_come_in_order_and_none_is_lost():
    with ahead(iter(range(1000)), 3) as values:
        assert list(values) == list(range(1000))


def test_no_more_values_are_made_than_fit_the_queue():
    made = []

    def source():
        for i in range(100):
            made.append(i)
            yield i

    with ahead(source(), 2) as values:
        assert next(values) == 0
        deadline = time.monotonic() + 10
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        # One was taken, two wait in the queue, one waits to get into it.
        assert len(made) <= 4
    assert len(made) <= 5


def test_an_error_is_raised_where_its_value_would_have_been_taken():
    def source():
        yield 1
        yield 2
        raise ValueError("damaged")

    with ahead(source(), 5) as values:
        assert next(values) == 1
        assert next(values) == 2
        with pytest.raises(ValueError, match="damaged"):
            next(values)


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    with ahead(iter(range(10**9)), 2) as values:
        assert next(values) == 0
    assert threading.active_count() == before
