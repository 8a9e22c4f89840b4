"""Decode strangers' videos in processes that can do little harm, and outlive whatever happens to them.

One small process, started once, forks a decoder for each video (decoder_process.py). A decoder has limits on memory, CPU
time and files, and, where the kernel lets it, no network, no way to change or run a file, and none to signal or trace
other processes (confine.py). Frames come through memory that this side made and sealed; everything else that a decoder
says is checked (wire.py, decoder.py). One that dies or falls silent is replaced, and reading goes on at the frame where it
stopped.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from gmcli.errors import EnvironmentProblem, VideoError
from gmcli.video import ReaderName, VideoReader, open_video
from gmcli.video.checks import check_indices
from gmcli.video.decoder import ATTEMPTS, Decoder, Ended, Lost, Starter, Video
from gmcli.video.limits import DEFAULT_LIMITS, DecodeLimits

log = logging.getLogger("gmcli.video")

T = TypeVar("T")


class SandboxedReader:
    """Read a video through a decoder in the sandbox: a VideoReader, whose frames are those of the reader in there."""

    def __init__(self, sandbox: "DecoderSandbox", path: str, reader: ReaderName, fps: float | None) -> None:
        self.path = path
        self._sandbox, self._reader, self._fps = sandbox, reader, fps
        self._decoder: Decoder | None = None
        self._lost = 0
        self._video: Video | None = None
        self._video = video = self._persist(lambda decoder: decoder.video)
        self.size, self.times = video.size, video.times
        self.names: Sequence[str] = list(video.names)

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames with these numbers, one at a time, each [H,W,3] uint8 RGB in memory of its own.

        `indices` must ascend strictly, else ValueError. Raises VideoError for a frame that is not there or is damaged,
        and where decoders end at it.
        """
        check_indices(self.path, indices, len(self.times))
        return (self._frame(index) for index in indices)

    def close(self) -> None:
        """End the decoder; reading on starts another one."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _frame(self, number: int) -> NDArray[np.uint8]:
        return self._persist(lambda decoder: decoder.frame(number))

    def _persist(self, action: Callable[[Decoder], T]) -> T:
        """Do something with the decoder, and again with another one where that may help."""
        while True:
            try:
                if self._decoder is None:
                    self._decoder = self._open()
                return action(self._decoder)
            except Ended as end:
                self._decoder = None
                self._lost += 1
                again = self._lost < end.attempts
                log.warning("%s: its decoder %s%s", self.path, end.text, "; trying again" if again else "")
                if not again:
                    times = f", the {self._lost}th that did" if self._lost > 2 else ", twice" if self._lost == 2 else ""
                    raise VideoError(f"{self.path}: its decoder {end.text}{times}", end.hint) from None

    def _open(self) -> Decoder:
        decoder = self._sandbox.start_decoder(self.path, self._reader, self._fps)
        if self._video is not None and not _same(self._video, decoder.video):
            decoder.close()
            raise VideoError(f"{self.path}: has changed while it was read", "leave the files alone during a run")
        return decoder


class DecoderSandbox:
    """Open videos in decoders of their own. Use as a context: on leaving it no process of it is left.

    `limits` hold for each video. `reader_module` is where the decoders find `open_video`; another one is for tests. May be
    used by several threads. Elsewhere than on Linux videos are opened in this process.
    """

    def __init__(self, limits: DecodeLimits = DEFAULT_LIMITS, *, reader_module: str = "gmcli.video") -> None:
        self.limits = limits
        self._module = reader_module
        self._lock = threading.Lock()
        self._closed = False
        # Started now, so that it is ready by the time that it is needed.
        self._starter: Starter | None = Starter(reader_module) if sys.platform == "linux" else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._closed = True
            if self._starter is not None:
                self._starter.kill()

    def measures(self) -> str:
        """Say what decoders are kept from, in words; "none" where they run in this process. Raises EnvironmentProblem."""
        if self._starter is None:
            return "none: this is not Linux"
        return ", ".join(self._with_starter(Starter.measures))

    def open(self, path: str | Path, *, reader: ReaderName = "pyav", fps: float | None = None) -> VideoReader:
        """Open a video as `gmcli.video.open_video` does; raises as that does, and VideoError where decoders end."""
        if self._starter is None:
            return open_video(path, reader=reader, fps=fps, limits=self.limits)
        return SandboxedReader(self, str(path), reader, fps)

    def start_decoder(self, path: str, reader: ReaderName, fps: float | None) -> Decoder:
        """Start a decoder and open a video in it."""
        return self._with_starter(lambda starter: Decoder(starter, path, reader, fps, self.limits))

    def _with_starter(self, action: Callable[[Starter], T]) -> T:
        """Do something with the process that starts decoders, and once more with a fresh one if that is gone."""
        for _ in range(ATTEMPTS):
            starter = self._starter
            if self._closed or starter is None:
                raise ValueError("the sandbox is closed")
            try:
                return action(starter)
            except Lost:
                with self._lock:
                    if self._starter is starter and not self._closed:
                        log.warning("the process that starts decoders is gone; starting another one")
                        starter.kill()
                        self._starter = Starter(self._module)
        raise EnvironmentProblem("the process that decodes videos cannot be started", "Run `gmcli doctor`.")


def _same(a: Video, b: Video) -> bool:
    return a.size == b.size and a.names == b.names and np.array_equal(a.times, b.times)
