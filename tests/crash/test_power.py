"""The simulated disk keeps what was fsynced and nothing else for sure."""

import random

import pytest

from tests.crash.power import Disk, File, Folder, materialise
from tests.crash.shim import Event, pattern
from tests.fakes import tree


def event(kind, path, target="", data=b"", offset=0):
    return Event(kind, offset, path, target, data)


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "start" / "d").mkdir(parents=True)
    (tmp_path / "start" / "old").write_bytes(b"old")
    return Disk(tmp_path / "start")


def left(disk, count=200):
    """Return all contents of each name that a cut may leave; None where there is no such file."""
    states = list(disk.states(random.Random(0), count))
    names = {name for state in states for name in state}
    return {name: {state.get(name) for state in states} for name in names}


def test_what_is_not_fsynced_may_be_there_or_not(disk):
    for each in (event("create", "d/new"), event("write", "d/new", data=b"abcd"), event("rename", "d/new", "old")):
        disk.apply(each)
    found = left(disk)
    assert {b"old", b"", b"ab", b"abcd"} <= found["old"]
    assert any(b"\xa5" in content for content in found["old"])


def test_a_file_and_its_directory_fsynced_are_there_for_sure(disk):
    for each in (
        event("create", "d/new"),
        event("write", "d/new", data=b"abcd"),
        event("fsync", "d/new"),
        event("rename", "d/new", "old"),
        event("fsync", ""),
    ):
        disk.apply(each)
    assert left(disk)["old"] == {b"abcd"}


def test_a_directory_fsynced_holds_names_without_contents(disk):
    for each in (event("create", "d/new"), event("write", "d/new", data=b"abcd"), event("fsync", "d")):
        disk.apply(each)
    assert None not in left(disk)["d/new"]
    assert b"" in left(disk)["d/new"]


def test_a_file_in_a_directory_that_is_not_durable_is_lost(disk):
    for each in (event("mkdir", "e"), event("create", "e/f"), event("fsync", "e/f"), event("fsync", "e")):
        disk.apply(each)
    assert any("e" not in state for state in disk.states(random.Random(0), 9))
    disk.apply(event("fsync", ""))
    assert all("e/f" in state for state in disk.states(random.Random(0), 9))


def test_removals_may_be_undone_and_reordered(disk):
    disk.apply(event("create", "d/one"))
    disk.apply(event("fsync", "d"))
    disk.apply(event("unlink", "old"))
    disk.apply(event("unlink", "d/one"))
    states = [("old" in s, "d/one" in s) for s in disk.states(random.Random(0), 50)]
    assert set(states) == {(a, b) for a in (True, False) for b in (True, False)}
    disk.apply(event("fsync", ""))
    assert not any("old" in s for s in disk.states(random.Random(0), 9))


def test_writes_in_the_middle_and_cuts(disk):
    disk.apply(event("write", "old", data=b"XY", offset=2))
    assert disk.root.seen["old"].seen == b"olXY"
    disk.apply(event("trunc", "old", offset=1))
    assert disk.root.seen["old"] is not None
    assert (disk.root.seen["old"].seen, disk.root.seen["old"].durable) == (b"o", b"old")
    assert isinstance(disk.root, Folder)
    assert isinstance(disk.root.seen["old"], File)


def test_a_state_becomes_a_folder(disk, tmp_path):
    disk.apply(event("mkdir", "d/e"))
    *_, state = disk.states(random.Random(3), 1)
    materialise(state, tmp_path / "made")
    assert tree(tmp_path / "made") == {"old": b"old"}
    assert (tmp_path / "made" / "d").is_dir()


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("out/items/a/q0.json", "out/items/*/*"),
        ("out/masks/a", "out/masks/*"),
        ("out/.tmp/" + "0a" * 16 + "/00001.png", "out/.tmp/*/*.png"),
        ("", "."),
    ],
)
def test_paths_are_counted_by_pattern(path, short):
    assert pattern(path) == short
