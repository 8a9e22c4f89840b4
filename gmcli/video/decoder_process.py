"""Be the process that starts decoders: fork one for each video, end it when told, say how it ended.

Started as `python -m gmcli.video.decoder_process FD PARENT MODULE`: FD is this process's end of a socket, PARENT the pid of
who wants frames, MODULE has `open_video`. A fork of a process that has all it needs, and one thread only, costs some
milliseconds and is clean: what one video does to its decoder, the next one does not feel.
"""

import errno
import gc
import importlib
import json
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gmcli.errors import EnvironmentProblem, VideoError
from gmcli.video import OpenVideo, VideoReader, confine, wire
from gmcli.video.container import reason
from gmcli.video.limits import DecodeLimits

# A decoder's own descriptor; below are the standard ones, above is nothing.
_CONNECTION = 3
_SIGN_OF_LIFE_S = 1.0
# How often this process looks whether its parent is still there, should somebody else hold the socket open.
_LOOK_S = 5.0
_SLEEP_S = 0.0005, 0.02


def main() -> None:
    """Serve the parent at the other end of the socket until it hangs up."""
    # The terminal sends Ctrl-C to every process; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    parent = int(sys.argv[2])
    open_video: OpenVideo = importlib.import_module(sys.argv[3]).open_video
    measures = ["memory", "cpu", "file size"]
    measures += ["network"] if confine.keep_from_network() else []
    measures += ["writing"] if confine.landlock_version() > 0 else []
    confine.drop_privileges()
    # What is there now stays for ever: the decoders' collectors need not look at it, nor copy its pages.
    gc.collect()
    gc.freeze()
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    try:
        connection.send(json.dumps(measures).encode())
        while os.getppid() == parent:
            if poll.poll(_LOOK_S * 1000) and not _serve(connection, open_video):
                return
    except ConnectionError:
        return


def _serve(connection: socket.socket, open_video: OpenVideo) -> bool:
    """Do what one message asks for; False where the parent has hung up."""
    content, descriptors, _, _ = socket.recv_fds(connection, wire.LONGEST_REQUEST, 1, socket.MSG_CMSG_CLOEXEC)
    if not content:
        return False
    request = json.loads(content)
    if "end" in request:
        reply = _end(request["end"], request["grace_s"])
        if not request["answer"]:
            return True
    else:
        own, decoder = os.getpid(), os.fork()
        if decoder == 0:
            _be_decoder(own, descriptors[0], open_video, request)
        os.close(descriptors[0])
        reply = {"pid": decoder}
    connection.send(json.dumps(reply).encode())
    return True


def _end(decoder: int, grace_s: float) -> dict[str, Any]:
    """Wait for a decoder's own end for a while, then kill it.

    Returns its exit code (negative: the signal), CPU seconds and largest memory; nothing if it is none of ours, or lies
    where not even SIGKILL reaches it.
    """
    deadline = time.monotonic() + grace_s
    sleep_s, longest_s = _SLEEP_S
    killed = False
    try:
        while True:
            done, status, usage = os.wait4(decoder, os.WNOHANG)
            if done:
                cpu_s = usage.ru_utime + usage.ru_stime
                return {"code": os.waitstatus_to_exitcode(status), "cpu_s": cpu_s, "memory_kb": usage.ru_maxrss}
            if time.monotonic() >= deadline:
                if killed:
                    return {}
                os.kill(decoder, signal.SIGKILL)
                killed, deadline = True, time.monotonic() + _LOOK_S
            time.sleep(sleep_s)
            sleep_s = min(2 * sleep_s, longest_s)
    except (ChildProcessError, ProcessLookupError):
        return {}


def _be_decoder(starter: int, descriptor: int, open_video: OpenVideo, request: dict[str, Any]) -> None:
    """Be one video's decoder; does not return."""
    code = 1
    try:
        confine.die_with_parent(starter)
        limits = DecodeLimits(**request["limits"])
        os.dup2(1, 2)  # libraries chatter about broken files
        os.dup2(descriptor, _CONNECTION)
        for other in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
            if other > _CONNECTION:
                with suppress(OSError):  # the listing's own
                    os.close(other)
        confine.limit_resources(limits)
        confine.forbid_changes()
        _decode(socket.socket(fileno=_CONNECTION), open_video, request, limits)
        code = 0
    finally:
        os._exit(code)


def _decode(connection: socket.socket, open_video: Any, request: dict[str, Any], limits: DecodeLimits) -> None:
    """Open a video, say what it is, and deliver frames until nobody wants more."""
    try:
        reader: VideoReader = open_video(
            request["path"],
            reader=request["reader"],
            fps=request["fps"],
            limits=limits,
            watch=_signs_of_life(connection),
        )
        names = "/".join(reader.names).encode("utf-8", "surrogateescape")
        (height, width), count = reader.size, len(reader.times)
        facts = {"height": height, "width": width, "frames": count, "names": len(names)}
        connection.sendall(wire.message(wire.OPENED, json.dumps(facts).encode()))
        connection.sendall(reader.times.astype("<f8").tobytes())
        connection.sendall(names)
        memory = _memory(connection, 3 * height * width)
    except Exception as error:
        connection.sendall(_failure(request["path"], error))
        return
    while number := connection.recv(wire.NUMBER.size, socket.MSG_WAITALL):
        try:
            (frame,) = reader.frames([wire.NUMBER.unpack(number)[0]])
            memory[:] = frame.reshape(-1).data
        except Exception as error:
            connection.sendall(_failure(request["path"], error))
        else:
            connection.sendall(wire.message(wire.FRAME, number))


def _memory(connection: socket.socket, length: int) -> mmap.mmap:
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 1, socket.MSG_CMSG_CLOEXEC)
    memory = mmap.mmap(descriptors[0], length)
    os.close(descriptors[0])
    return memory


def _signs_of_life(connection: socket.socket) -> Callable[[], None]:
    last = time.monotonic()

    def watch() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _SIGN_OF_LIFE_S:
            last = now
            connection.sendall(wire.message(wire.WORKING))

    return watch


def _failure(path: str, error: Exception) -> bytes:
    """Put an exception into a message, what it may mean first: readers wrap libraries' errors into their own."""
    cause: BaseException | None = error
    while cause is not None and not _is_memory(cause):
        cause = cause.__cause__
    if cause is not None:
        kind, text, hint = "memory", "", None
    elif isinstance(error, VideoError | EnvironmentProblem):
        kind = "video" if isinstance(error, VideoError) else "environment"
        text, hint = error.message, error.hint
    else:
        kind, text, hint = "video", f"{path}: cannot be decoded ({type(error).__name__}: {reason(error)})", None
    content = json.dumps({"kind": kind, "message": text, "hint": hint}).encode()
    return wire.message(wire.FAILED, content if len(content) <= wire.LONGEST[wire.FAILED] else b"{}")


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM


if __name__ == "__main__":
    main()
