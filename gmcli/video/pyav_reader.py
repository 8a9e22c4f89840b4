"""Decode video files with FFmpeg's libraries through PyAV."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, cast

import numpy as np
from av.buffer import Buffer
from av.filter import Graph
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from gmcli.errors import VideoError
from gmcli.video.checks import check_count, check_indices, check_pixels, check_times
from gmcli.video.container import check_file, index_frames, is_flush, open_container, reason
from gmcli.video.limits import DEFAULT_LIMITS, DecodeLimits, do_nothing
from gmcli.video.structure import COPY_AGAIN

NOTHING_FED = -(1 << 63)  # below every pts
FALLBACK_FPS = 25.0  # ffmpeg's choice, too, for raw streams that do not tell


class _Damage(Exception):
    """Say which frame the decoder did not deliver as it should."""


class _Turn(NamedTuple):
    """Say how to bring an image upright: rows and columns exchanged first, then reversed."""

    transpose: bool
    flip_y: bool
    flip_x: bool


class PyAvReader:
    """Read a video file frame-accurately: the frames, their order and their colours are those of the ffmpeg command.

    Right for variable frame rates, B-frames, open GOPs and edit lists. Opening reads the whole file once without
    decoding (and decodes it once where the container does not tell the frames' order: raw streams, AVI with B-frames).
    Display matrices are applied (quarter turns, mirroring); pixel aspect ratios and cropping rectangles in the
    container are not, and interlaced frames are left as they are. A frame is refused, never guessed: where the decoder
    reports damage between the keyframe and the frame, VideoError is raised. Damage that the codec cannot notice (one
    flipped bit) stays unnoticed, and so do packets lost from MPEG program streams, FLV, Ogg and raw streams, or from
    the end of a transport stream: these containers promise nothing.

    `format` is libav's name of the container, `counted` says that the frames had to be counted by decoding, and
    `decoded_frames` how many came out of the decoder so far. `watch` is called for every packet read and every frame
    decoded, wanted or not. Raises VideoError, also for what is beyond `limits`. Source: FFmpeg's fftools.
    """

    def __init__(
        self, path: str | Path, *, limits: DecodeLimits = DEFAULT_LIMITS, watch: Callable[[], None] = do_nothing
    ) -> None:
        self.path = str(path)
        self._limits, self._watch = limits, watch
        self.decoded_frames = 0
        self._converter: Graph | None = None
        self._layout = (0, 0, "")
        self._turn: _Turn | None = None
        self._rotation = 0
        check_file(self.path)
        self._container, self._stream = open_container(self.path, limits)
        try:
            self._index = index_frames(self.path, self._container, self._stream, limits, watch)
            self.format, self.counted = self._container.format.name, not self._index.reliable
            self._restart()
            first, self.times = self._count() if self.counted else self._settle()
            check_times(self.path, self.times, limits)
            self.size = self._image(first).shape[:2]
            # The first frame was read out of turn, so reading starts anew.
            self._walk: Iterator[tuple[int, VideoFrame]] | None = None
        except BaseException:
            self.close()
            raise
        self.names: Sequence[str] = [f"{number:05d}" for number in range(len(self.times))]

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames with these numbers, one at a time, each [H,W,3] uint8 RGB in memory of its own.

        `indices` must ascend strictly, else ValueError. Raises VideoError for a frame that is not there or is damaged.
        """
        check_indices(self.path, indices, len(self.times))
        return (self._read(index) for index in indices)

    def close(self) -> None:
        """Release the file and the decoder; reading on opens them again."""
        self._walk = None
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, number: int) -> NDArray[np.uint8]:
        try:
            image = self._image(self._find(number))
        except _Damage as damage:
            self._walk = None
            raise VideoError(
                f"{self.path}: corrupt: frame {number} could not be decoded ({damage})", COPY_AGAIN
            ) from damage
        if image.shape[:2] != self.size:
            (height, width), (first_height, first_width) = image.shape[:2], self.size
            raise VideoError(
                f"{self.path}: frame {number} is {width}x{height}, the first frame {first_width}x{first_height}: "
                "the size changes in mid-stream",
                "re-encode the video to one size",
            )
        return image

    def _find(self, number: int) -> VideoFrame:
        """Decode on to the frame, or from the last keyframe before it where that leaves out frames."""
        if self._walk is None or number < self._next or self._pays_to_seek(number):
            if self._seek(number):
                # A "keyframe" may be a mere recovery point, from which decoding is not exact at once (intra refresh).
                with suppress(_Damage):
                    return self._advance(number)
            self._restart()
        return self._advance(number)

    def _advance(self, number: int) -> VideoFrame:
        for position, frame in self._walk or ():
            self._next = position + 1
            if position == number:
                return frame
        raise _Damage(f"the decoder stops at frame {self._next}")

    def _pays_to_seek(self, number: int) -> bool:
        keyframe = self._keyframe_pts(number)
        return keyframe > self._fed and int(np.searchsorted(self._index.pts, keyframe)) > self._next

    def _keyframe_pts(self, number: int) -> int:
        """Return the pts of the last keyframe shown no later than the frame, from which it can be decoded."""
        if self.counted:
            return NOTHING_FED
        keys = self._index.key_pts
        return int(keys[max(0, np.searchsorted(keys, self._index.pts[number], side="right") - 1)])

    def _seek(self, number: int) -> bool:
        """Move to that keyframe, or to an earlier one; False if only the start of the file will do."""
        pts = self._keyframe_pts(number)
        position = int(np.searchsorted(self._index.key_pts, pts))
        if position == 0:
            return False
        self._reopen()
        # Containers seek by pts (Matroska), by dts (transport streams) or something in between: see where we land.
        for target in (int(self._index.pts[number]), pts, int(self._index.key_dts[position])):
            with suppress(Exception):  # PyAV raises whatever its input leads it to
                self._container.seek(target, stream=self._stream)
                packets = self._container.demux(self._stream)
                first = next(packets)
                if first.is_keyframe and first.pts is not None and first.pts <= pts:
                    self._start(chain((first,), packets), int(np.searchsorted(self._index.pts, first.pts)))
                    return True
        return False

    def _restart(self) -> None:
        self._reopen()
        self._start(self._container.demux(self._stream), 0)

    def _reopen(self) -> None:
        """Start with a fresh decoder: flushing one is not exact for every codec (Theora with frame threads)."""
        self.close()
        self._container, self._stream = open_container(self.path, self._limits)

    def _start(self, packets: Iterable["Packet[VideoStream]"], number: int) -> None:
        self._fed = NOTHING_FED
        self._next = number
        self._walk = self._numbered(packets, number)

    def _numbered(self, packets: Iterable["Packet[VideoStream]"], number: int) -> Iterator[tuple[int, VideoFrame]]:
        """Decode, and number the frames from `number` on. Raises _Damage at the first that is missing or incomplete."""
        pts = self._index.pts
        for frame in self._decoded(packets):
            if not self.counted:
                if number < len(pts) and frame.pts is not None and frame.pts < pts[number]:
                    continue  # shown before the keyframe we start at, and refers to what precedes it
                if number == len(pts) or frame.pts != pts[number]:
                    raise _Damage(f"frame {number} is missing")
            if frame.is_corrupt:
                raise _Damage(f"frame {number} is damaged")
            yield number, frame
            number += 1

    def _decoded(self, packets: Iterable["Packet[VideoStream]"]) -> Iterator[VideoFrame]:
        try:
            for packet in packets:
                if packet.size == 0 and not is_flush(packet):
                    continue  # the decoder would take it for the end
                if packet.pts is not None:
                    self._fed = max(self._fed, packet.pts)
                for frame in packet.decode():
                    self._watch()
                    self.decoded_frames += 1
                    yield frame
        except Exception as error:  # as above
            raise _Damage(reason(error)) from error

    def _settle(self) -> tuple[VideoFrame, NDArray[np.float64]]:
        """Decode the first frame; drop from the index what comes before the first keyframe and cannot be decoded."""
        index, first, decoded = self._index, None, set()
        try:
            for frame in self._decoded(self._container.demux(self._stream)):
                first = first or frame
                decoded.add(frame.pts)
                if frame.pts is None or frame.pts >= index.entry_pts:
                    break
        except _Damage as damage:
            raise VideoError(
                f"{self.path}: corrupt: its first frame could not be decoded ({damage})", COPY_AGAIN
            ) from damage
        keep = (index.pts >= index.entry_pts) | np.isin(index.pts, [pts for pts in decoded if pts is not None])
        if first is None or not keep.any():
            raise VideoError(f"{self.path}: corrupt: none of its frames could be decoded", COPY_AGAIN)
        self._index = replace(index, pts=index.pts[keep])
        return first, self._seconds(self._index.pts)

    def _count(self) -> tuple[VideoFrame, NDArray[np.float64]]:
        """Decode everything, to learn how many frames there are and when they are shown."""
        first: VideoFrame | None = None
        pts: list[int | None] = []
        try:
            for _, frame in self._walk or ():
                first = first or frame
                pts.append(frame.pts)
                check_count(self.path, len(pts), self._limits)
        except _Damage as damage:
            raise VideoError(
                f"{self.path}: corrupt: frame {len(pts)} could not be decoded ({damage})", COPY_AGAIN
            ) from damage
        if first is None:
            raise VideoError(f"{self.path}: corrupt: none of its frames could be decoded", COPY_AGAIN)
        # AVI's frames come out with each other's times, while the packets have the right ones in some order.
        for stamps in (np.array([stamp for stamp in pts if stamp is not None], dtype=np.int64), self._index.pts):
            if len(stamps) == len(pts) and np.all(np.diff(stamps) > 0):
                return first, self._seconds(stamps)
        return first, np.arange(len(pts)) / float(self._stream.average_rate or FALLBACK_FPS)

    def _seconds(self, pts: NDArray[np.int64]) -> NDArray[np.float64]:
        base = self._index.time_base
        return np.asarray((pts - pts[0]) * base.numerator / base.denominator, dtype=np.float64)

    def _image(self, frame: VideoFrame) -> NDArray[np.uint8]:
        check_pixels(self.path, frame.height, frame.width, self._limits)
        layout = (frame.width, frame.height, frame.format.name)
        try:
            if self._converter is None or layout != self._layout:
                self._converter, self._layout = _scaler(frame, "flags=bicubic"), layout
            self._converter.vpush(frame)
            image = self._upright(frame, np.asarray(self._converter.vpull().to_ndarray(), dtype=np.uint8))
        except VideoError:
            raise
        except Exception as error:  # as above
            self._converter = None  # it may hold the frame back, and give it out as the next one
            raise VideoError(f"{self.path}: cannot be converted from {layout[2]} to RGB ({reason(error)})") from error
        # The copy owns its pixels; what comes out lies in a padded frame, or in one that the decoder still uses.
        return np.array(image, order="C")

    def _upright(self, frame: VideoFrame, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn and mirror an image as its display matrix says."""
        if self._turn is None or frame.rotation != self._rotation:
            self._turn, self._rotation = _read_turn(self.path, frame), frame.rotation
        image = image.swapaxes(0, 1) if self._turn.transpose else image
        return image[:: -1 if self._turn.flip_y else 1, :: -1 if self._turn.flip_x else 1]


def _scaler(frame: VideoFrame, options: str) -> Graph:
    """Build a graph of ffmpeg's scale filter with these options, from frames like this one to rgb24.

    With the option "flags=bicubic" it is what the ffmpeg command builds. PyAV's own `to_ndarray(format="rgb24")` has
    other flags (bilinear), heeds where chroma samples lie and takes fields apart: up to 57 levels off for odd sizes,
    102 for 10 bits, 255 for interlaced frames.
    """
    graph = Graph()
    graph.threads = 1  # starting threads costs more than they save
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))
    scale, rgb24 = graph.add("scale", options), graph.add("format", "rgb24")
    graph.link_nodes(source, scale, rgb24, graph.add("buffersink")).configure()
    return graph


def _read_turn(path: str, frame: VideoFrame) -> _Turn:
    """Read a frame's display matrix: x' = a x + c y, y' = b x + d y.

    Raises VideoError for what is no quarter turn. Source: libavutil/display.h.
    """
    # PyAV ties a frame whose side data were looked at into a reference cycle, and megabytes of decoder memory with it;
    # so look at a thumbnail's, to which the scale filter copies them.
    graph = _scaler(frame, "2:2")
    graph.vpush(frame)
    matrix = _display_matrix(graph.vpull())
    if matrix is None and frame.rotation:
        matrix = _display_matrix(frame)
    if matrix is None:
        return _Turn(False, False, False)
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5] / 65536
    if max(abs(b), abs(c)) < 0.02 * min(abs(a), abs(d)):
        return _Turn(False, bool(d < 0), bool(a < 0))
    if max(abs(a), abs(d)) < 0.02 * min(abs(b), abs(c)):
        return _Turn(True, bool(b < 0), bool(c < 0))
    raise VideoError(f"{path}: is turned by other than a quarter turn", "re-encode the video upright")


def _display_matrix(frame: VideoFrame) -> Buffer | None:
    return cast("Mapping[str, Buffer]", frame.side_data).get("DISPLAYMATRIX")
