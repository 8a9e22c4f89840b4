"""Define what passes between who wants frames and the process that decodes them.

The decoder has read a stranger's bytes and may be in a stranger's hands: nothing that it says is unpickled, every length is
checked before it is read, every wait ends. It says: a kind and a length, then so many bytes.

OPENED   {"height", "width", "frames": N, "names": bytes} as JSON; then 8 * N bytes, the times, little-endian float64, and the
         names, joined by "/". Answered with an empty message that brings the descriptor of memory for one frame.
FRAME    the frame's number; its pixels lie in that memory. Asked for by its number.
FAILED   {"kind", "message", "hint"} as JSON.
WORKING  nothing: it is getting on.
"""

import socket
import struct
import time

HEAD = struct.Struct("<cI")
NUMBER = struct.Struct("<Q")
OPENED, FRAME, FAILED, WORKING = b"O", b"F", b"E", b"W"
LONGEST = {OPENED: 1 << 10, FRAME: NUMBER.size, FAILED: 1 << 16, WORKING: 0}
# What is between the parent and the process that starts decoders; a path has at most 4096 bytes.
LONGEST_REQUEST = 1 << 16


class Gone(Exception):
    """Say that the other end hung up."""


class Silent(Exception):
    """Say that the other end has said nothing for too long, or has not come to an end."""


class Nonsense(Exception):
    """Say that what the other end says cannot be."""


class Listener:
    """Hear messages from a decoder. A message must come within `silence_s`, what is waited for within `total_s`."""

    def __init__(self, connection: socket.socket, silence_s: float, total_s: float) -> None:
        self._connection = connection
        self._silence_s = silence_s
        self._end = time.monotonic() + total_s

    @property
    def over(self) -> bool:
        """Ask whether `total_s` is over."""
        return time.monotonic() >= self._end

    def message(self, *expected: bytes) -> tuple[bytes, bytes]:
        """Wait for a message of one of the kinds, passing over signs of life. Raises Gone, Silent, Nonsense."""
        while True:
            deadline = self._deadline()
            kind, length = HEAD.unpack(self._exactly(HEAD.size, deadline))
            if kind != WORKING and kind not in expected:
                raise Nonsense(f"a message of kind {kind!r}")
            if length > LONGEST[kind]:
                raise Nonsense(f"a message of {length} bytes")
            content = self._exactly(length, deadline)
            if kind != WORKING:
                return kind, content

    def exactly(self, length: int) -> bytes:
        """Wait for so many bytes; the caller has checked their number."""
        return self._exactly(length, self._deadline())

    def _deadline(self) -> float:
        return min(time.monotonic() + self._silence_s, self._end)

    def _exactly(self, length: int, deadline: float) -> bytes:
        content = bytearray()
        while len(content) < length:
            self._connection.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                part = self._connection.recv(min(length - len(content), 1 << 20))
            except TimeoutError:
                raise Silent from None
            except ConnectionError:
                raise Gone from None
            if not part:
                raise Gone
            if time.monotonic() > deadline:  # byte by byte
                raise Silent
            content += part
        return bytes(content)


def message(kind: bytes, content: bytes = b"") -> bytes:
    """Put a message together."""
    return HEAD.pack(kind, len(content)) + content
