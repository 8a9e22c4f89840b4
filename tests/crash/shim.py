"""Build the library that stands between Python and the file system, drive it, and read its trace."""

import ctypes
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COUNT, KILL_BEFORE, KILL_AFTER, TORN, FAIL, FAIL_ON, LOST_REPLY, SIGNAL, SHORT, FULL = range(10)

_SOURCE = Path(__file__).with_name("shim.c")
_ENTRY = struct.Struct("<8sQqIIII")


class NoCompiler(Exception):
    """Say that there is nothing to build the library with."""


def restart_with_shim(arguments: list[str]) -> None:
    """Start this Python again with the library loaded, unless it is."""
    if "GMCLI_CRASH_SHIM" in os.environ:
        return
    if shutil.which("cc") is None:
        raise NoCompiler("no C compiler (cc)")
    library = Path(tempfile.mkdtemp(prefix="gmcli-crash-")) / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, _SOURCE, "-ldl", "-lpthread"], check=True)
    # One thread in numpy's libraries: this process forks all the time.
    environment = {"LD_PRELOAD": str(library), "GMCLI_CRASH_SHIM": str(library), "OPENBLAS_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, *arguments], {**os.environ, **environment})


def forget_shim() -> None:
    """Let programs started from here run without the library, and remove its file; it stays loaded in this process."""
    shutil.rmtree(Path(os.environ["GMCLI_CRASH_SHIM"]).parent, ignore_errors=True)
    os.environ.pop("LD_PRELOAD")


def arm(root: Path, mode: int, number: int, code: int, trace: int) -> None:
    """Count from now on what is changed below `root`, and act at the `number`-th change. trace: a file descriptor or -1."""
    ctypes.CDLL(None).shim_arm(os.fsencode(root), mode, ctypes.c_long(number), code, trace)


def disarm() -> int:
    """Count no longer; return how many operations there were."""
    ctypes.CDLL(None).shim_disarm()
    return int(ctypes.CDLL(None).shim_count())


def mark(text: str) -> None:
    """Write a note of ours into the trace."""
    ctypes.CDLL(None).shim_mark(text.encode())


def move_clock(seconds: int) -> None:
    """Let the wall clock of this process go wrong by so much."""
    ctypes.CDLL(None).shim_clock(ctypes.c_long(seconds))


@dataclass(frozen=True)
class Event:
    """One entry of a trace; `done` is 0 where it names the operation at which the library acted."""

    kind: str
    offset: int
    path: str
    target: str
    data: bytes


def read_trace(path: Path, root: Path) -> list[Event]:
    """Read a trace; paths become relative to `root`."""
    return list(_entries(path.read_bytes(), str(root)))


def _entries(content: bytes, root: str) -> Iterator[Event]:
    def shorten(text: bytes) -> str:
        return os.fsdecode(text).removeprefix(root).strip("/")

    position = 0
    while position + _ENTRY.size <= len(content):
        kind, _, offset, first, second, length, _ = _ENTRY.unpack_from(content, position)
        position += _ENTRY.size
        one, position = content[position : position + first], position + first
        two, position = content[position : position + second], position + second
        data, position = content[position : position + length], position + length
        yield Event(kind.rstrip(b"\0").decode(), offset, shorten(one), shorten(two), data)


def pattern(path: str) -> str:
    """Replace in a path what differs from question to question and from run to run."""
    path = re.sub(r"[0-9a-f]{32}", "*", path)
    path = re.sub(r"\d{5}\.png", "*.png", path)
    path = re.sub(r"(items|masks)/[^/]+/[^/]+", r"\1/*/*", path)
    return re.sub(r"(items|masks)/[^/*]+$", r"\1/*", path) or "."
