"""Files appear whole, where they were meant to, or not at all."""

import pytest

from gmcli.files import remove, write_file, write_folder
from tests.fakes import tree


def test_a_directory_that_is_gone_is_not_made_again(tmp_path):
    for name in ("file", "below/file"):
        with pytest.raises(FileNotFoundError):
            write_file(tmp_path / "gone", name, b"x")
        with pytest.raises(FileNotFoundError):
            write_folder(tmp_path / "gone", name, [("x", b"x")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder", "nothing"])
def test_a_folder_takes_the_place_of_anything(tmp_path, kind):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_bytes(b"kept")
    place = tmp_path / "root" / "folder"
    place.parent.mkdir()
    match kind:
        case "file":
            place.write_bytes(b"old")
        case "link":
            place.symlink_to(tmp_path / "elsewhere")
        case "dangling link":
            place.symlink_to(tmp_path / "nowhere")
        case "folder":
            (place / "deep").mkdir(parents=True)
            (place / "deep" / "old").write_bytes(b"old")
    write_folder(tmp_path / "root", "folder", [("new", b"new")])
    assert not place.is_symlink()
    assert tree(tmp_path) == {"elsewhere/kept": b"kept", "root/folder/new": b"new"}


def test_removing_follows_no_link_and_minds_no_absence(tmp_path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "file").write_bytes(b"kept")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    remove(tmp_path / "link")
    assert tree(tmp_path) == {"folder/deep/file": b"kept"}
    remove(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_the_first_error_is_the_one_that_is_told(tmp_path, monkeypatch):
    def fail(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.unlink", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "worse")))
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path, "file", fail)
