import json
import types

import pytest
from click.testing import CliRunner

from gmcli.backends.store import EngineKey, Store
from gmcli.cli.engines import engines
from gmcli.cli.main import Commands
from gmcli.errors import EnvironmentProblem

KEY = EngineKey(
    component="clip",
    backend="openvino",
    weights_sha256="a" * 64,
    recipe_sha256="b" * 64,
    shapes={"0": [1, 4]},
    settings={"dtype": "float32"},
    versions={"torch": "2.14.1"},
)


def build(folder):
    (folder / "clip.pt2").write_bytes(b"x" * 2_345_678)
    return {"mask_iou": 0.99987}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("GMCLI_CACHE", str(tmp_path))
    return Store()


@pytest.fixture
def gmcli():
    group = Commands("gmcli")
    group.add_command(engines)
    return lambda *arguments: CliRunner().invoke(group, ["engines", *arguments])


@pytest.fixture
def backend(monkeypatch):
    """A backend whose versions are those of the key; a test may change them."""
    fake = types.SimpleNamespace(now=dict(KEY.versions), versions=lambda device: dict(fake.now))
    monkeypatch.setattr("gmcli.backends.choose.choose_backend", lambda name: fake)
    return fake


def test_list_shows_a_line_an_engine(store, gmcli):
    assert gmcli("list").stdout == "no engines\n"
    assert json.loads(gmcli("list", "--json").stdout) == []
    assert not store.root.exists()
    engine = store.get_or_build(KEY, build)
    done = gmcli("list")
    assert done.exit_code == 0
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["COMPONENT", "BACKEND", "DTYPE", "SHAPES", "SIZE", "CREATED", "IOU", "NAME"],
        ["clip", "openvino", "float32", '{"0":[1,4]}', "2.3", "MB", engine.created, "0.999870", engine.path.name],
    ]
    [found] = json.loads(gmcli("list", "--json").stdout)
    assert found == {
        "name": engine.path.name,
        "folder": str(engine.path),
        "key": KEY.values(),
        "created": engine.created,
        "bytes": 2_345_678,
        "facts": {"mask_iou": 0.99987},
    }


def test_list_names_what_is_damaged(store, gmcli):
    engine = store.get_or_build(KEY, build)
    (engine.path / "clip.pt2").unlink()
    done = gmcli("list")
    assert done.exit_code == 0
    assert done.stdout == ""
    assert "clip.pt2: missing" in done.stderr
    assert "gmcli engines prune" in done.stderr
    [found] = json.loads(gmcli("list", "--json").stdout)
    assert found == {"name": engine.path.name, "problem": f"{engine.path / 'clip.pt2'}: missing"}


def test_verify_reads_every_byte_and_says_what_differs(store, gmcli):
    engine = store.get_or_build(KEY, build)
    good = gmcli("verify")
    assert (good.exit_code, good.stdout) == (0, "1 engines read: 0 damaged\n")
    with (engine.path / "clip.pt2").open("r+b") as file:
        file.write(b"y")
    assert gmcli("list").exit_code == 0  # a look is not a check
    bad = gmcli("verify")
    assert bad.exit_code == 5
    assert bad.stdout == "1 engines read: 1 damaged\n"
    assert f"{engine.path / 'clip.pt2'}: its content has changed" in bad.stderr
    as_json = gmcli("verify", "--json")
    assert as_json.exit_code == 5
    value = json.loads(as_json.stdout)
    assert value["engines"] == 1
    assert [problem["name"] for problem in value["problems"]] == [engine.path.name]


def test_prune_removes_damaged_and_stale_ones_and_says_why(store, gmcli, backend):
    good = store.get_or_build(KEY, build)
    assert gmcli("prune").stdout == "0 removed, 0 B\n"
    backend.now["torch"] = "2.15.0"
    would = gmcli("prune", "--dry-run")
    assert would.exit_code == 0
    assert would.stdout.startswith(f"would remove {good.path.name} (2.3 MB): torch was 2.14.1, is 2.15.0\n1 to remove")
    assert good.path.exists()
    assert gmcli("prune").stdout.startswith(f"removed {good.path.name} (2.3 MB): torch was 2.14.1")
    assert not good.path.exists()


@pytest.mark.parametrize("error", [ImportError("no module"), EnvironmentProblem("not installed")])
def test_prune_keeps_engines_of_backends_that_are_not_here(store, gmcli, backend, error):
    engine = store.get_or_build(KEY, build)

    def missing(device):
        raise error

    backend.versions = missing
    assert gmcli("prune").stdout == "0 removed, 0 B\n"
    assert engine.path.exists()


def test_prune_all_keeps_what_is_in_use(store, gmcli):
    with store.using(KEY):
        engine = store.get_or_build(KEY, build)
        done = gmcli("prune", "--all")
        assert done.stdout == f"in use, kept {engine.path.name} (2.3 MB): all were asked for\n0 removed, 0 B\n"
    assert gmcli("prune", "--all").stdout.endswith("1 removed, 2.3 MB\n")
    assert store.entries() == []


@pytest.mark.parametrize("command", ["list", "verify", "prune"])
def test_a_store_that_others_can_reach_is_refused(store, gmcli, command):
    store.get_or_build(KEY, build)
    store.root.chmod(0o777)
    done = gmcli(command)
    assert done.exit_code == 4
    assert "others can reach it" in done.stderr
    assert "hint: " in done.stderr
    assert "chmod 700" in done.stderr


def test_control_characters_do_not_reach_the_terminal(store, gmcli):
    key = EngineKey("clip", "openvino", "a" * 64, "b" * 64, ["\x1b[31m"], {"dtype": "\x1b[31m"}, {})
    store.get_or_build(key, build)
    assert "\x1b" not in gmcli("list").stdout


def test_help_says_what_each_command_does(gmcli):
    assert gmcli("--help").exit_code == 0
    for name, command in engines.commands.items():
        assert command.help, name
        assert all(option.help for option in command.params)
