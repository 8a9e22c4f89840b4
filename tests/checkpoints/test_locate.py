"""Which checkpoint it is: by content that is required, by a commit of the hub, and the same from the check to the load."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import sentencepiece
import yaml
from click.testing import CliRunner

from gmcli.checkpoints.convert import convert
from gmcli.checkpoints.load import load_checkpoint
from gmcli.checkpoints.locate import fingerprint, locate_checkpoint, unpinned
from gmcli.cli.main import cli
from gmcli.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 64


@pytest.fixture
def own(small_folder, tmp_path) -> Path:
    return Path(shutil.copytree(small_folder, tmp_path / "own"))


@pytest.fixture
def hub(small_folder, tmp_path, monkeypatch) -> Path:
    """A hub's cache that holds the small checkpoint as someone/mora; returns the snapshot."""
    repository = tmp_path / "hub" / "models--someone--mora"
    snapshot = lay_out(small_folder, repository)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda n, **kw: real(n, cache_dir=tmp_path / "hub", **kw))
    return snapshot


def lay_out(folder: Path, repository: Path) -> Path:
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    for path in folder.iterdir():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def by_hand(*paths: Path) -> str:
    """The fingerprint as the documentation has it: a line of name and sha256 for each file."""
    lines = [f"{p.name}\0{hashlib.sha256(p.read_bytes()).hexdigest()}\n" for p in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def swap(path: Path) -> None:
    """Change one byte in the middle of a file, behind a link or not."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.resolve().write_bytes(bytes(content))


# The content that is required


def test_the_fingerprint_is_that_of_all_that_decides_the_answers(own):
    names = ["config.json", "tokenizer.model", "added_tokens.json", "model.safetensors"]
    wanted = by_hand(*(own / name for name in names))
    assert fingerprint(locate_checkpoint(str(own))) == wanted
    assert locate_checkpoint(str(own), require_sha256=wanted)
    for name in names:
        before = (own / name).read_bytes()
        (own / name).write_bytes(before + b" ")
        with pytest.raises(CheckpointError, match=f"required {wanted}\n  found    "):
            locate_checkpoint(str(own), require_sha256=wanted)
        (own / name).write_bytes(before)


def test_tokens_of_the_newer_file_count_where_they_are_used(own):
    added = json.loads((own / "added_tokens.json").read_text())
    (own / "added_tokens.json").unlink()
    path = own / "tokenizer_config.json"
    path.write_text(json.dumps({"added_tokens_decoder": {str(i): {"content": t} for t, i in added.items()}}))
    before = fingerprint(locate_checkpoint(str(own)))
    path.write_text(path.read_text() + " ")
    assert fingerprint(locate_checkpoint(str(own))) != before


def test_nothing_is_parsed_before_the_content_is_known(own, monkeypatch):
    swap(own / "tokenizer.model")
    monkeypatch.setattr(sentencepiece, "SentencePieceProcessor", lambda **_: pytest.fail("parsed"))
    with pytest.raises(CheckpointError, match="its content is not the required one") as caught:
        locate_checkpoint(str(own), require_sha256=OTHER)
    assert "Nothing was loaded" in caught.value.hint


def test_names_in_the_hubs_cache_are_believed_until_a_content_is_required(hub, own):
    wanted = fingerprint(locate_checkpoint(str(own)))
    assert fingerprint(locate_checkpoint("someone/mora")) == wanted
    assert locate_checkpoint("someone/mora", require_sha256=wanted)
    # Whoever can write to the cache puts other weights under the name of the right ones.
    swap(hub / "model.safetensors")
    assert fingerprint(locate_checkpoint("someone/mora")) == wanted
    with pytest.raises(CheckpointError, match="its content is not the required one"):
        locate_checkpoint("someone/mora", require_sha256=wanted)


def test_a_folder_that_looks_like_the_hubs_cache_is_read(hub, own, tmp_path):
    wanted = fingerprint(locate_checkpoint(str(own)))
    elsewhere = lay_out(own, tmp_path / "download" / "models--someone--mora")
    assert fingerprint(locate_checkpoint(str(elsewhere))) == wanted
    swap(elsewhere / "model.safetensors")
    assert fingerprint(locate_checkpoint(str(elsewhere))) != wanted


@pytest.mark.parametrize("command", ["infer", "convert", "export"])
def test_commands_refuse_another_content(command, own, tmp_path, clips):
    manifest = tmp_path / "m.yaml"
    manifest.write_text(
        f"version: 1\nvideos:\n  - {{id: c, path: {clips / 'c.mp4'}, questions: [{{id: q, text: Who?}}]}}\n"
    )
    arguments = {
        "infer": [str(manifest), "--checkpoint", str(own), "-o", str(tmp_path / "out"), "--gpus", "cpu"],
        "convert": [str(own), str(tmp_path / "out")],
        "export": ["--backend", "openvino", "--checkpoint", str(own), "--device", "cpu"],
    }[command]
    found = fingerprint(locate_checkpoint(str(own)))
    result = CliRunner().invoke(cli, [command, *arguments, "--require-sha256", OTHER])
    assert result.exit_code == 5
    assert f"required {OTHER}\n  found    {found}" in result.output
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(cli, [command, *arguments, "--require-sha256", "no hash"])
    assert result.exit_code == 3
    assert "64 digits" in result.output
    if command == "infer":
        result = CliRunner().invoke(cli, [command, *arguments, "--require-sha256", found.upper(), "--dry-run"])
        assert result.exit_code == 0
        assert found in result.stdout


# The same files from the check to the load


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "added_tokens.json"])
def test_files_that_change_after_they_were_hashed_are_not_loaded(own, tmp_path, name):
    files = locate_checkpoint(str(own))
    assert load_checkpoint(files)
    times = (own / name).stat()
    swap(own / name)
    os.utime(own / name, ns=(times.st_atime_ns, times.st_mtime_ns))  # as one who hides it
    with pytest.raises(CheckpointError, match="have changed since they were checked"):
        load_checkpoint(files)


def test_files_that_change_while_they_are_read_are_not_used(own, tmp_path, monkeypatch):
    files = locate_checkpoint(str(own))
    from gmcli.checkpoints import load

    real = load.read_tensors

    def late(file):
        yield from real(file)
        Path(shutil.copy(file, tmp_path / "copy")).replace(file)

    monkeypatch.setattr(load, "read_tensors", late)
    with pytest.raises(CheckpointError, match="have changed since they were checked"):
        load_checkpoint(files)
    monkeypatch.undo()

    files = locate_checkpoint(str(own))
    monkeypatch.setattr("gmcli.checkpoints.convert._model_card", lambda *_: swap(own / "model.safetensors") or "")
    with pytest.raises(CheckpointError, match="have changed since they were checked"):
        convert(files, tmp_path / "again")
    assert not (tmp_path / "again").exists()


# Commits


def test_a_run_keeps_the_commit_and_says_what_would_pin_it(hub, tmp_path, clips):
    manifest = tmp_path / "m.yaml"
    manifest.write_text(
        f"version: 1\nvideos:\n  - {{id: c, path: {clips / 'c.mp4'}, questions: [{{id: q, text: Who?}}]}}\n"
    )
    out = tmp_path / "out"
    command = ["infer", str(manifest), "--checkpoint", "someone/mora", "-o", str(out), "--gpus", "cpu"]
    command += ["--mask-frames", "sampled", "--frames", "2"]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert yaml.safe_load((out / "config.yaml").read_text())["checkpoint_commit"] == COMMIT
    log = (out / "logs" / "driver.log").read_text()
    assert log.count(f"--revision {COMMIT} pins it") == 1
    result = CliRunner().invoke(cli, [*command, "--revision", COMMIT], catch_exceptions=False)
    assert result.exit_code == 0
    assert (out / "logs" / "driver.log").read_text().count("pins it") == 1


def test_only_a_commit_pins(hub, own):
    files = locate_checkpoint("someone/mora", revision="main")
    assert files.commit == COMMIT
    assert len(unpinned(files, "main")) == len(unpinned(files, None)) == 1
    assert unpinned(files, COMMIT) == []
    assert unpinned(locate_checkpoint(str(own)), None) == []
    assert locate_checkpoint(str(own)).commits == {}


def test_nothing_but_data_is_fetched_and_all_of_one_commit(small_folder, tmp_path, monkeypatch):
    """The branch moves on between the two requests that a checkpoint of pickles takes."""
    asked = []
    first = tmp_path / "models--a--b" / "snapshots" / COMMIT
    first.mkdir(parents=True)

    def fetch(name, *, revision, allow_patterns):
        asked.append((revision, allow_patterns))
        return str(first)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(CheckpointError):
        locate_checkpoint("someone/mora")
    assert asked == [
        (None, ["*.json", "tokenizer.model", "model*.safetensors"]),
        (COMMIT, ["pytorch_model*.bin"]),
    ]


def test_a_tower_from_the_hub_is_named_too(own, hub):
    from dataclasses import replace

    from gmcli.checkpoints.locate import VisionTowerFiles

    files = replace(locate_checkpoint(str(own)), vision_tower=VisionTowerFiles(hub, {}, (), COMMIT))
    assert files.commits == {"vision_tower_commit": COMMIT}
    assert COMMIT in unpinned(files, None)[0]
