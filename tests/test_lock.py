"""One process holds a directory, and knows when it is no longer that directory."""

import fcntl

import pytest

from gmcli.errors import RunLocked
from gmcli.lock import LOCK, is_lock_of, is_running, take_lock


def test_a_lock_is_that_of_the_directory_it_was_taken_in(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with take_lock(out) as lock:
        assert is_lock_of(lock, out)
        out.rename(tmp_path / "moved")
        assert not is_lock_of(lock, out)
        assert is_lock_of(lock, tmp_path / "moved")
        out.mkdir()
        assert not is_lock_of(lock, out)
        (out / LOCK).touch()
        assert not is_lock_of(lock, out)


def test_a_lock_that_was_replaced_while_it_was_taken_is_not_held(tmp_path, monkeypatch):
    """Who locks a file that is no longer in the directory would work beside another one who locks the new file."""
    flock, replaced = fcntl.flock, []

    def replace_first(file, how):
        if not replaced:
            replaced.append(1)
            (tmp_path / LOCK).unlink()
            (tmp_path / LOCK).touch()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    with take_lock(tmp_path) as lock:
        assert is_lock_of(lock, tmp_path)
        assert is_running(tmp_path)
        with pytest.raises(RunLocked):
            take_lock(tmp_path)
    assert not is_running(tmp_path)
