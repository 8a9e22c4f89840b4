"""Be a video reader that is broken, or in a stranger's hands: in the sandbox's process, named instead of `gmcli.video`.

The path says what happens, as "<misdeed> <argument>"; "good" is an honest video of five grey frames.
"""

import ctypes
import json
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np

from gmcli.video import wire

COUNT, HEIGHT, WIDTH = 5, 6, 8
CONNECTION = 3  # the decoder's end of the socket


class Reader:
    """Be what every reader is, five grey frames of 8x6 pixels."""

    def __init__(self, path, watch):
        self.path, self.watch = path, watch
        self.size = (HEIGHT, WIDTH)
        self.times = np.arange(COUNT) / 4
        self.names = [f"{number:05d}" for number in range(COUNT)]

    def frames(self, indices):
        for number in indices:
            misdeed, _, argument = self.path.partition(" ")
            if misdeed.startswith("frame-") and number == 2:
                globals()[misdeed.removeprefix("frame-").replace("-", "_")](argument, self)
            yield np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8)

    def close(self):
        pass


def open_video(path, *, reader, fps, limits, watch):
    made = Reader(path, watch)
    misdeed, _, argument = path.partition(" ")
    if misdeed == "frame-shrink":
        os.close = lambda descriptor: None  # else only the mapping would be left
    if misdeed != "good" and not misdeed.startswith("frame-"):
        globals()[misdeed.replace("-", "_")](argument, made)
    return made


# --- How a decoder ends -----------------------------------------------------------------------------------------------


def segfault(argument, reader):
    ctypes.string_at(0)


def die(argument, reader):
    os.kill(os.getpid(), signal.Signals[argument])


def leave(argument, reader):
    os._exit(int(argument))


def hang(argument, reader):
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(3600)


def pretend(argument, reader):
    while True:
        os.write(CONNECTION, wire.message(wire.WORKING))
        time.sleep(0.05)


def toil(argument, reader):
    """Take three times as long as it may take to fall silent, and say that it gets on."""
    end = time.monotonic() + float(argument)
    while time.monotonic() < end:
        time.sleep(0.05)
        reader.watch()


def burn(argument, reader):
    signal.signal(signal.SIGXCPU, signal.SIG_IGN if argument == "deaf" else signal.SIG_DFL)
    while True:
        pass


def allocate(argument, reader):
    held = []
    while True:
        held.append(np.ones(1 << 24, np.uint8))


def allocate_unchecked(argument, reader):
    """Use what malloc returns, as many a decoder does."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    while True:
        ctypes.memset(libc.malloc(ctypes.c_size_t(1 << 24)), 1, 1 << 24)


def throw(argument, reader):
    raise RuntimeError("what\nis this?")


# --- What it says -----------------------------------------------------------------------------------------------------


def say(content):
    end = time.monotonic() + 5
    while content and time.monotonic() < end:
        content = content[os.write(CONNECTION, content) :]
    time.sleep(3600)


def opened(height=HEIGHT, width=WIDTH, frames=COUNT, names=5 * 6 - 1):
    facts = {"height": height, "width": width, "frames": frames, "names": names}
    return wire.message(wire.OPENED, json.dumps(facts).encode())


TIMES = (np.arange(COUNT) / 4).astype("<f8").tobytes()
NAMES = b"00000/00001/00002/00003/00004"
SAYINGS = {
    "noise": np.random.default_rng(3).bytes(100_000),
    "endless": wire.HEAD.pack(wire.OPENED, 0xFFFFFFFF) + bytes(1 << 20),
    "unasked": wire.message(wire.FRAME, wire.NUMBER.pack(0)),
    "no-json": wire.message(wire.OPENED, b"{"),
    "deep": wire.message(wire.FAILED, b"[" * 60_000),
    "pickle": wire.message(wire.OPENED, b"cos\nsystem\n(S'touch pwned'\ntR."),
    "list": wire.message(wire.OPENED, b"[1]"),
    "text-size": opened(height="6"),
    "bool-size": opened(height=True),
    "negative": opened(height=-1),
    "no-frames": opened(frames=0),
    "a-billion-frames": opened(frames=10**9, names=10**9),
    "many-names": opened(names=10**8),
    "sixteen-k": opened(16384, 16384),
    "nan": opened() + np.full(COUNT, np.nan).tobytes() + NAMES,
    "back": opened() + np.arange(COUNT)[::-1].astype("<f8").tobytes() + NAMES,
    "for-ever": opened() + (np.arange(COUNT) * 1e9).tobytes() + NAMES,
    "up": opened() + TIMES + NAMES.replace(b"00001", b"../.."),
    "bell": opened() + TIMES + NAMES.replace(b"00001", b"000\x071"),
    "twice": opened() + TIMES + NAMES.replace(b"00001", b"00002"),
    "no-reason": wire.message(wire.FAILED, b'{"kind": "video", "message": 5, "hint": null}'),
    "lines": wire.message(wire.FAILED, json.dumps({"kind": "video", "message": "a\nb\x1b[31m", "hint": None}).encode()),
}


def speak(argument, reader):
    say(SAYINGS[argument])


def cut(argument, reader):
    """Hang up in the middle of a message."""
    os.write(CONNECTION, wire.HEAD.pack(wire.FAILED, 100)[:-2])
    os._exit(0)


def other_frame(argument, reader):
    say(wire.message(wire.FRAME, wire.NUMBER.pack(3)))


def long_frame(argument, reader):
    say(wire.HEAD.pack(wire.FRAME, 1 << 20) + bytes(1 << 20))


def shrink(argument, reader):
    """Take the memory for frames away from under who reads it."""
    for entry in Path("/proc/self/fd").iterdir():
        if "memfd:frame" in os.fsdecode(entry.readlink()):
            os.truncate(int(entry.name), 0)
            raise RuntimeError("did")


# --- What it does to others; what came of it is said in a name -----------------------------------------------------------


def attempt(reader, action):
    try:
        reader.names[0] = f"did {action()}"
    except OSError as error:
        reader.names[0] = f"failed {type(error).__name__}"


def write(argument, reader):
    attempt(reader, lambda: Path(argument).write_bytes(bytes(100)))


def remove(argument, reader):
    attempt(reader, lambda: Path(argument).unlink())


def run(argument, reader):
    attempt(reader, lambda: os.posix_spawn("/bin/true", ["true"], {}))


def connect(argument, reader):
    attempt(reader, lambda: socket.create_connection(("127.0.0.1", int(argument)), timeout=5))


def network(argument, reader):
    reader.names[0] = Path("/proc/self/ns/net").readlink().name


def kill(argument, reader):
    attempt(reader, lambda: os.kill(int(argument), signal.SIGUSR1))


def descriptors(argument, reader):
    reader.names[0] = ",".join(sorted(p.name for p in Path("/proc/self/fd").iterdir()))


def limits(argument, reader):
    import resource

    kinds = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)
    reader.names[0] = ",".join(str(resource.getrlimit(kind)[0]) for kind in kinds)


def file_grows(argument, reader):
    """Write through a descriptor that was open before the limits were set."""
    attempt(reader, lambda: os.write(os.memfd_create("file"), b"x"))
