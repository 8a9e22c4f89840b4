import dataclasses
import fcntl
import grp
import hashlib
import json
import logging
import mmap
import os
import pwd
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmcli.backends import engine_folder
from gmcli.backends import store as store_module
from gmcli.backends.engine_folder import Engine, EngineKey, canonical, read_engine
from gmcli.backends.store import Store, default_root
from gmcli.errors import EngineError, EnvironmentProblem

KEY = EngineKey(
    component="clip",
    backend="inductor",
    weights_sha256="a" * 64,
    recipe_sha256="b" * 64,
    shapes=[[[1, 4], 3, 32, 32]],
    settings={"dtype": "float32"},
    versions={"torch": "2.14.1", "cpu": "avx512"},
)
FILES = {"clip.pt2": bytes(range(256)) * 40, "notes.txt": b"two\n"}
FACTS = {"iou": 0.9998, "max_error": 1e-6}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("GMCLI_CACHE", str(tmp_path / "cache"))
    return Store()


def build(folder):
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return FACTS


def must_not_build(folder):
    raise AssertionError("built again")


def other(**changes):
    return dataclasses.replace(KEY, **changes)


def debris(store):
    """Whatever the store holds beside locks and whole engines."""
    found = [p for p in store.root.iterdir() if p.name not in ("locks", ".tmp")] if store.root.exists() else []
    for folder in found:
        read_engine(folder, hashes=True)
    temporary = store.root / ".tmp"
    return sorted(temporary.iterdir()) if temporary.exists() else []


def rewrite(folder, change):
    """Edit engine.json as one who knows how: with the hash that belongs to the new content."""
    path = folder / "engine.json"
    value = json.loads(path.read_text())
    del value["sha256"]
    change(value)
    value["sha256"] = hashlib.sha256(canonical(value)).hexdigest()
    path.write_text(json.dumps(value))


# Round trip


def test_an_engine_is_built_once_and_found_again(store):
    assert store.find(KEY) is None
    assert not store.root.exists()
    built = store.get_or_build(KEY, build)
    again = store.get_or_build(KEY, must_not_build)
    assert again == built == store.find(KEY) == Store(store.root).find(KEY)
    assert (built.key, built.facts) == (KEY, FACTS)
    assert built.size_bytes == sum(map(len, FILES.values()))
    assert {p.name: p.read_bytes() for p in built.path.iterdir() if p.name != "engine.json"} == FILES
    assert built.path.name == f"clip-inductor-{KEY.digest[:16]}"
    assert [entry.engine for entry in store.entries()] == [built]
    assert store.verify() == []
    assert debris(store) == []


def test_nothing_is_ever_readable_by_others(store):
    old = os.umask(0)
    try:
        engine = store.get_or_build(KEY, build)
    finally:
        os.umask(old)
    for folder in (store.root, store.root / "locks", store.root / ".tmp", engine.path):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "change",
    [
        {"component": "sam_mask_decoder"},
        {"backend": "tensorrt"},
        {"weights_sha256": "c" * 64},
        {"recipe_sha256": "c" * 64},
        {"shapes": [[[1, 8], 3, 32, 32]]},
        {"settings": {"dtype": "bfloat16"}},
        {"versions": {"torch": "2.15.0", "cpu": "avx512"}},
        {"versions": {"torch": "2.14.1", "cpu": "avx2"}},
        {"versions": {"torch": "2.14.1"}},
    ],
)
def test_an_engine_of_another_key_is_not_found(store, change):
    store.get_or_build(KEY, build)
    assert store.find(other(**change)) is None
    assert store.get_or_build(other(**change), build).key == other(**change)
    assert len(store.entries()) == 2


def test_equal_keys_have_equal_digests_however_they_are_written():
    same = other(
        shapes=[((1, 4), 3, 32, 32)], versions=dict(reversed(KEY.versions.items())), settings=dict(KEY.settings)
    )
    assert same.digest == KEY.digest
    axes = other(shapes={10: 1, 9: 2})
    assert other(shapes={"9": 2, "10": 1}).digest == axes.digest != KEY.digest


@pytest.mark.parametrize(
    "change",
    [
        {"component": "../clip"},
        {"component": ""},
        {"backend": "a/b"},
        {"backend": 3},
        {"weights_sha256": "abc"},
        {"recipe_sha256": "A" * 64},
        {"settings": None},
        {"versions": {"torch": 2}},
        {"versions": {3: "x"}},
    ],
)
def test_a_key_that_is_none_is_refused(change):
    with pytest.raises(EngineError):
        other(**change)


def test_a_folder_of_the_right_name_and_the_wrong_key_is_refused(store, monkeypatch):
    monkeypatch.setattr(EngineKey, "name", "clip-inductor-0123456789abcdef")
    store.get_or_build(KEY, build)
    with pytest.raises(EngineError, match="another key"):
        store.find(other(recipe_sha256="c" * 64))


def test_publish_copies_a_folder_and_never_overwrites(store, tmp_path):
    source = tmp_path / "made"
    source.mkdir()
    build(source)
    engine = store.publish(KEY, source, FACTS)
    assert store.find(KEY) == engine
    assert sorted(p.name for p in source.iterdir()) == sorted(FILES)
    before = (engine.path.stat().st_ino, (engine.path / "engine.json").read_bytes())
    with pytest.raises(EngineError, match="is there already"):
        store.publish(KEY, source, {})
    assert (engine.path.stat().st_ino, (engine.path / "engine.json").read_bytes()) == before
    (source / "link").symlink_to("/etc/passwd")
    with pytest.raises(EngineError, match="not a plain file"):
        store.publish(other(backend="tensorrt"), source, FACTS)
    assert debris(store) == []


# Who may reach it


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o770, 0o777, 0o1777])
def test_a_root_that_others_can_reach_is_refused(store, mode):
    store.get_or_build(KEY, build)
    store.root.chmod(mode)
    for call in (
        lambda: store.find(KEY),
        lambda: store.get_or_build(KEY, must_not_build),
        lambda: store.publish(KEY, store.root, {}),
        store.entries,
        store.verify,
        store.prune,
    ):
        with pytest.raises(EnvironmentProblem, match="others can reach it") as caught:
            call()
        assert "chmod 700" in caught.value.hint
    store.root.chmod(0o700)
    assert store.find(KEY) is not None


def test_a_link_to_a_root_counts_as_what_it_points_to(store, tmp_path):
    target = tmp_path / "disk"
    target.mkdir(mode=0o700)
    store.root.parent.mkdir()
    store.root.symlink_to(target)
    assert store.get_or_build(KEY, build) == store.find(KEY)
    target.chmod(0o755)
    with pytest.raises(EnvironmentProblem, match="others can reach it"):
        store.find(KEY)


def test_another_users_root_is_refused(store, monkeypatch):
    store.get_or_build(KEY, build)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(EnvironmentProblem, match=f"belongs to user {user}, not to you"):
        store.find(KEY)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_another_users_link_is_refused(store, tmp_path):
    target = tmp_path / "disk"
    target.mkdir(mode=0o700)
    store.root.parent.mkdir()
    store.root.symlink_to(target)
    os.lchown(store.root, 12345, 12345)
    with pytest.raises(EnvironmentProblem, match="belongs to user 12345"):
        store.get_or_build(KEY, build)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o702])
def test_a_folder_above_the_root_that_others_can_write_to_is_refused(store, tmp_path, mode, monkeypatch):
    """Whoever writes there can put a root of his own in the place of ours, once ours has been looked at."""
    monkeypatch.setattr("gmcli.private._is_own_group", lambda group: False)
    store.get_or_build(KEY, build)
    for folder in (store.root.parent, tmp_path):
        folder.chmod(mode)
        for call in (lambda: store.find(KEY), lambda: store.get_or_build(KEY, must_not_build), store.entries):
            with pytest.raises(EnvironmentProblem, match=f"{folder}: others can write there") as caught:
                call()
            assert f"chmod go-w '{folder}'" in caught.value.hint
            assert "GMCLI_CACHE" in caught.value.hint
        folder.chmod(0o700)
    # Where it is sticky, as /tmp is, nobody can rename what is ours.
    store.root.parent.chmod(0o1777)
    assert store.find(KEY) is not None


def test_a_group_of_ones_own_is_nobody_else(store, monkeypatch):
    store.get_or_build(KEY, build)
    store.root.parent.chmod(0o770)
    user = pwd.getpwuid(os.geteuid()).pw_name
    for name, members, fits in (
        (user, [], True),
        (user, [user], True),
        (user, [user, "eve"], False),
        ("staff", [], False),
    ):
        monkeypatch.setattr(grp, "getgrgid", lambda _, n=name, m=members: SimpleNamespace(gr_name=n, gr_mem=m))
        if fits:
            assert store.find(KEY) is not None
            continue
        with pytest.raises(EnvironmentProblem, match="others can write there"):
            store.find(KEY)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("what", ["root", "parent", "link on the way", "engine"])
def test_what_another_user_owns_is_refused(store, tmp_path, what):
    engine = store.get_or_build(KEY, build)
    if what == "root":
        os.chown(store.root, 12345, 12345)
    if what == "parent":
        os.chown(store.root.parent, 12345, 12345)
    if what == "link on the way":
        store.root.parent.rename(tmp_path / "disk")
        store.root.parent.symlink_to("disk")
        assert store.find(KEY) is not None
        os.lchown(store.root.parent, 12345, 12345)
    if what == "engine":  # its folder: in our root, where nobody else can go, that is no way in
        os.chown(engine.path, 12345, 12345)
        assert store.find(KEY) is not None
        return
    with pytest.raises(EnvironmentProblem, match="user 12345"):
        store.find(KEY)


def test_a_circle_of_links_ends(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(EnvironmentProblem, match="cannot be kept here"):
        Store(tmp_path / "a" / "engines").entries()


def test_another_engine_in_the_place_of_one_is_refused(store):
    """Its files fit its manifest, and both are not what the key asks for."""
    engine = store.get_or_build(KEY, build)
    stranger = store.get_or_build(other(weights_sha256="c" * 64), lambda f: (f / "evil.so").write_bytes(b"x") and FACTS)
    shutil.rmtree(engine.path)
    stranger.path.rename(engine.path)
    with pytest.raises(EngineError, match="its key is that of another engine"):
        store.find(KEY)


def test_what_cannot_be_a_root_is_an_environment_problem(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "engines"):
        with pytest.raises(EnvironmentProblem):
            Store(root).get_or_build(KEY, must_not_build)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(EnvironmentProblem, match="cannot be kept here"):
        Store(tmp_path / "link").get_or_build(KEY, must_not_build)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("GMCLI_CACHE", raising=False)
    monkeypatch.setattr(store_module.Path, "home", no_home)
    with pytest.raises(EnvironmentProblem, match="home directory"):
        default_root()


def test_a_disk_without_locks_is_named(store, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(EnvironmentProblem, match="Function not implemented") as caught:
        store.get_or_build(KEY, must_not_build)
    assert "local disk" in caught.value.hint


def test_engines_on_a_read_only_disk_can_be_used(store, monkeypatch):
    engine = store.get_or_build(KEY, build)
    real = os.open

    def read_only(path, flags, *args, **kw):
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(30, "Read-only file system", str(path))
        return real(path, flags, *args, **kw)

    monkeypatch.setattr(os, "open", read_only)
    with store.using(KEY):
        assert store.get_or_build(KEY, must_not_build) == engine
    with pytest.raises(EnvironmentProblem, match="Read-only file system"):
        store.get_or_build(other(backend="tensorrt"), must_not_build)


# Damage


def damaged(name):
    """Return a function that damages an engine's folder, and the words that name it."""

    def flip(folder):
        content = bytearray((folder / "clip.pt2").read_bytes())
        content[5000] ^= 1
        (folder / "clip.pt2").write_bytes(content)

    def truncate(folder):
        os.truncate(folder / "clip.pt2", 100)

    def miss(folder):
        (folder / "clip.pt2").unlink()

    def add(folder):
        (folder / "evil.so").write_bytes(b"\x7fELF")

    def link(folder):
        content = (folder / "clip.pt2").read_bytes()
        outside = folder.parent / "outside"
        outside.write_bytes(content)
        (folder / "clip.pt2").unlink()
        (folder / "clip.pt2").symlink_to(outside)

    def pipe(folder):
        (folder / "clip.pt2").unlink()
        os.mkfifo(folder / "clip.pt2")

    def pipe_manifest(folder):
        (folder / "engine.json").unlink()
        os.mkfifo(folder / "engine.json")

    def sub(folder):
        (folder / "sub").mkdir()

    def odd(folder):
        (folder / ".hidden").write_bytes(b"")

    def no_manifest(folder):
        (folder / "engine.json").unlink()

    def linked_manifest(folder):
        (folder / "engine.json").rename(folder.parent / "outside")
        (folder / "engine.json").symlink_to(folder.parent / "outside")

    def long_manifest(folder):
        with (folder / "engine.json").open("ab") as file:
            file.write(b" " * (1 << 20))

    def empty(folder):
        for path in folder.iterdir():
            path.unlink()

    def linked_folder(folder):
        folder.rename(folder.parent / "outside")
        folder.symlink_to(folder.parent / "outside")

    def no_folder(folder):
        shutil.rmtree(folder)
        folder.write_bytes(b"")

    return {
        "flip": (flip, r"clip\.pt2: its content has changed"),
        "truncate": (truncate, r"clip\.pt2: has 100 bytes, had 10240"),
        "miss": (miss, r"clip\.pt2: missing"),
        "add": (add, r"evil\.so: engine\.json does not know it"),
        "link": (link, r"clip\.pt2: not a plain file"),
        "pipe": (pipe, r"clip\.pt2: not a plain file"),
        "pipe_manifest": (pipe_manifest, r"engine\.json: not an engine's manifest"),
        "sub": (sub, r"sub: not a plain file"),
        "odd": (odd, r"'\.hidden'"),
        "no_manifest": (no_manifest, r"engine\.json: cannot be read \(No such file"),
        "linked_manifest": (linked_manifest, r"engine\.json: cannot be read \(Too many levels"),
        "long_manifest": (long_manifest, r"engine\.json: too long"),
        "empty": (empty, r"engine\.json: cannot be read"),
        "linked_folder": (linked_folder, r"not a folder"),
        "no_folder": (no_folder, r"not a folder"),
    }[name]


DAMAGES = [
    *("flip", "truncate", "miss", "add", "link", "pipe", "pipe_manifest", "sub", "odd"),
    *("no_manifest", "linked_manifest", "long_manifest", "empty", "linked_folder", "no_folder"),
]


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_engine_is_named_never_used_and_built_again(store, name, caplog, monkeypatch):
    damage, words = damaged(name)
    engine = store.get_or_build(KEY, build)
    damage(engine.path)
    with pytest.raises(EngineError, match=words) as caught:
        store.find(KEY)
    assert "gmcli engines prune" in caught.value.hint
    [(found, problem)] = store.verify()
    assert found == engine.path.name
    assert problem == caught.value.message
    monkeypatch.setattr(logging.getLogger("gmcli"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="gmcli.store"):
        again = store.get_or_build(KEY, build)
    assert [r.getMessage() for r in caplog.records] == [f"{problem}; it is not used but built again"]
    assert (again.files, again.facts) == (engine.files, engine.facts)
    assert store.get_or_build(KEY, must_not_build) == again
    assert store.verify() == []


@pytest.mark.parametrize("name", DAMAGES)
def test_prune_removes_a_damaged_engine_and_nothing_beside_it(store, name):
    damage, _ = damaged(name)
    good = store.get_or_build(other(backend="tensorrt"), build)
    engine = store.get_or_build(KEY, build)
    damage(engine.path)
    [would] = store.prune(dry_run=True)
    assert os.path.lexists(engine.path)
    [pruned] = store.prune()
    assert would == pruned
    assert pruned.name == engine.path.name
    assert not os.path.lexists(engine.path)
    assert (store.root / "outside").exists() == ("link" in name)
    assert [entry.engine for entry in store.entries()] == [good]
    assert store.prune() == []


def test_any_changed_byte_of_the_manifest_is_noticed_or_changes_nothing(store):
    engine = store.get_or_build(KEY, build)
    path = engine.path / "engine.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with suppress(EngineError):
            assert read_engine(engine.path, hashes=False) == engine
    for end in range(0, len(whole) - 1, 7):  # without its last line end, it is whole
        path.write_bytes(whole[:end])
        with pytest.raises(EngineError):
            read_engine(engine.path, hashes=False)


def nested(value, *path):
    for name in path:
        value = value[name]
    return value


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("format 2", lambda m: m.update(format=2)),
        ("format True", lambda m: m.update(format=True)),
        ("format None", lambda m: m.pop("format")),
        ("not an engine's manifest", lambda m: m.pop("facts")),
        ("not an engine's manifest", lambda m: m.update(pickle="gASVAAAA")),
        ("not an engine's manifest", lambda m: m.update(created="now")),
        ("not an engine's manifest", lambda m: m.update(facts=[])),
        ("key is that of another", lambda m: m["key"].update(recipe_sha256="d" * 64)),
        ("key is that of another", lambda m: m["key"]["versions"].update(torch="9")),
        ("key is that of another", lambda m: m.update(key_sha256="d" * 64)),
        ("key is not an engine's", lambda m: m["key"].pop("shapes")),
        ("key is not an engine's", lambda m: m.update(key=3)),
        ("component must match", lambda m: m["key"].update(component="../../etc")),
        ("files are not", lambda m: m.update(files={})),
        ("files are not", lambda m: m.update(files=[])),
        ("files are not", lambda m: m["files"].update({"../evil": {"sha256": "d" * 64, "bytes": 0}})),
        ("files are not", lambda m: m["files"].update({"..": {"sha256": "d" * 64, "bytes": 0}})),
        ("files are not", lambda m: m["files"].update({"/etc/passwd": {"sha256": "d" * 64, "bytes": 0}})),
        ("files are not", lambda m: m["files"].update({"a\0b": {"sha256": "d" * 64, "bytes": 0}})),
        ("files are not", lambda m: m["files"].update({"engine.json": {"sha256": "d" * 64, "bytes": 0}})),
        ("files are not", lambda m: m["files"]["clip.pt2"].update(bytes=True)),
        ("files are not", lambda m: m["files"]["clip.pt2"].update(bytes=-1)),
        ("files are not", lambda m: m["files"]["clip.pt2"].update(sha256="D" * 64)),
        ("files are not", lambda m: m["files"]["clip.pt2"].update(mode=0o4755)),
        ("clip.pt2: its content", lambda m: m["files"]["clip.pt2"].update(sha256="d" * 64)),
        ("clip.pt2: has 10240 bytes, had 7", lambda m: m["files"]["clip.pt2"].update(bytes=7)),
        ("clip.pt2: engine.json does not know", lambda m: m["files"].pop("clip.pt2")),
        ("more: missing", lambda m: m["files"].update(more={"sha256": "d" * 64, "bytes": 0})),
    ],
)
def test_a_foreign_manifest_is_refused_though_its_own_hash_fits(store, words, change):
    engine = store.get_or_build(KEY, build)
    rewrite(engine.path, change)
    with pytest.raises(EngineError, match=words):
        store.find(KEY)


def test_an_engine_copied_to_another_name_is_refused(store):
    engine = store.get_or_build(KEY, build)
    key = other(versions={"torch": "2.15.0"})
    shutil.copytree(engine.path, store.root / key.name)
    with pytest.raises(EngineError, match="its key is that of another engine"):
        store.find(key)


def test_a_hash_that_is_not_checked_is_not_trusted(store):
    engine = store.get_or_build(KEY, build)
    path = engine.path / "engine.json"
    path.write_text(path.read_text().replace("0.9998", "1.0"))
    with pytest.raises(EngineError, match=r"engine\.json: its content has changed"):
        store.find(KEY)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def paths_of(value, path=()):
    yield path
    if isinstance(value, dict):
        for name in value:
            yield from paths_of(value[name], (*path, name))
    if isinstance(value, list):
        for i, each in enumerate(value):
            yield from paths_of(each, (*path, i))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("h") / "engines")
    engine = store.get_or_build(KEY, build)
    return engine, json.loads((engine.path / "engine.json").read_text())


@settings(max_examples=300, derandomize=True, deadline=None)
@given(data=st.data())
def test_whatever_the_manifest_says_is_read_or_refused(manifest, data):
    engine, value = manifest
    value = json.loads(json.dumps(value))
    path = data.draw(st.sampled_from([p for p in paths_of(value) if p]))
    new = data.draw(JSON)
    parent = nested(value, *path[:-1])
    action = data.draw(st.sampled_from(["replace", "remove", "add"]))
    if action == "replace":
        parent[path[-1]] = new
    elif action == "remove":
        del parent[path[-1]]
    elif isinstance(parent, dict):
        parent[data.draw(st.text(max_size=8))] = new
    else:
        parent.append(new)
    if data.draw(st.booleans()) and "sha256" in value:
        with suppress(ValueError):  # a float that JSON has no word for
            value["sha256"] = hashlib.sha256(canonical({k: v for k, v in value.items() if k != "sha256"})).hexdigest()
    (engine.path / "engine.json").write_text(json.dumps(value))
    try:
        found = read_engine(engine.path, hashes=True)
    except EngineError:
        return
    # Only what no use of the engine depends on can have been edited so.
    assert (found.key.digest, found.files) == (KEY.digest, engine.files)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(content=st.binary(max_size=60) | JSON.map(lambda v: json.dumps(v).encode()) | st.just(b"[" * 100_000))
def test_any_bytes_for_a_manifest_are_refused(manifest, content):
    engine, _ = manifest
    (engine.path / "engine.json").write_bytes(content)
    with pytest.raises(EngineError):
        read_engine(engine.path, hashes=True)


def test_too_many_open_files_is_not_damage(store, monkeypatch):
    store.get_or_build(KEY, build)

    def exhausted(*args, **kw):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(engine_folder, "_hash_file", exhausted)
    with pytest.raises(OSError, match="Too many open files"):
        store.get_or_build(KEY, must_not_build)
    monkeypatch.undo()
    assert Store(store.root).get_or_build(KEY, must_not_build)


# Failing builds


def test_what_a_build_raises_passes_through_and_leaves_nothing(store):
    def fail(folder):
        build(folder)
        raise ZeroDivisionError("in the compiler")

    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="in the compiler"):
            store.get_or_build(KEY, fail)
        assert store.find(KEY) is None
        assert debris(store) == []
    assert store.get_or_build(KEY, build).facts == FACTS


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("wrote no files", lambda folder: {}),
        ("wrote no files", lambda folder: (folder / "engine.json").write_text("{}") and {}),
        ("not a plain file", lambda folder: (folder / "sub").mkdir() or {}),
        ("not a plain file", lambda folder: (folder / "link").symlink_to("/etc/passwd") or {}),
        ("named '.hidden'", lambda folder: (folder / ".hidden").touch() or {}),
        ("cannot be written as JSON", lambda folder: {**build(folder), "iou": float("nan")}),
        ("cannot be written as JSON", lambda folder: {**build(folder), "path": Path("x")}),
        ("are too long", lambda folder: {**build(folder), "log": "x" * (1 << 20)}),
    ],
)
def test_a_build_that_makes_no_engine_is_refused(store, words, wrong):
    with pytest.raises(EngineError, match=words):
        store.get_or_build(KEY, wrong)
    assert store.entries() == []
    assert debris(store) == []


def test_a_full_disk_leaves_nothing_half_published(store):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 3, 200, 5000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                store.get_or_build(KEY, build)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert store.entries() == []
        assert debris(store) == []

    def small(folder):
        (folder / "small").write_bytes(b"x")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        return FACTS

    try:
        with pytest.raises(OSError, match="File too large"):
            store.get_or_build(KEY, small)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.entries() == []
    assert debris(store) == []
    assert store.get_or_build(KEY, build)


def test_an_engine_gets_its_name_only_when_all_of_it_is_durable(store, monkeypatch):
    store.get_or_build(other(backend="tensorrt"), build)
    done = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor):
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".")[0])
        fsync(descriptor)

    def note_rename(source, target):
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    store.get_or_build(KEY, build)
    assert done == ["clip", "notes", "engine", KEY.name, "rename", "engines"]


STEPS = ("fsync", "rename", "mkdir")


def test_an_error_at_any_step_leaves_nothing_or_a_whole_engine(store, monkeypatch):
    outcomes = []
    for fail_at in range(100):
        shutil.rmtree(store.root, ignore_errors=True)
        left = fail_at
        with monkeypatch.context() as patch:

            def step(real):
                def call(*args, **kw):
                    nonlocal left
                    left -= 1
                    if left < 0:
                        raise OSError(5, "Input/output error")
                    return real(*args, **kw)

                return call

            for name in STEPS:
                patch.setattr(os, name, step(getattr(os, name)))
            try:
                store.get_or_build(KEY, build)
            except (OSError, EnvironmentProblem):
                outcomes.append("failed")
            else:
                outcomes.append("done")
        assert debris(store) == []
        store.get_or_build(KEY, build if store.find(KEY) is None else must_not_build)
        if outcomes[-1] == "done":
            break
    assert outcomes[-1] == "done"
    assert len(outcomes) > 8


# Several processes

CHILD = f"""
import os, signal, sys, time
from pathlib import Path
from gmcli.backends.engine_folder import EngineKey
from gmcli.backends.store import Store
import logging
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
KEY = {KEY!r}
FILES = {FILES!r}
FACTS = {FACTS!r}
root, log = Path(sys.argv[1]), sys.argv[2]
store = Store(root)
def note(text):
    with open(log, "a") as file:
        file.write(text + "\\n")
def wait_for(name):
    while not (root.parent / name).exists():
        time.sleep(0.01)
def build(folder, hold=0.3):
    note("begin %d" % os.getpid())
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    time.sleep(hold)
    note("end %d" % os.getpid())
    return FACTS
"""


def child(store, body):
    code = CHILD + body
    store.root.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(store.root), str(store.root.parent / "log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def notes(store):
    path = store.root.parent / "log"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("count", [2, 8])
def test_of_several_processes_one_builds_and_all_get_the_same(store, count):
    children = [
        child(
            store,
            "note('ready')\nwait_for('go')\n"
            "engine = store.get_or_build(KEY, build)\nprint(engine.path.stat().st_ino, engine.created)\n",
        )
        for _ in range(count)
    ]
    wait_until(lambda: notes(store).count("ready") == count)
    (store.root.parent / "go").touch()
    said = [process.communicate(timeout=30) for process in children]
    assert [process.returncode for process in children] == [0] * count, said
    assert len({out for out, _ in said}) == 1
    assert [line for line in notes(store) if line != "ready"] == ["begin", "end"]
    waited = [err for _, err in said if f"another process is building {KEY.name}; waiting" in err]
    assert 1 <= len(waited) <= count - 1
    assert debris(store) == []


def test_threads_of_one_process_wait_for_each_other_too(store):
    built = []

    def slowly(folder):
        time.sleep(0.3)
        built.append(folder)
        return build(folder)

    with ThreadPoolExecutor(4) as pool:
        engines = list(pool.map(lambda _: store.get_or_build(KEY, slowly), range(4)))
    assert len(built) == 1
    assert engines == [engines[0]] * 4


def test_engines_of_several_components_are_built_one_at_a_time(store):
    children = [
        child(
            store,
            f"import dataclasses\nKEY = dataclasses.replace(KEY, component='c{i}')\nstore.get_or_build(KEY, build)\n",
        )
        for i in range(3)
    ]
    assert [process.wait(timeout=30) for process in children] == [0, 0, 0]
    for process in children:
        process.communicate()
    assert notes(store) == ["begin", "end"] * 3
    assert len(store.entries()) == 3


def test_when_a_builder_is_killed_the_next_takes_over_and_no_debris_stays(store):
    builder = child(store, "store.get_or_build(KEY, lambda folder: build(folder, 60))\n")
    wait_until(lambda: notes(store) == ["begin"])
    wait_until(lambda: any((store.root / ".tmp").glob("*/notes.txt")))
    waiter = child(store, "store.get_or_build(KEY, lambda folder: build(folder, 0))\n")
    assert "waiting" in waiter.stderr.readline()
    assert store.prune() == []  # what is being built is nobody's but its builder's
    assert len(debris(store)) == 1
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    waiter.communicate(timeout=30)
    assert waiter.returncode == 0
    assert notes(store) == ["begin", "begin", "end"]
    assert debris(store) == []
    assert store.get_or_build(KEY, must_not_build)


def test_a_kill_at_any_step_leaves_nothing_or_a_whole_engine(store):
    for fail_at in range(100):
        shutil.rmtree(store.root, ignore_errors=True)
        killed = child(
            store,
            f"left = {fail_at}\n"
            "def step(real):\n"
            "    def call(*args, **kw):\n"
            "        global left\n"
            "        left -= 1\n"
            "        if left < 0:\n"
            "            os.kill(os.getpid(), signal.SIGKILL)\n"
            "        return real(*args, **kw)\n"
            "    return call\n"
            f"for name in {STEPS}:\n"
            "    setattr(os, name, step(getattr(os, name)))\n"
            "store.get_or_build(KEY, lambda folder: build(folder, 0))\n",
        )
        killed.communicate(timeout=30)
        assert killed.returncode in (0, -signal.SIGKILL)
        # Whatever it left, there is at most a whole engine under its name, and the next builder cleans up.
        assert store.verify() == []
        store.get_or_build(KEY, build if store.find(KEY) is None else must_not_build)
        store.prune()
        assert debris(store) == []
        if killed.returncode == 0:
            return
    raise AssertionError("never done")


def test_a_process_forked_by_a_build_does_not_keep_the_lock(store):
    parent = child(
        store,
        "def forks(folder):\n"
        "    if os.fork() == 0:\n"
        "        os.close(1); os.close(2)\n"
        "        wait_for('go')\n"
        "        os._exit(0)\n"
        "    return build(folder, 0)\n"
        "store.get_or_build(KEY, forks)\n",
    )
    try:
        parent.communicate(timeout=30)
        assert parent.returncode == 0
        assert store.get_or_build(other(backend="tensorrt"), build)
    finally:
        (store.root.parent / "go").touch()


# Pruning


def test_prune_removes_what_contradicts_the_versions_of_every_device(store):
    mine = store.get_or_build(KEY, build)
    old = store.get_or_build(other(versions={"torch": "2.9.0", "cpu": "avx512"}), build)
    card = store.get_or_build(other(versions={"torch": "2.14.1", "gpu": "H100"}), build)
    unknown = store.get_or_build(other(backend="tensorrt", versions={"torch": "1.0"}), build)
    here = {"inductor": [dict(KEY.versions), {"torch": "2.14.1", "gpu": "A100"}]}
    assert store.prune() == store.prune({"inductor": []}) == []
    [would] = store.prune(here, dry_run=True)
    assert (would.name, would.reason) == (old.path.name, "torch was 2.9.0, is 2.14.1")
    assert would.bytes > old.size_bytes
    assert store.find(old.key) == old
    assert store.prune(here) == [would]
    assert store.find(old.key) is None
    left = [engine.path.name for engine in (mine, card, unknown)]
    assert [entry.name for entry in store.entries()] == sorted(left)
    [pruned] = store.prune({"inductor": [{"torch": "2.14.1", "cpu": "avx2", "gpu": "A100"}]}, dry_run=True)[:1]
    assert pruned.reason in ("cpu was avx512, is avx2", "gpu was H100, is A100")


def test_prune_all_leaves_what_is_not_an_engine(store):
    store.get_or_build(KEY, build)
    store.get_or_build(other(component="sam_mask_decoder"), build)
    (store.root / "notes").mkdir()
    assert [p.reason for p in store.prune(everything=True)] == ["all were asked for"] * 2
    assert sorted(p.name for p in store.root.iterdir()) == [".tmp", "locks", "notes"]
    assert not list((store.root / ".tmp").iterdir())
    assert store.find(KEY) is None


def test_prune_keeps_what_is_being_loaded(store):
    with store.using(KEY):
        engine = store.get_or_build(KEY, build)
        [pruned] = store.prune(everything=True)
        assert pruned.in_use
        assert store.find(KEY) == engine
    [pruned] = store.prune(everything=True)
    assert not pruned.in_use
    assert store.find(KEY) is None


def test_a_damaged_engine_is_replaced_while_another_process_uses_it(store):
    with store.using(KEY):
        engine = store.get_or_build(KEY, build)
        (engine.path / "clip.pt2").write_bytes(b"")
        again = store.get_or_build(KEY, build)
    assert again.files == engine.files


def test_a_mapped_file_outlives_its_removal(store):
    engine = store.get_or_build(KEY, build)
    with (engine.path / "clip.pt2").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert len(store.prune(everything=True)) == 1
        assert not engine.path.exists()
        assert mapped[:] == FILES["clip.pt2"]


def test_prune_removes_what_a_dead_builder_left(store):
    store.get_or_build(KEY, build)
    left = store.root / ".tmp" / f"{KEY.name}.1.aaaaaaaa"
    left.mkdir()
    (left / "clip.pt2").write_bytes(b"half")
    [would] = store.prune(dry_run=True)
    assert (would.name, would.bytes, would.reason) == (f".tmp/{left.name}", 4, "left by a process that died")
    assert left.exists()
    assert store.prune() == [would]
    assert not left.exists()
    assert store.find(KEY)


def test_looking_creates_nothing(store):
    assert store.entries() == store.verify() == store.prune() == []
    assert store.find(KEY) is None
    assert not store.root.parent.exists()


def test_the_store_needs_no_torch():
    code = "import sys, gmcli.backends.store; print([m for m in ('torch', 'numpy', 'yaml') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_engine_is_a_plain_value(store):
    engine = store.get_or_build(KEY, build)
    assert isinstance(engine, Engine)
    assert engine.created.endswith("Z")
    with pytest.raises(dataclasses.FrozenInstanceError):
        engine.created = "x"
