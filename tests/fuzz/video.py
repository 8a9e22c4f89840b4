"""Break small files of every kind, and see that the sandbox gives frames or a reason for each, in time.

    python -m tests.fuzz.video --minutes 10 [--seed 1] [--keep FOLDER]

A decoder that dies is no failure: that is what the sandbox is for. What killed it is kept, to be reported to those who
wrote the decoder. Anything else but frames and VideoError is a failure. The mutations are our own: coverage cannot guide
them, as what is fuzzed are libraries without instrumentation in another process.
"""

import argparse
import hashlib
import logging
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gmcli.errors import VideoError
from gmcli.video import OpenVideo
from gmcli.video.decoder import ATTEMPTS, PATIENCE
from gmcli.video.limits import DecodeLimits
from gmcli.video.sandbox import DecoderSandbox

CORPUS = Path(__file__).parent / "corpus"
LIMITS = DecodeLimits(
    max_pixels=1 << 22,
    max_frames=1000,
    decode_memory_mb=1024,
    decode_cpu_s=20,
    decode_timeout_s=10,
    max_duration_s=3600,
)
IMAGES = (".png", ".jpg", ".bmp", ".webp")
# Numbers at which arithmetic goes wrong.
NUMBERS = (0, 1, 2, 7, 8, 16, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_SLACK_S = 60.0


class Failure(Exception):
    """Say what came of a file that should not have."""


def mutants(seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield broken files for ever, each with a name that ends as its kind does; equal seeds give equal files."""
    whole = {path.name: path.read_bytes() for path in sorted(CORPUS.iterdir())}
    draw = random.Random(seed)
    names = list(whole)
    while True:
        name = draw.choice(names)
        content = bytearray(whole[name])
        for _ in range(draw.choice((1, 1, 2, 4, 16))):
            content = draw.choice(MUTATIONS)(draw, content, whole[draw.choice(names)])
        yield name, bytes(content)


def flip(draw: random.Random, content: bytearray, other: bytes) -> bytearray:
    if content:
        content[_near_front(draw, content)] ^= 1 << draw.randrange(8)
    return content


def number(draw: random.Random, content: bytearray, other: bytes) -> bytearray:
    width, order = draw.choice((1, 2, 4, 4, 8)), draw.choice(("big", "little"))
    at = _near_front(draw, content)
    content[at : at + width] = (draw.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, order)
    return content


def box(draw: random.Random, content: bytearray, other: bytes) -> bytearray:
    """Change a length before, or a number after, what looks like the name of an MP4 or AVI box."""
    found = [match.start() for match in re.finditer(rb"[a-z][a-z0-9 ]{3}", content)]
    if not found:
        return number(draw, content, other)
    at = max(0, draw.choice(found) + draw.choice((-4, 4, 8, 12, 16)))
    content[at : at + 4] = draw.choice(NUMBERS).to_bytes(4, draw.choice(("big", "little")))
    return content


def cut(draw: random.Random, content: bytearray, other: bytes) -> bytearray:
    return (
        content[: _near_front(draw, content)] if draw.random() < 0.3 else content[: len(content) - draw.randrange(64)]
    )


def drop(draw: random.Random, content: bytearray, other: bytes) -> bytearray:
    at = _near_front(draw, content)
    del content[at : at + draw.randrange(1, 64)]
    return content


def repeat(draw: random.Random, content: bytearray, other: bytes) -> bytearray:
    at = _near_front(draw, content)
    part = content[at : at + draw.randrange(1, 256)]
    content[at:at] = part * draw.choice((1, 1, 2, 50))
    return content


def splice(draw: random.Random, content: bytearray, other: bytes) -> bytearray:
    at, start = _near_front(draw, content), draw.randrange(len(other))
    content[at:at] = other[start : start + draw.randrange(1, 512)]
    return content


MUTATIONS = (flip, flip, flip, number, number, box, box, cut, drop, repeat, splice)


def _near_front(draw: random.Random, content: bytearray) -> int:
    """Choose a place, half of the time in the first 256 bytes, where headers are."""
    return draw.randrange(max(1, min(len(content), 256) if draw.random() < 0.5 else len(content)))


def put(folder: Path, name: str, content: bytes) -> Path:
    """Write a file, an image into a folder of its own as its only frame; return what is to be opened."""
    if not name.endswith(IMAGES):
        (folder / name).write_bytes(content)
        return folder / name
    place = folder / name.replace(".", "-")
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(content)
    return place


def look(open_video: OpenVideo, path: Path) -> str:
    """Open a video and read some frames; return what came of it: "read", "refused", "beyond limits" or "died". Raises Failure."""
    start = time.monotonic()
    try:
        with open_video(path) as reader:
            count = len(reader.times)
            if not (1 <= count <= LIMITS.max_frames and len(reader.names) == count and reader.times[0] == 0):
                raise Failure(f"{count} frames, {len(reader.names)} names")
            for frame in reader.frames(sorted({0, count // 2, count - 1})):
                if frame.shape != (*reader.size, 3) or frame.dtype != np.uint8:
                    raise Failure(f"a frame of {frame.shape} {frame.dtype}")
        outcome = "read"
    except VideoError as error:
        if not error.message.startswith(str(path)) or "\n" in error.message:
            raise Failure(f"a bad message: {error.message!r}") from error
        beyond = "(decode_memory_mb)" in error.message or "(decode_cpu_s)" in error.message
        outcome = (
            "died" if ": its decoder " in error.message and not beyond else "beyond limits" if beyond else "refused"
        )
    except Failure:
        raise
    except Exception as error:
        raise Failure(f"{type(error).__name__}: {error}") from error
    if (seconds := time.monotonic() - start) > ATTEMPTS * PATIENCE * LIMITS.decode_timeout_s + _SLACK_S:
        raise Failure(f"took {seconds:.0f} s")
    return outcome


def fuzz(open_video: OpenVideo, folder: Path, seed: int, *, count: int, seconds: float, keep: Path) -> Counter[str]:
    """Look at so many mutants, or for so long; count what came of them. What kills a decoder is copied to `keep`.

    Raises Failure, which names the copy of the file.
    """
    good = {path.name: put(folder, f"good-{path.name}", path.read_bytes()) for path in sorted(CORPUS.iterdir())}
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + seconds
    for made, (name, content) in enumerate(mutants(seed)):
        if made == count or time.monotonic() > end:
            break
        path = put(folder, name, content)
        try:
            outcome = look(open_video, path)
            if outcome == "died" or made % 50 == 0:
                if outcome == "died":
                    _keep(keep, name, content)
                if look(open_video, good[name]) != "read":
                    raise Failure(f"afterwards {good[name]} could not be read")
        except Failure as failure:
            raise Failure(f"{_keep(keep, name, content)}: {failure}") from failure
        outcomes[outcome] += 1
    return outcomes


def _keep(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(content).hexdigest()[:12]}-{name}"
    path.write_bytes(content)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.video", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the mutations (default: the time)")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-kept"), help="where files that break something are kept"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"seed {options.seed}, {options.minutes:g} minutes")
    with DecoderSandbox(LIMITS) as sandbox, tempfile.TemporaryDirectory() as folder:
        try:
            outcomes = fuzz(
                sandbox.open, Path(folder), options.seed, count=-1, seconds=60 * options.minutes, keep=options.keep
            )
        except Failure as failure:
            print(f"FAILED: {failure}")
            return 1
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    if outcomes["died"]:
        print(f"{options.keep} has what killed decoders; none of it got out of the sandbox")
    return 0


if __name__ == "__main__":
    sys.exit(main())
