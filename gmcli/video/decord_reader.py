"""Decode video files with decord, for those who ask for it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gmcli.errors import EnvironmentProblem, VideoError
from gmcli.video.checks import check_indices
from gmcli.video.container import MATROSKA, MP4
from gmcli.video.limits import DEFAULT_LIMITS, DecodeLimits, do_nothing
from gmcli.video.pyav_reader import PyAvReader

USE_PYAV = "read it with the pyav reader"
# Frames of the two readers are equal but for the versions of FFmpeg behind them; neighbouring frames differ by more.
MEAN_TOLERANCE = 4.0


class DecordReader:
    """Read a video file with decord (package decord2), at PyAV's numbering and times.

    decord is exact where frames are read in ascending order from a plain MP4 or Matroska file; others are refused (it
    misnumbers transport streams and AVI). It miscounts files with an edit list (a cut without re-encoding), can be a
    frame off in open GOPs, ignores mirroring, fails at some widths (96), and
    may end the process on hostile files. So the file is opened with PyAV first: what PyAV cannot read is refused as
    there, and so is a file whose frame count, frame size or first frame decord sees otherwise. Raises VideoError, and
    EnvironmentProblem where decord is not installed.
    """

    def __init__(
        self, path: str | Path, *, limits: DecodeLimits = DEFAULT_LIMITS, watch: Callable[[], None] = do_nothing
    ) -> None:
        try:
            import decord
        except (ImportError, OSError) as error:  # OSError: a shared library is missing
            raise EnvironmentProblem("the decord reader needs the package decord2", "pip install decord2") from error
        decord.logging.set_level(decord.logging.QUIET)
        with PyAvReader(path, limits=limits, watch=watch) as reference:
            if reference.counted or not reference.format.startswith((MP4, MATROSKA)):
                raise VideoError(f"{reference.path}: decord is not exact with this kind of file", USE_PYAV)
            self.path, self.size = reference.path, reference.size
            self.times = reference.times
            self.names: Sequence[str] = reference.names
            (first,) = reference.frames([0])
        self._decord = decord
        self._video = self._open()
        if (count := len(self._video)) != len(self.times):
            raise VideoError(
                f"{self.path}: decord counts {count} frames where there are {len(self.times)} (an edit list?)", USE_PYAV
            )
        if np.abs(first.astype(np.int16) - self._read(0)).mean() > MEAN_TOLERANCE:
            raise VideoError(f"{self.path}: decord shows another first frame than FFmpeg", USE_PYAV)

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames with these numbers, one at a time, each [H,W,3] uint8 RGB in memory of its own.

        `indices` must ascend strictly, else ValueError. Raises VideoError for a frame that is not there or is damaged.
        """
        check_indices(self.path, indices, len(self.times))
        return (self._read(index) for index in indices)

    def close(self) -> None:
        """Release the file and the decoder; reading on opens them again."""
        self._video = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Any:
        self._last = -1
        try:
            return self._decord.VideoReader(self.path)
        except Exception as error:  # decord raises DECORDError or RuntimeError, both with several lines
            raise VideoError(f"{self.path}: decord cannot open it", USE_PYAV) from error

    def _read(self, number: int) -> NDArray[np.uint8]:
        if self._video is None or number <= self._last:  # going back is where decord is inexact
            self._video = self._open()
        try:
            image: NDArray[np.uint8] = self._video.get_batch([number]).asnumpy()[0]
        except Exception as error:  # as above
            raise VideoError(f"{self.path}: decord could not decode frame {number}", USE_PYAV) from error
        self._last = number
        if image.shape[:2] != self.size:
            (height, width), (own_height, own_width) = image.shape[:2], self.size
            raise VideoError(
                f"{self.path}: decord's frames are {width}x{height} instead of {own_width}x{own_height}", USE_PYAV
            )
        return image
