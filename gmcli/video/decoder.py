"""Talk to the decoder of one video, and to the process that starts decoders. All that a decoder says is checked here."""

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gmcli.errors import EnvironmentProblem, VideoError
from gmcli.text import one_line
from gmcli.video import ReaderName, wire
from gmcli.video.checks import check_names, check_pixels, check_times
from gmcli.video.limits import DecodeLimits

T = TypeVar("T")

# How many decoders one video may use up. SIGKILL is mostly not the video's doing, so it is forgiven more often.
ATTEMPTS = 2
ATTEMPTS_KILLED = 5
# A decoder that keeps saying that it gets on is believed for so many times the longest silence.
PATIENCE = 4

_START_S, _ANSWER_S = 60.0, 30.0
# The end of a process comes moments after its socket's.
_GRACE_S = 2.0
_RE_ENCODE = "the file is broken, or made to break decoders; re-encode it, for instance with ffmpeg"
_LONGEST_TEXT = 2000


@dataclass(frozen=True, slots=True)
class Video:
    """Hold what a decoder says of its video, checked: see VideoReader."""

    size: tuple[int, int]
    times: NDArray[np.float64]
    names: tuple[str, ...]


class Ended(Exception):
    """Say how a decoder ended: `text` goes on "its decoder …"; `attempts` are those that this is worth."""

    def __init__(self, text: str, hint: str | None, attempts: int = 1) -> None:
        super().__init__(text)
        self.text, self.hint, self.attempts = text, hint, attempts


class Lost(Exception):
    """Say that the process that starts decoders is gone, or does not answer."""


class Starter:
    """Talk to the process that starts decoders."""

    def __init__(self, reader_module: str) -> None:
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # A session of its own: Ctrl-C is the parent's to hear. No threads: it forks.
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "gmcli.video.decoder_process",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    reader_module,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=dict(os.environ, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MALLOC_ARENA_MAX="2"),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._socket = ours
        self._measures: list[str] | None = None
        self._lost = False

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def measures(self) -> list[str]:
        """Wait until it is ready; return what its decoders are kept from, in words. Raises Lost."""
        with self._lock:
            return self._ready()

    def ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """Send a request, return the answer. Raises Lost."""
        with self._lock:
            self._send(request, descriptors)
            answer: dict[str, Any] = self._answer(_ANSWER_S)
            return answer

    def tell(self, request: dict[str, Any]) -> None:
        """Send a request that is not answered. Raises Lost."""
        with self._lock:
            self._send(request)

    def kill(self) -> None:
        """End it and, with it, its decoders."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _send(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        self._ready()
        self._socket.settimeout(_ANSWER_S)
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
        except OSError:
            raise Lost from None

    def _ready(self) -> list[str]:
        if self._measures is None:
            self._measures = self._answer(_START_S)
        return self._measures

    def _answer(self, timeout_s: float) -> Any:
        if self._lost:
            raise Lost
        self._socket.settimeout(timeout_s)
        answer = b""
        with suppress(OSError):  # also a timeout
            answer = self._socket.recv(wire.LONGEST_REQUEST)
        if not answer:
            self._lost = True  # an answer that comes too late would be taken for the next one's
            raise Lost
        return json.loads(answer)


class Decoder:
    """Talk to the decoder of one video. Raises Ended where it is of no more use, VideoError where the video is at fault."""

    def __init__(
        self, starter: Starter, path: str, reader: ReaderName, fps: float | None, limits: DecodeLimits
    ) -> None:
        self._starter, self._path, self._limits = starter, path, limits
        self._memory: mmap.mmap | None = None
        request = {"path": path, "reader": reader, "fps": fps, "limits": asdict(limits)}
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self.pid: int = starter.ask(request, [theirs.fileno()])["pid"]
            except BaseException:
                self._socket.close()
                raise
        try:
            self.video = self._heard("open the video", self._open)
        except BaseException:
            self.close()
            raise

    def frame(self, number: int) -> NDArray[np.uint8]:
        """Return a frame [H,W,3] in memory of its own."""
        return self._heard(f"deliver frame {number}", lambda listener: self._frame(listener, number))

    def end(self, grace_s: float = 0.0) -> dict[str, Any]:
        """End the decoder, at once or when it has not ended after a while; return how, as far as that is known."""
        self._let_go()
        try:
            return self._starter.ask({"end": self.pid, "grace_s": grace_s, "answer": True})
        except Lost:
            return {}

    def close(self) -> None:
        """End the decoder without waiting for its end."""
        self._let_go()
        with suppress(Lost):
            self._starter.tell({"end": self.pid, "grace_s": 0, "answer": False})

    def _let_go(self) -> None:
        self._socket.close()
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _heard(self, what: str, hear: Callable[[wire.Listener], T]) -> T:
        silence_s = self._limits.decode_timeout_s
        listener = wire.Listener(self._socket, silence_s, PATIENCE * silence_s)
        try:
            return hear(listener)
        except wire.Silent:
            self.close()
            attempts = 1 if listener.over else ATTEMPTS
            text = f"did not {what} in time (decode_timeout_s is {silence_s:g})"
            raise Ended(text, "raise decode_timeout_s", attempts) from None
        except wire.Nonsense as error:
            self.close()
            raise Ended(f"gave a senseless answer ({error})", _RE_ENCODE) from None
        except wire.Gone:
            raise _why(self.end(_GRACE_S), self._limits) from None

    def _open(self, listener: wire.Listener) -> Video:
        kind, content = listener.message(wire.OPENED, wire.FAILED)
        if kind == wire.FAILED:
            raise self._failure(content)
        facts = _object(content)
        height, width, count, length = (_number(facts.get(name)) for name in ("height", "width", "frames", "names"))
        check_pixels(self._path, height, width, self._limits)
        if not (1 <= count <= self._limits.max_frames and 0 < length <= 256 * count):
            raise wire.Nonsense(f"{count} frames")
        times = np.frombuffer(listener.exactly(8 * count), dtype="<f8").astype(np.float64)
        names = tuple(listener.exactly(length).decode("utf-8", "surrogateescape").split("/"))
        check_times(self._path, times, self._limits)
        check_names(self._path, names)
        if len(names) != count or len(set(names)) != count:
            raise wire.Nonsense("names that are not one a frame")
        self._share_memory(3 * height * width)
        return Video((height, width), times, names)

    def _share_memory(self, length: int) -> None:
        """Make memory for one frame. Sealed: if the decoder could shrink it, reading here would end this process."""
        import fcntl  # not on every platform

        descriptor = os.memfd_create("frame", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(descriptor, length)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._memory = mmap.mmap(descriptor, length, prot=mmap.PROT_READ)
            try:
                socket.send_fds(self._socket, [b"m"], [descriptor])
            except OSError:
                raise wire.Gone from None
        finally:
            os.close(descriptor)

    def _frame(self, listener: wire.Listener, number: int) -> NDArray[np.uint8]:
        if self._memory is None:
            raise ValueError("the decoder has ended")
        asked = wire.NUMBER.pack(number)
        try:
            self._socket.sendall(asked)
        except OSError:
            raise wire.Gone from None
        kind, content = listener.message(wire.FRAME, wire.FAILED)
        if kind == wire.FAILED:
            raise self._failure(content)
        if content != asked:
            raise wire.Nonsense(f"another frame than {number}")
        frame: NDArray[np.uint8] = np.frombuffer(self._memory, dtype=np.uint8).reshape(*self.video.size, 3).copy()
        return frame

    def _failure(self, content: bytes) -> VideoError | EnvironmentProblem | Ended:
        facts = _object(content)
        if facts.get("kind") == "memory":
            self.close()
            return _out_of_memory(self._limits)
        message, hint = facts.get("message"), facts.get("hint")
        if not isinstance(message, str) or not isinstance(hint, str | None):
            raise wire.Nonsense("no reason")
        kind = EnvironmentProblem if facts.get("kind") == "environment" else VideoError
        return kind(one_line(message[:_LONGEST_TEXT]), hint and one_line(hint[:_LONGEST_TEXT]))


def _why(end: dict[str, Any], limits: DecodeLimits) -> Ended:
    """Say why a decoder hung up."""
    code, cpu_s = end.get("code", -signal.SIGKILL), end.get("cpu_s", 0.0)
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and cpu_s >= limits.decode_cpu_s):
        return Ended(f"used more than {limits.decode_cpu_s} s of CPU time (decode_cpu_s)", "raise decode_cpu_s")
    if code >= 0:
        return Ended(f"ended with exit code {code}", _RE_ENCODE, ATTEMPTS)
    name = f"signal {-code}"
    with suppress(ValueError):
        name = signal.Signals(-code).name
    if code == -signal.SIGKILL:
        return Ended(f"was killed by {name}", "see whether the machine is short of memory", ATTEMPTS_KILLED)
    much = end.get("memory_kb", 0) > limits.decode_memory_mb * 1024 // 2
    perhaps = f" (for want of memory, perhaps: decode_memory_mb is {limits.decode_memory_mb})" if much else ""
    return Ended(f"was killed by {name}{perhaps}", _RE_ENCODE, ATTEMPTS)


def _out_of_memory(limits: DecodeLimits) -> Ended:
    return Ended(
        f"used more than {limits.decode_memory_mb} MB of memory (decode_memory_mb)",
        "raise decode_memory_mb, or scale the video down",
    )


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise wire.Nonsense("no JSON") from None
    if not isinstance(value, dict):
        raise wire.Nonsense("no object")
    return value


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise wire.Nonsense("no number")
    return value
