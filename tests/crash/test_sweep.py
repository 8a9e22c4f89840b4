"""A selection of `make crash-sweep`: the same points, fewer of them; and bugs that it must find."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.crash.plants import PLANTS

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler (cc)"
)

# How many of the points are tried: each n-th. All kinds of operations are among them, in some scenario.
EVERY = {
    "before": 4,
    "after": 16,
    "torn": 16,
    "power": 12,
    "SIGTERM": 20,
    "SIGINT": 20,
    "moved": 20,
    "replaced": 20,
    "short write": 16,
    "full disk": 16,
    "ENOSPC once,ENOSPC from there": 32,
    "EIO once,EDQUOT once,EACCES once,ESTALE once": 48,
    "EIO from there,EDQUOT from there,EACCES from there,ESTALE from there": 48,
    "lost reply,lost reply (EIO)": 20,
    "damage,concurrent starts,wrong clock,processes,stopped": 1,
}


def sweep(tmp_path, *arguments):
    command = [sys.executable, "-m", "tests.crash.sweep", "--json", tmp_path / "tally.json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (tmp_path / "tally.json").exists(), done.stdout + done.stderr
    return done, json.loads((tmp_path / "tally.json").read_text())


@pytest.mark.parametrize("kinds", EVERY)
def test_every_point_survives(tmp_path, kinds):
    done, tally = sweep(tmp_path, "--kinds", kinds, "--every", str(EVERY[kinds]), "--short")
    assert done.returncode == 0, done.stdout
    assert list(tally) == kinds.split(",")
    for one in tally.values():
        assert one["survived"] == one["tried"] > 1
        assert one["lost"] == one["duplicated"] == one["corrupt"] == one["odd"] == 0


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_bug_is_found(tmp_path, plant):
    every = "1" if plant in ("rename before fsync", "short write unnoticed", "write in place") else "5"
    done, tally = sweep(tmp_path, "--plant", plant, "--every", every, "--stop")
    assert done.returncode == 1, done.stdout
    (one,) = tally.values()
    assert one["lost"] + one["duplicated"] + one["corrupt"] > 0
