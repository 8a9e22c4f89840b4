"""What torch compiles, and runs again from disk, lies where nobody else can write; and nothing is reported to anybody."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gmcli.errors import EnvironmentProblem
from gmcli.private import keep_torch_private, private_dir


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GMCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    return tmp_path / "cache"


def test_it_is_made_for_one_user(cache):
    old = os.umask(0)
    try:
        folder = private_dir("inductor")
    finally:
        os.umask(old)
    assert folder == cache / "inductor"
    assert [stat.S_IMODE(f.stat().st_mode) for f in (folder, cache)] == [0o700, 0o700]
    assert private_dir("inductor") == folder


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777, 0o1777])
def test_one_that_others_could_have_written_into_is_not_made_private_afterwards(cache, mode):
    private_dir("inductor").chmod(mode)
    with pytest.raises(EnvironmentProblem, match="others can reach it") as caught:
        private_dir("inductor")
    assert "chmod 700" in caught.value.hint
    assert stat.S_IMODE((cache / "inductor").stat().st_mode) == mode


def test_a_cache_among_others_files_is_refused(cache):
    private_dir("inductor")
    cache.chmod(0o777)
    with pytest.raises(EnvironmentProblem, match="others can write there"):
        private_dir("inductor")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_another_users_is_refused_also_by_root(cache):
    os.chown(private_dir("inductor"), 12345, 12345)
    with pytest.raises(EnvironmentProblem, match="belongs to user 12345"):
        private_dir("inductor")


def test_a_file_in_its_place_is_an_environment_problem(cache):
    cache.write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be made"):
        private_dir("inductor")


def test_torch_is_told_unless_it_was_told_before(cache, monkeypatch):
    keep_torch_private()
    assert os.environ.pop("TORCHINDUCTOR_CACHE_DIR") == str(cache / "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    keep_torch_private()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/somewhere"


@pytest.mark.parametrize(
    "code",
    [
        "from gmcli.backends.openvino import _openvino; _openvino()",
        "from gmcli.doctor import probe_package; print(probe_package('OpenVINO'))",
    ],
)
def test_openvino_reports_nothing(tmp_path, code):
    """It writes a number to know us by into the home before it reports; nobody asked it to."""
    silent = {name: value for name, value in os.environ.items() if name != "CI"}
    environment = {**silent, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)}
    check = "; import sys; assert 'openvino' in sys.modules; print(sys.modules.get('openvino_telemetry', 'there'))"
    done = subprocess.run(
        [sys.executable, "-c", code + check], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "None"
    assert not (tmp_path / "intel").exists()
