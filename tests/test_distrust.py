"""Run directories that somebody hands over: every command reads them, none is led out of them, none obeys what they say."""

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gmcli.cli.main import cli
from gmcli.distrust import MAX_JSON_VALUES, load_json, open_file, refuse_links
from gmcli.errors import ConfigError
from gmcli.kept_manifest import manifest_content
from gmcli.ledger import Ledger
from tests.report.sample import IDENTITY, make_tasks, write_run

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
COMMANDS = (
    ("status",),
    ("status", "--json"),
    ("verify",),
    ("eval", "--allow-missing", "--workers", "1"),
    ("report", "-o", "page.html"),
    ("render", "--format", "sheet"),
    ("verify", "--redo"),
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    tasks, scenes = make_tasks(folder, videos=1, questions=2, scenes=1, frames=4)
    run = write_run(folder / "run", tasks, scenes, spoil=False)
    (run / "manifest.jsonl").write_bytes(manifest_content(tasks))
    return run


def line(**values: Any) -> bytes:
    text = json.dumps(values, separators=(",", ":")).encode()[:-1]
    return text + b',"crc":"%08x"}\n' % zlib.crc32(text)


def change_item(run: Path, **fields: Any) -> None:
    """Change an item, and the ledger with it: whoever hands a run over can write both."""
    path = run / "items/match000/q0.json"
    content = json.dumps(json.loads(path.read_bytes()) | fields).encode()
    path.write_bytes(content)
    records = [json.loads(record) for record in (run / "ledger.jsonl").read_bytes().splitlines()]
    for record in records:
        del record["crc"]
        if record["question"] == "q0":
            record["sha256"] = hashlib.sha256(content).hexdigest()
    (run / "ledger.jsonl").write_bytes(b"".join(line(**record) for record in records))


def add_line(run: Path, **values: Any) -> None:
    with (run / "ledger.jsonl").open("ab") as file:
        file.write(line(**{"status": "done", "inputs": {}, "sha256": "a" * 64} | values))


def link(path: Path, target: str) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def write_totals(run: Path, **fields: Any) -> None:
    (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_bytes()) | fields))


BOMB = "a: &a [x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
ANSI = "\x1b[31m\u202e\x9b\n2026 error: forged"
HOSTILE: dict[str, Callable[[Path], Any]] = {
    "an id that leads out": lambda run: add_line(run, video="../..", question="secret"),
    "an id of control characters": lambda run: add_line(run, video=ANSI, question="q"),
    "an error of control characters": lambda run: add_line(run, video="w", question="q", status="failed", error=ANSI),
    "names that lead out": lambda run: change_item(run, masks=None, names=[f"../../../../../{n}" for n in range(4)]),
    "hashes that lead out": lambda run: change_item(run, png_sha256={"../../../../secret.json": "0"}),
    "frames that are none": lambda run: change_item(run, frames=[[], {}, "a", 10**30]),
    "masks that are none": lambda run: change_item(run, masks=[1, None, {}, []]),
    "a mask of 10^18 pixels": lambda run: change_item(run, masks=[{"size": [10**9, 10**9], "counts": "0"}] * 4),
    "a mask of broken counts": lambda run: change_item(run, masks=[{"size": [180, 320], "counts": "oooooooo"}] * 4),
    "a window that is none": lambda run: change_item(run, span=["a", {}]),
    "an answer to be obeyed": lambda run: change_item(run, answer=f"{ANSI}\ud800", type=[ANSI], text=3, score="x"),
    "no number as score": lambda run: change_item(run, score=float("nan")),
    "an item without end": lambda run: (run / "items/match000/q0.json").write_bytes(b"[" * 100_000),
    "an item that is a link": lambda run: link(run / "items/match000/q0.json", "/etc/passwd"),
    "items elsewhere": lambda run: link(run / "items/match000", "/etc"),
    "settings that grow": lambda run: (run / "config.yaml").write_text(BOMB),
    "settings that run": lambda run: (run / "config.yaml").write_text(
        "!!python/object/apply:os.system ['touch pwned']"
    ),
    "settings to be obeyed": lambda run: (run / "config.yaml").write_text(f"checkpoint: {json.dumps(ANSI)}\n"),
    "settings in a pipe": lambda run: ((run / "config.yaml").unlink(), os.mkfifo(run / "config.yaml")),
    "a ledger in a pipe": lambda run: ((run / "ledger.jsonl").unlink(), os.mkfifo(run / "ledger.jsonl")),
    "an item in a pipe": lambda run: (
        (run / "items/match000/q0.json").unlink(),
        os.mkfifo(run / "items/match000/q0.json"),
    ),
    "totals of text": lambda run: write_totals(run, totals={"questions": "x"}),
    "totals beyond reason": lambda run: write_totals(run, totals={"questions": -(10**30), "done": 10**30}),
    "facts to be obeyed": lambda run: write_totals(
        run, started=ANSI, reason=ANSI, host=[ANSI], workers=[{"device": ANSI}], versions={ANSI: ANSI}, counts=3
    ),
    "former questions of text": lambda run: write_totals(run, questions_of_former_manifests={"done": "x"}),
    "a file of the past": lambda run: write_totals(run, files={"../../../../etc/passwd": "0", "a": []}),
    "a sign of life to be obeyed": lambda run: (run / "heartbeat.json").write_text(
        json.dumps({"run_id": None, "time": ANSI, "frames": ANSI, "at_work": [1]})
    ),
    "a manifest to be obeyed": lambda run: (run / "manifest.jsonl").write_text(
        json.dumps({"id": "v", "path": f"/x{ANSI}", "questions": [{"id": "q", "text": "t"}]}) + "\n"
    ),
    "a manifest that is none": lambda run: (run / "manifest.jsonl").write_bytes(b"\xff\x1b[31m\n"),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_run_of_a_stranger(hostile: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    secret = json.dumps({"frames": [0], "names": ["x"], "answer": "SECRET"})
    for command in COMMANDS:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(sound, tmp_path / "run")
        (tmp_path / "secret.json").write_text(secret)
        HOSTILE[hostile](tmp_path / "run")
        done = CliRunner().invoke(cli, [command[0], "run", *command[1:]])
        assert done.exception is None or isinstance(done.exception, SystemExit), (command, done.exception)
        assert done.exit_code in (0, 3, 4, 6), (command, done.output)
        assert OBEYED.search(done.output) is None, (command, ascii(done.output))
        assert not re.search("^2026 error: forged", done.output, re.MULTILINE)
        assert "SECRET" not in done.output
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "secret.json", "page.html"}
    page = tmp_path / "page.html"
    assert not page.exists() or ("SECRET" not in page.read_text() and "\x1b" not in page.read_text())


@pytest.mark.parametrize(
    "name", ["items", "masks", "logs", ".tmp", "ledger.jsonl", "items/v", "masks/v", "logs/driver.log"]
)
def test_nothing_is_written_through_a_link(name: str, sound: Path, tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(sound, run)
    elsewhere.mkdir()
    (run / name).parent.mkdir(exist_ok=True)
    link(run / name, str(elsewhere))
    with pytest.raises(ConfigError, match=r"is a link, and a run directory holds its own files only"):
        Ledger.open(run, IDENTITY)
    assert CliRunner().invoke(cli, ["render", str(run), "--format", "sheet"]).exit_code == 3
    assert CliRunner().invoke(cli, ["verify", str(run), "--redo"]).exit_code in (0, 3, 4)
    assert list(elsewhere.iterdir()) == []


def test_json_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_json(b'{"a": [1, "x,[{"]}') == {"a": [1, "x,[{"]}
    with pytest.raises(ValueError, match="nested too deep"):
        load_json(b"[" * 100_000)
    monkeypatch.setattr("gmcli.distrust.MAX_JSON_VALUES", 100)
    with pytest.raises(ValueError, match="more than 100 values"):
        load_json(b"[" + b"[]," * 100 + b"[]]")
    assert MAX_JSON_VALUES > 60 * 60 * 60 * 10


def test_only_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with open_file(tmp_path / "file") as file:
        assert file.read() == b"x"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            open_file(path)
    refuse_links(tmp_path, ["file", "gone"], ["gone"])
