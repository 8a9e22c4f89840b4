"""A small round of `make chaos`."""

import pytest

from tests.chaos import chaos


@pytest.mark.slow
def test_random_kills_and_poison_lose_nothing(tmp_path):
    tally = chaos(
        tmp_path, items=56, poison=0.5, workers=2, kill_every_s=3, most_kills=4, checkpoint="mora-tiny", seed=1
    )
    assert tally.problems == []
    assert tally.killed.total() >= 1
