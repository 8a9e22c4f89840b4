"""The wheel carries one import name, its data and nothing else, and works from where it lies."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("gmcli", "configs", "engines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
    ]
    subprocess.run(command, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return next(folder.glob("*.whl"))


def test_the_wheels_only_import_name_is_gmcli(wheel):
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"gmcli"}


def test_every_module_and_all_data_are_in_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {str(p.relative_to(ROOT)) for p in (ROOT / "gmcli").rglob("*.py")}
    wanted |= {
        str(p.relative_to(ROOT)) for p in (ROOT / "gmcli" / "report").iterdir() if p.suffix in (".html", ".css", ".js")
    }
    wanted |= {f"gmcli/share/configs/{p.name}" for p in (ROOT / "configs").iterdir()}
    wanted |= {f"gmcli/share/engines/{p.name}" for p in (ROOT / "engines").iterdir()}
    wanted |= {
        f"gmcli/share/checkpoints/mora-tiny/{name}"
        for name in ("config.json", "model.safetensors", "tokenizer.model", "added_tokens.json", "README.md")
    }
    assert wanted | {"gmcli/py.typed"} <= names


def test_it_works_from_where_it_lies(wheel, tmp_path, clips):
    """Run the wheel's own files, away from the checkout: configurations, recipes and the demo checkpoint are found."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    manifest = tmp_path / "m.yaml"
    manifest.write_text(
        f"version: 1\nvideos:\n  - {{id: c, path: {clips / 'c.mp4'}, questions: [{{id: q0, text: Who moves?}}]}}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-m", "gmcli", "infer", manifest, "-o", tmp_path / "out", "--config", "default"]
    command += ["--mask-frames", "sampled", "--frames", "2", "--gpus", "cpu"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "out/results.json").read_text())["results"]) == 1
    where = subprocess.run(
        [sys.executable, "-c", "import gmcli; print(gmcli.__file__)"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(tmp_path))
