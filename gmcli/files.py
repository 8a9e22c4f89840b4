"""Write files so that a crash at any moment leaves the old state or the new one, never a mixture.

The order is always: write to a temporary name, fsync, rename, fsync the directory. Who records that a file exists does so
afterwards.
"""

import os
import shutil
import stat
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"

_WRITERS = 4


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: Path, *, root: Path | None = None) -> None:
    """Create a directory and its parents durably.

    root: a parent that must be there already; raises FileNotFoundError where it is not.
    """
    missing = []
    while path != root and not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        fsync_directory(folder.parent)


def write_file(root: Path, name: str, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Put a file at root/name, replacing an older one. content: bytes, or a function that writes them.

    Temporary names live in root/.tmp, on the same file system. Raises OSError, also where root is not there; then the old
    file is untouched.
    """
    target = root / name
    make_directories(target.parent, root=root)
    temporary = _temporary(root)
    try:
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what is told
            temporary.unlink()
        raise
    fsync_directory(target.parent)


def write_folder(root: Path, name: str, files: Iterable[tuple[str, bytes]]) -> None:
    """Put a folder of files at root/name, whole or not at all, replacing whatever is there.

    Between two renames there is neither the old folder nor the new one: whoever recorded the old one takes that back first.
    """
    target = root / name
    make_directories(target.parent, root=root)
    temporary = _temporary(root)
    temporary.mkdir()
    try:
        # An fsync waits for the disk, which serves several at once: with 4 threads a small file takes a quarter of the time.
        with ThreadPoolExecutor(_WRITERS, thread_name_prefix="write") as pool:
            waiting: deque[Future[None]] = deque()
            for file_name, content in files:
                waiting.append(pool.submit(_write_durably, temporary / file_name, content))
                while len(waiting) > 2 * _WRITERS:
                    waiting.popleft().result()
            for write in waiting:
                write.result()
        fsync_directory(temporary)
        if os.path.lexists(target):
            # A folder cannot be renamed over one with files in it.
            aside = _temporary(root)
            target.rename(aside)
            remove(aside)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_directory(target.parent)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all in it, durably; nothing happens where there is none."""
    try:
        is_folder = stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if is_folder:
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    fsync_directory(path.parent)


def clear_temporary(root: Path) -> None:
    """Remove what a killed run left under temporary names, as far as that can be done."""
    with suppress(OSError):
        remove(root / TEMPORARY)


def _temporary(root: Path) -> Path:
    folder = root / TEMPORARY
    folder.mkdir(exist_ok=True)
    return folder / uuid.uuid4().hex
