"""Hold a directory: one process at a time, and the very directory that was taken."""

import fcntl
import os
import time
from pathlib import Path
from typing import BinaryIO

from gmcli.errors import RunLocked

LOCK = ".lock"


def take_lock(path: Path) -> BinaryIO:
    """Take the lock of a run directory or raise RunLocked. The lock goes with the process, however it ends."""
    for attempt in range(3):
        file = (path / LOCK).open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The directory may have been replaced since its lock was opened: then that lock keeps nobody out.
            if is_lock_of(file, path):
                return file
        except BlockingIOError:
            # `gmcli status` asks by taking the lock for an instant.
            if attempt < 2:
                time.sleep(0.05)
        except BaseException:
            file.close()
            raise
        file.close()
    raise RunLocked(f"{path}: another run holds this directory", "Wait for it, or look with `gmcli status`.")


def is_lock_of(lock: BinaryIO, path: Path) -> bool:
    """Say whether a directory's lock is this open file: not where the directory was moved, removed or replaced."""
    try:
        there = (path / LOCK).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(there, os.fstat(lock.fileno()))


def is_running(path: Path) -> bool:
    """Ask whether a run holds a directory, without creating or changing anything in it."""
    try:
        file = (path / LOCK).open("rb")
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
