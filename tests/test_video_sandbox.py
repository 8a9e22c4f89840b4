"""Break decoders in every way we know: the video fails with a reason, the next one works, no process is left."""

import dataclasses
import os
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gmcli.config import FREE, RunConfig
from gmcli.errors import EnvironmentProblem, VideoError
from gmcli.video.limits import DecodeLimits, limits_from
from gmcli.video.sandbox import DecoderSandbox
from tests import poisoned_reader

LIMITS = DecodeLimits(decode_memory_mb=512, decode_cpu_s=1, decode_timeout_s=20, max_frames=1000, max_duration_s=1000)


def descendants(pid: int) -> set[int]:
    """Return the processes below this one, from /proc; zombies count."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found, new = set(), {pid}
    while new := {child for child, parent in parents.items() if parent in new}:
        found |= new
    return found


def alone(sandbox: DecoderSandbox, processes: int = 1) -> None:
    """Wait until so many processes are left below this one: ends are told a moment before they are complete."""
    end = time.monotonic() + 20
    while len(left := descendants(os.getpid()) - BEFORE) != processes and time.monotonic() < end:
        time.sleep(0.02)
    assert len(left) == processes, left


BEFORE: set[int] = set()


@pytest.fixture
def poisoned():
    BEFORE.clear()
    BEFORE.update(descendants(os.getpid()))
    files = len(list(Path("/proc/self/fd").iterdir()))
    with DecoderSandbox(LIMITS, reader_module="tests.poisoned_reader") as sandbox:
        yield sandbox
        check_good(sandbox)
        alone(sandbox)
    alone(sandbox, 0)
    assert len(list(Path("/proc/self/fd").iterdir())) <= files


def check_good(sandbox: DecoderSandbox) -> None:
    with sandbox.open("good") as reader:
        assert [frame[0, 0, 0] for frame in reader.frames([0, 2, 4])] == [0, 20, 40]


def failure(sandbox: DecoderSandbox, path: str) -> VideoError:
    """Return what the misdeed comes to, on opening the video or at frame 2."""

    def read() -> None:
        with sandbox.open(path) as reader:
            list(reader.frames([0, 1]))
            next(reader.frames([2]))

    with pytest.raises(VideoError) as caught:
        read()
    assert "\n" not in caught.value.message
    return caught.value


# --- Decoders that die ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misdeed", "words"),
    [
        ("segfault", "its decoder was killed by SIGSEGV, twice"),
        ("die SIGABRT", "its decoder was killed by SIGABRT, twice"),
        ("die SIGKILL", "its decoder was killed by SIGKILL, the 5th that did"),
        ("leave 3", "its decoder ended with exit code 3, twice"),
        ("burn", "its decoder used more than 1 s of CPU time (decode_cpu_s)"),
        ("burn deaf", "its decoder used more than 1 s of CPU time (decode_cpu_s)"),
        ("allocate", "its decoder used more than 512 MB of memory (decode_memory_mb)"),
        ("allocate-unchecked", "killed by SIGSEGV (for want of memory, perhaps: decode_memory_mb is 512), twice"),
        ("throw", "cannot be decoded (RuntimeError: what is this?)"),
        ("cut", "its decoder ended with exit code 0, twice"),
    ],
)
@pytest.mark.parametrize("when", ["", "frame-"])
def test_a_decoder_that_dies_costs_its_video_only(when, misdeed, words, poisoned):
    error = failure(poisoned, when + misdeed)
    assert error.message.startswith(f"{when}{misdeed}: ")
    assert words in error.message


def test_a_decoder_that_hangs_is_replaced_once(poisoned):
    poisoned.limits = dataclasses.replace(LIMITS, decode_timeout_s=1)
    assert "did not open the video in time (decode_timeout_s is 1), twice" in failure(poisoned, "hang").message
    error = failure(poisoned, "frame-hang")
    assert "its decoder did not deliver frame 2 in time (decode_timeout_s is 1), twice" in error.message
    assert error.hint == "raise decode_timeout_s"
    poisoned.limits = LIMITS


def test_a_decoder_that_gets_on_is_waited_for_but_not_for_ever(poisoned):
    poisoned.limits = dataclasses.replace(LIMITS, decode_timeout_s=1.5)
    with poisoned.open("frame-toil 3") as reader:
        assert next(reader.frames([2]))[0, 0, 0] == 20
    poisoned.limits = dataclasses.replace(LIMITS, decode_timeout_s=0.5)
    assert (
        failure(poisoned, "pretend").message
        == "pretend: its decoder did not open the video in time (decode_timeout_s is 0.5)"
    )
    poisoned.limits = LIMITS


def test_reading_goes_on_where_a_decoder_was_killed(poisoned):
    with poisoned.open("good") as reader:
        frames = reader.frames(range(5))
        for number in range(4):
            assert next(frames)[0, 0, 0] == 10 * number
            os.kill(reader._decoder.pid, signal.SIGKILL)
        assert next(frames)[0, 0, 0] == 40
    with poisoned.open("good") as reader:
        os.kill(reader._decoder.pid, signal.SIGSEGV)
        assert next(reader.frames([0]))[0, 0, 0] == 0
        os.kill(reader._decoder.pid, signal.SIGSEGV)
        with pytest.raises(VideoError, match="SIGSEGV, twice"):
            next(reader.frames([1]))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_process_that_starts_decoders_is_replaced(number, poisoned, monkeypatch):
    monkeypatch.setattr("gmcli.video.decoder._ANSWER_S", 0.5)
    with poisoned.open("good") as reader:
        starter = poisoned._starter
        os.kill(starter.pid, number)
        assert [frame[0, 0, 0] for frame in reader.frames([0, 1])] == [0, 10]
    check_good(poisoned)
    assert poisoned._starter is not starter


def test_a_module_that_cannot_be_loaded_is_the_machines_fault(capfd):
    with (
        DecoderSandbox(reader_module="tests.no_such_reader") as sandbox,
        pytest.raises(EnvironmentProblem, match="started"),
    ):
        sandbox.open("good")
    assert "no_such_reader" in capfd.readouterr().err


def test_no_process_outlives_the_one_that_wanted_it(tmp_path):
    """Also where it is killed while a decoder hangs."""
    import subprocess
    import sys

    code = (
        "import sys; from gmcli.video.sandbox import DecoderSandbox\n"
        "sandbox = DecoderSandbox(reader_module='tests.poisoned_reader'); print(sandbox._starter.pid, flush=True)\n"
        "sandbox.open('hang')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        starter = int(process.stdout.readline())
        end = time.monotonic() + 60
        while not (decoders := descendants(starter)) and time.monotonic() < end:
            time.sleep(0.02)
        assert decoders
        process.kill()
    while any(running(pid) for pid in {starter, *decoders}) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(running(pid) for pid in {starter, *decoders})


def running(pid: int) -> bool:
    """Ask whether a process runs. Where nobody collects orphans a zombie remains, and it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_closed_sandbox_opens_nothing():
    sandbox = DecoderSandbox(reader_module="tests.poisoned_reader")
    sandbox.close()
    with pytest.raises(ValueError, match="closed"):
        sandbox.open("good")


def test_decoders_can_be_used_by_several_threads(poisoned):
    problems = []

    def work():
        try:
            for _ in range(5):
                check_good(poisoned)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


# --- Decoders that lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saying", poisoned_reader.SAYINGS)
def test_a_decoder_is_not_believed(saying, poisoned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = failure(poisoned, f"speak {saying}").message
    words = {
        "sixteen-k": "frames of 16384x16384 pixels are too large",
        "nan": "times of its frames make no sense",
        "back": "times of its frames make no sense",
        "for-ever": "longer than may be",
        "up": "a frame is called '..'",
        "bell": "a frame is called '000\\x071'",
        "lines": "a\\nb\\x1b[31m",
    }
    assert words.get(saying, "its decoder gave a senseless answer (") in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("misdeed", ["frame-other-frame", "frame-long-frame", "frame-speak unasked"])
def test_a_frame_that_was_not_asked_for_is_none(misdeed, poisoned):
    assert "its decoder gave a senseless answer (" in failure(poisoned, misdeed).message


def test_the_memory_for_frames_cannot_be_taken_away(poisoned):
    with poisoned.open("frame-shrink") as reader:
        with pytest.raises(VideoError, match=r"cannot be decoded \(PermissionError"):
            next(reader.frames([2]))
        assert next(reader.frames([3]))[0, 0, 0] == 30


def test_a_video_that_changes_is_noticed(poisoned, tmp_path, monkeypatch):
    from gmcli.video import open_video
    from tests.clips import write_frame_folder

    write_frame_folder(tmp_path / "frames", 5)
    with DecoderSandbox() as sandbox, sandbox.open(tmp_path / "frames") as reader:
        first = next(reader.frames([0]))
        np.testing.assert_array_equal(first, next(open_video(tmp_path / "frames").frames([0])))
        next(iter((tmp_path / "frames").iterdir())).unlink()
        reader.close()
        with pytest.raises(VideoError, match="has changed while it was read"):
            next(reader.frames([0]))


# --- What decoders can do to others -----------------------------------------------------------------------------------


def done(sandbox: DecoderSandbox, misdeed: str) -> str:
    with sandbox.open(misdeed) as reader:
        return reader.names[0]


def test_a_decoder_has_limits_and_two_kinds_of_descriptors(poisoned):
    assert done(poisoned, "limits") == f"{512 << 20},1,0,0"
    # Standard ones, which lead to /dev/null, its socket, and the listing itself.
    assert done(poisoned, "descriptors") == "0,1,2,3,4"
    assert done(poisoned, "file-grows") == "failed OSError"


def test_a_decoder_changes_no_file_and_runs_none(poisoned, tmp_path):
    if "writing" not in poisoned.measures():
        pytest.skip("this kernel has no Landlock")
    kept = tmp_path / "kept"
    kept.write_text("kept")
    for misdeed in (f"write {tmp_path / 'new'}", f"write {kept}", f"remove {kept}", "run"):
        assert done(poisoned, misdeed) == "failed PermissionError", misdeed
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"kept": "kept"}


def test_a_decoder_signals_nobody(poisoned):
    from gmcli.video.confine import landlock_version

    if landlock_version() < 6:
        pytest.skip("this kernel's Landlock knows no signals")
    for pid in (os.getpid(), poisoned._starter.pid):
        assert done(poisoned, f"kill {pid}") == "failed PermissionError"


def test_a_decoder_has_no_network(poisoned):
    if "network" not in poisoned.measures():
        pytest.skip("this kernel gives us no network namespace")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        assert done(poisoned, f"connect {server.getsockname()[1]}").startswith("failed ")
        with pytest.raises(TimeoutError):
            server.accept()
    # Landlock forbids TCP; the namespace has nothing of any kind.
    assert done(poisoned, "network") not in ("", Path("/proc/self/ns/net").readlink().name)


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_every_limit_is_a_setting_with_the_same_default():
    names = {field.name for field in dataclasses.fields(DecodeLimits)}
    assert names <= FREE
    assert limits_from(RunConfig().to_json()) == DecodeLimits()
    assert limits_from({"max_frames": 7, "max_pixels": "many", "decode_cpu_s": -1, "frames": 3}) == DecodeLimits(
        max_frames=7
    )
