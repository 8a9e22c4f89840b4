"""Carry messages between the driver and a worker over a socket.

The driver never waits in the middle of a message: a worker that is stopped there would stop the whole run with it. Both ends
are our own processes, and nobody else has the socket: pickle is safe between them.
"""

import pickle
import socket
import struct
from collections.abc import Iterator
from typing import Any

_LENGTH = struct.Struct("!Q")
_CHUNK_BYTES = 1 << 18


class WorkerEnd:
    """Send and receive whole messages, however long it takes. fd: a worker's end of a socket pair."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)

    def send(self, message: Any) -> None:
        """Send one message. Raises OSError where the driver is gone."""
        self._socket.sendall(_frame(message))

    def receive(self) -> Any:
        """Wait for the next message. Raises EOFError where the driver is gone."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return pickle.loads(self._exactly(length))  # noqa: S301

    def _exactly(self, count: int) -> bytearray:
        data = bytearray(count)
        view, at = memoryview(data), 0
        while at < count:
            got = self._socket.recv_into(view[at:])
            if not got:
                raise EOFError("the driver has hung up")
            at += got
        return data


class DriverEnd:
    """Send and receive what can be sent and received now. `ended` is set once the worker's end is closed."""

    def __init__(self, own: socket.socket) -> None:
        own.setblocking(False)
        self.socket = own
        self.ended = False
        self._in, self._out = bytearray(), bytearray()

    @property
    def unsent(self) -> bool:
        """Say whether something waits for room in the socket; then `flush` is to be called when there is some."""
        return bool(self._out)

    def send(self, message: Any) -> None:
        """Send one message, as much of it as there is room for."""
        self._out += _frame(message)
        self.flush()

    def flush(self) -> None:
        """Send more of what waits."""
        try:
            while self._out:
                del self._out[: self.socket.send(self._out)]
        except BlockingIOError:
            return
        except OSError:
            self._out.clear()  # the worker has died; its end will say so

    def receive(self) -> Iterator[Any]:
        """Yield the messages that are complete with what has arrived now; one that is not is kept for the next time."""
        if self._read():
            yield from self._whole()

    def rest(self) -> Iterator[Any]:
        """Yield all complete messages that a worker left which has ended."""
        while self._read():
            yield from self._whole()

    def _read(self) -> bool:
        try:
            chunk = self.socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""
        self.ended = not chunk
        self._in += chunk
        return bool(chunk)

    def _whole(self) -> Iterator[Any]:
        while len(self._in) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._in)[0]
            if len(self._in) < end:
                return
            with memoryview(self._in) as data, data[_LENGTH.size : end] as body:
                message = pickle.loads(body)  # noqa: S301
            del self._in[:end]
            yield message
            del message  # a long clip's masks: not beside the next ones


def _frame(message: Any) -> bytes:
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body
