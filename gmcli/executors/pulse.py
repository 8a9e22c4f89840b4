"""Let a worker show that it lives, and in which stage, without a message.

A few bytes that both processes see: the worker writes there at every step, for nothing; the driver looks once a second.
"""

import mmap
import os
import struct

# How often the worker has shown itself, and the stage it is in.
_LAYOUT = struct.Struct("<Q24s")


class Pulse:
    """Hold one worker's bytes. fd: of a file made by `make_pulse`, open in both processes."""

    def __init__(self, fd: int) -> None:
        self._bytes = mmap.mmap(fd, _LAYOUT.size)
        self._count = 0

    def beat(self, stage: str) -> None:
        """Show life; only the worker's main thread does."""
        self._count += 1
        _LAYOUT.pack_into(self._bytes, 0, self._count, stage.encode())

    def look(self) -> tuple[int, str]:
        """Return how often the worker has shown itself, and its stage."""
        count, stage = _LAYOUT.unpack_from(self._bytes)
        return count, stage.rstrip(b"\0").decode(errors="replace")

    def close(self) -> None:
        """Give the bytes back."""
        self._bytes.close()


def make_pulse() -> int:
    """Make a file in memory for one Pulse; return its descriptor, which the caller closes."""
    fd = os.memfd_create("gmcli-pulse")
    os.ftruncate(fd, _LAYOUT.size)
    return fd
