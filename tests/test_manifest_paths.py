"""A manifest that is not trusted may be kept inside its folder: links, paths and roots that lead out of it are refused."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gmcli.cli.main import cli
from gmcli.errors import ManifestError
from gmcli.manifest import read_manifest


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A manifest's folder with a root in it, and beside it a folder that is nobody's business."""
    for name in ("here/root/frames", "here/root/masks", "secret"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "secret/film.mp4").write_bytes(b"x")
    (tmp_path / "secret/0.png").write_bytes(b"x")
    (tmp_path / "here/root/film.mp4").write_bytes(b"x")
    (tmp_path / "here/root/frames/0.png").write_bytes(b"x")
    return tmp_path


def read(
    place: Path, path: str, *, masks: str | None = None, root: str | None = "root", inside: bool = True
) -> list[str]:
    """Return the problems, none where there is none."""
    truth = {"ground_truth": {"masks": masks, "object_ids": 1}} if masks else {}
    video = {"id": "v", "path": path, "questions": [{"id": "q", "text": "t", **truth}]}
    content = {"version": 1, "videos": [video]} | ({"root": root} if root else {})
    (place / "here/m.json").write_text(json.dumps(content))
    try:
        read_manifest(place / "here/m.json", inside_root=inside)
    except ManifestError as error:
        return [problem.removeprefix(f"{place}/here/m.json:1: ") for problem in error.problems]
    return []


@pytest.mark.parametrize("path", ["film.mp4", "frames", "./frames/../film.mp4", "inner", "frames/inner.mp4"])
def test_what_lies_inside_is_read(path: str, place: Path) -> None:
    (place / "here/root/inner").symlink_to("frames")
    (place / "here/root/frames/inner.mp4").symlink_to(place / "here/root/film.mp4")
    assert read(place, path, masks="masks") == []


@pytest.mark.parametrize(
    "path", ["{}/secret/film.mp4", "../../secret/film.mp4", "link.mp4", "folder", "folder/film.mp4", "{}/here", "chain"]
)
def test_what_lies_outside_is_refused(path: str, place: Path) -> None:
    (place / "here/root/link.mp4").symlink_to("../../secret/film.mp4")
    (place / "here/root/folder").symlink_to(place / "secret")
    (place / "here/root/chain").symlink_to("folder")
    path = path.format(place)
    (problem,) = read(place, path)
    assert problem.startswith(f"leads out of 'root' ('{place}/here/root'): ")
    assert read(place, path, inside=False) == []


def test_a_folder_that_only_begins_with_the_roots_name_is_outside(place: Path) -> None:
    (place / "here/root2").mkdir()
    (problem,) = read(place, "../root2")
    assert problem == f"leads out of 'root' ('{place}/here/root'): '{place}/here/root2'"


def test_links_inside_folders_are_followed(place: Path) -> None:
    (place / "here/root/frames/1.png").symlink_to(place / "secret/0.png")
    out = f"holds a link that leads out of 'root' ('{place}/here/root'): "
    assert read(place, "frames") == [out + f"'{place}/here/root/frames/1.png'"]
    (place / "here/root/masks/0.png").symlink_to("../../../secret/0.png")
    assert read(place, "film.mp4", masks="masks") == [out + f"'{place}/here/root/masks/0.png'"]
    (place / "here/root/masks/0.png").unlink()
    (place / "here/root/images").symlink_to(place / "secret")
    assert read(place, "film.mp4", masks="masks")[0].startswith("leads out of 'root'")
    assert read(place, "frames", masks="masks", inside=False) == []


@pytest.mark.parametrize("root", ["..", "{}/secret", "/", "out"])
def test_the_manifest_cannot_name_a_root_outside_its_folder(root: str, place: Path) -> None:
    (place / "here/out").symlink_to(place / "secret")
    found = read(place, f"{place}/secret/film.mp4", root=root.format(place))
    assert found[0].startswith("'root' leads out of the manifest's folder: ")
    assert any(problem.startswith("leads out of 'root'") for problem in found[1:])


def test_without_a_root_it_is_the_manifests_folder(place: Path) -> None:
    assert read(place, "root/film.mp4", root=None) == []
    assert read(place, "../secret/film.mp4", root=None)[0].startswith(f"leads out of 'root' ('{place}/here')")


def test_a_folder_may_be_reached_through_a_link(place: Path) -> None:
    """The person who runs gmcli chose the way to the manifest."""
    read(place, "film.mp4")
    (place / "way").symlink_to("here")
    assert len(read_manifest(place / "way/m.json", inside_root=True)) == 1


def test_the_option_and_the_setting(place: Path) -> None:
    read(place, "../../secret/film.mp4")
    (place / "c.yaml").write_text("paths: inside-root\n")
    for chosen in (["--paths", "inside-root"], ["--config", str(place / "c.yaml")]):
        done = CliRunner().invoke(cli, ["infer", str(place / "here/m.json"), "--dry-run", *chosen])
        assert done.exit_code == 3
        assert "leads out of 'root'" in done.output
