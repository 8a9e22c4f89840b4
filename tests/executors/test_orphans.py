"""A death, however sudden and whenever, ends all that the dead had started: no process is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import alive, descendants_of

MANIFEST = Path(__file__).parents[2] / "examples/manifest.yaml"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for a signal")


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def holders(folder: Path) -> list[str]:
    """Return the processes that write below a folder: those of a run, into its logs."""
    found = []
    for process in Path("/proc").iterdir():
        for number in (1, 2) if process.name.isdigit() else ():
            try:
                if (process / "fd" / str(number)).readlink().is_relative_to(folder):
                    found.append(process.name)
            except OSError:
                continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("when", ["a worker has just been started", "videos are decoded"])
def test_a_driver_that_is_killed_leaves_no_process(tmp_path, when):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "gmcli", "infer", str(MANIFEST), "-o", str(out), "--workers", "2"]
    with (tmp_path / "said").open("wb") as said:
        driver = subprocess.Popen(command, stdout=said, stderr=said)
    below: set[int] = set()

    def it_is_time() -> bool:
        below.update(descendants_of(driver.pid))
        assert driver.poll() is None, (tmp_path / "said").read_text()
        if when == "a worker has just been started":
            return bool(below)
        return any("questions" in log.read_text() for log in out.glob("logs/worker-*.log"))

    try:
        assert wait_for(it_is_time)
        below.update(descendants_of(driver.pid))
        if when == "videos are decoded":
            worker = next(pid for pid in below if descendants_of(pid))
            its = descendants_of(worker)
            os.kill(worker, signal.SIGKILL)
            assert wait_for(lambda: not any(map(alive, [worker, *its])), seconds=10)
            assert driver.poll() is None
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    gone = wait_for(lambda: not any(map(alive, below)) and not holders(tmp_path), seconds=10)
    assert gone, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in below if alive(pid)]
    assert len(below) >= (1 if when == "a worker has just been started" else 3)  # workers, and who decodes for them
