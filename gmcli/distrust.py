"""Read what lies in a run directory as if a stranger had left it there: directories are handed on, and opened by others."""

import errno
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from gmcli.errors import ConfigError

# An hour of 60 frames a second with a mask each is a tenth of this.
MAX_JSON_VALUES = 20_000_000


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError, also for what is none: a pipe would wait, a device never end."""
    # Not to wait for a pipe's other end; to a file the flag means nothing.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_file(path: Path) -> bytes:
    """Read a file. Raises OSError as `open_file` does."""
    with open_file(path) as file:
        return file.read()


def load_json(data: bytes) -> Any:
    """Parse JSON. Raises ValueError for what is none, is nested without end or would fill the memory with tiny values."""
    # Strings may hold such bytes, too: these are more than there are values, never fewer.
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_JSON_VALUES:
        raise ValueError(f"more than {MAX_JSON_VALUES} values")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None


def refuse_links(path: Path, names: Iterable[str], folders: Iterable[str]) -> None:
    """Raise ConfigError where a run's own file or folder, or something right below one of `folders`, is a link.

    Whoever writes below it would write where it leads to.
    """
    found = [path / name for name in sorted(names)]
    for folder in folders:
        if (path / folder).is_dir() and not (path / folder).is_symlink():
            found += sorted((path / folder).iterdir())
    for each in found:
        if each.is_symlink():
            raise ConfigError(
                f"{each}: is a link, and a run directory holds its own files only",
                "Remove the link, or choose another directory.",
            )
