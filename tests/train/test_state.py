import json
from pathlib import Path

import pytest
import torch

from gmcli.errors import ConfigError
from gmcli.train.state import Progress, keep_lines, load_last, read_progress, recover, replace_folder, save_last
from tests.train.toy import ToyModule, toy_settings


def save(out: Path, step: int = 4) -> ToyModule:
    module = ToyModule()
    torch.nn.init.normal_(module.head.weight)
    module.norm.running_mean.fill_(3)
    save_last(out, Progress(step, 0.5, step), module, [{"state": {}}], toy_settings(), 1)
    return module


def test_what_is_saved_is_read_back(tmp_path):
    module, again = save(tmp_path), ToyModule()
    assert read_progress(tmp_path, toy_settings(), 1) == Progress(4, 0.5, 4)
    assert load_last(tmp_path, again) == [{"state": {}}]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in module.state_dict().items())


def test_settings_of_watching_may_change(tmp_path):
    save(tmp_path)
    changed = toy_settings(loader_workers=3, save_every=1, validate_every=2, log_every=7)
    assert read_progress(tmp_path, changed, 1).step == 4


@pytest.mark.parametrize("moment", ["while writing", "between the renames", "behind the renames"])
def test_a_crash_leaves_a_whole_folder(tmp_path, monkeypatch, moment):
    """The crash is an exception that no code of ours handles; what `recover` finds is what a reboot would."""
    replace_folder(tmp_path, "last", lambda folder: (folder / "x").write_text("old"))

    def fill(folder: Path) -> None:
        (folder / "x").write_text("new")
        if moment == "while writing":
            raise OSError

    rename = Path.rename
    if moment == "between the renames":

        def crash(self, target):
            if self.name == ".last.new":
                raise OSError
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", crash)
    elif moment == "behind the renames":
        monkeypatch.setattr("gmcli.train.state.fsync_directory", lambda path: (_ for _ in ()).throw(OSError()))
    with pytest.raises(OSError):
        replace_folder(tmp_path, "last", fill)
    monkeypatch.undo()
    recover(tmp_path, "last")
    assert (tmp_path / "last/x").read_text() == ("new" if moment == "behind the renames" else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_logs_are_cut_back(tmp_path):
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
    (tmp_path / "losses.jsonl").write_text("".join(lines) + '{"step": 2')
    keep_lines(tmp_path, "losses.jsonl", 2)
    assert (tmp_path / "losses.jsonl").read_text() == "".join(lines[:2])
    keep_lines(tmp_path, "none.jsonl", 2)


def test_the_state_of_another_model_is_refused(tmp_path):
    save(tmp_path)
    other = ToyModule()
    other.head = torch.nn.Linear(8, 2)
    with pytest.raises(ConfigError, match=r"not of this model; differing: head\.(bias|weight)"):
        load_last(tmp_path, other)


def test_a_damaged_state_is_said(tmp_path):
    save(tmp_path)
    (tmp_path / "last/model.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_last(tmp_path, ToyModule())
    save(tmp_path)
    (tmp_path / "last/optimizers.pt").write_bytes(b"x")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_last(tmp_path, ToyModule())
