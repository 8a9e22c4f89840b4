"""Open video containers and list the frames in them, without decoding."""

import stat
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray

from gmcli.errors import VideoError
from gmcli.video.checks import check_count, check_duration, check_pixels
from gmcli.video.limits import DecodeLimits
from gmcli.video.structure import COPY_AGAIN, check_structure

# libav opens far more than videos: playlists that fetch URLs, subtitles, plain text as ANSI art. These are containers
# that hold video, and the audio formats that deserve a better message than "not a video".
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,apng,mxf,ivf,nut,rm,dv,yuv4mpegpipe,"
    "h264,hevc,m4v,mpegvideo,obu,vc1,wav,mp3,flac,aac"
)
# How libav's names for the containers begin; the rest of the name lists aliases.
MP4, MATROSKA, AVI = "mov", "matroska", "avi"


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """List the frames of a stream in presentation order, in units of `time_base` seconds.

    `pts`: [N] int64, ascending. `key_pts`, `key_dts`: [K] int64, the keyframes by ascending pts; an edit list may hide
    a keyframe from `pts`. `entry_pts`: pts of the first keyframe in decoding order. `reliable` says whether the
    decoder's frames can be told by pts; if not, they have to be counted by decoding.
    """

    pts: NDArray[np.int64]
    key_pts: NDArray[np.int64]
    key_dts: NDArray[np.int64]
    entry_pts: int
    time_base: Fraction
    reliable: bool


def check_file(path: str) -> None:
    """Raise VideoError for what is no file, or visibly not all of a file. Opens nothing with libav."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise VideoError(f"{path}: is not a regular file")
        if status.st_size == 0:
            raise VideoError(f"{path}: is empty (0 bytes)", COPY_AGAIN)
        check_structure(path, status.st_size)
    except FileNotFoundError as error:
        raise VideoError(f"{path}: no such file", "check the path in the manifest") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise VideoError(f"{path}: cannot be read ({reason(error)})") from error


def open_container(path: str, limits: DecodeLimits) -> tuple[InputContainer, VideoStream]:
    """Open a file and choose its main video stream as ffmpeg does. Raises VideoError."""
    try:
        container = av.open(
            f"file:{path}",  # else a colon in the name would be taken for a protocol
            mode="r",
            metadata_errors="replace",
            container_options={"protocol_whitelist": "file", "format_whitelist": FORMATS},
        )
    except Exception as error:  # PyAV raises whatever its input leads it to
        raise _not_a_video(path) from error
    try:
        return container, _choose_stream(path, container, limits)
    except BaseException:
        container.close()
        raise


class _Packet(NamedTuple):
    """Keep what the index needs of a packet; the packets themselves would be the whole file in memory."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_shown: bool
    is_whole: bool


def index_frames(
    path: str, container: InputContainer, stream: VideoStream, limits: DecodeLimits, watch: Callable[[], None]
) -> FrameIndex:
    """List the stream's frames by reading every packet once; call `watch` for each.

    Raises VideoError for a file that has lost its end, and at the first packet beyond the limits.
    """
    try:
        packets = _list_packets(path, container, stream, limits, watch)
    except VideoError:
        raise
    except Exception as error:  # as above
        raise VideoError(f"{path}: corrupt: it cannot be read to its end ({reason(error)})", COPY_AGAIN) from error
    _check_complete(path, container, stream, packets)

    shown = [packet.pts for packet in packets if packet.is_shown]
    pts = sorted({value for value in shown if value is not None})
    keys = [(packet.pts, packet.dts) for packet in packets if packet.is_keyframe and packet.pts is not None]
    # AVI stores no pts; libav makes some up, and they are wrong where frames are reordered.
    guessed = container.format.name == AVI and stream.codec_context.has_b_frames
    by_pts = sorted((pts, pts if dts is None else dts) for pts, dts in keys)
    return FrameIndex(
        pts=np.array(pts, dtype=np.int64),
        key_pts=np.array([pts for pts, _ in by_pts], dtype=np.int64),
        key_dts=np.array([dts for _, dts in by_pts], dtype=np.int64),
        entry_pts=keys[0][0] if keys else 0,
        time_base=stream.time_base or Fraction(1),
        reliable=bool(keys) and not guessed and len(pts) == len(shown),
    )


def _list_packets(
    path: str, container: InputContainer, stream: VideoStream, limits: DecodeLimits, watch: Callable[[], None]
) -> list[_Packet]:
    packets: list[_Packet] = []
    first = last = None
    base = float(stream.time_base or 1)
    for packet in container.demux(stream):
        watch()
        if is_flush(packet):
            continue
        packets.append(_note(stream, packet))
        # Hidden pictures and empty packets come on top of the frames, but not many.
        check_count(path, len(packets) // 2, limits)
        if packet.pts is not None and packets[-1].is_shown:
            first = packet.pts if first is None else min(first, packet.pts)
            last = packet.pts if last is None else max(last, packet.pts)
            check_duration(path, (last - first) * base, limits)
    check_count(path, sum(packet.is_shown for packet in packets), limits)
    return packets


def is_flush(packet: "Packet[VideoStream]") -> bool:
    """Tell the packet that ends demuxing, and makes the decoder give up its last frames, from an empty one."""
    return packet.size == 0 and packet.dts is None


def reason(error: Exception) -> str:
    """Return what an exception says, in one line and without libav's error numbers."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def _not_a_video(path: str) -> VideoError:
    try:
        with Path(path).open("rb") as file:
            head = file.read(8)
    except OSError as error:
        return VideoError(f"{path}: cannot be read ({reason(error)})")
    if head[4:] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return VideoError(f"{path}: truncated or corrupt: an MP4 file whose index (moov) cannot be read", COPY_AGAIN)
    if head[:4] in (b"\x1a\x45\xdf\xa3", b"RIFF"):
        return VideoError(f"{path}: truncated or corrupt: its headers cannot be read", COPY_AGAIN)
    return VideoError(f"{path}: is not a video in a known format")


def _choose_stream(path: str, container: InputContainer, limits: DecodeLimits) -> VideoStream:
    # Cover art is a video stream of one picture.
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError(f"{path}: has no video stream")
    if any(stream.codec_context is None for stream in streams):
        raise VideoError(f"{path}: no decoder for its video codec", "re-encode the video, for instance to H.264")
    # ffmpeg takes the largest picture; being marked as the default counts like five million pixels.
    stream = max(streams, key=lambda s: s.width * s.height + 5_000_000 * bool(s.disposition & Disposition.default))
    check_pixels(path, stream.height, stream.width, limits)
    check_count(path, stream.frames, limits)  # what the header promises; 0 where it does not say
    stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
    stream.codec_context.thread_type = cast(av.codec.context.ThreadType, "AUTO")
    return stream


def _note(stream: VideoStream, packet: "Packet[VideoStream]") -> _Packet:
    # Empty packets are AVI's way to say "nothing new"; VP8 keeps pictures that are never shown in packets of their own.
    hidden = packet.size == 0 or (
        stream.codec_context.codec.canonical_name == "vp8" and not bytes(packet)[0] & 0x10  # RFC 6386, 9.1
    )
    return _Packet(
        pts=packet.pts,
        dts=packet.dts,
        is_keyframe=packet.is_keyframe,
        is_shown=not (hidden or packet.is_discard),
        is_whole=not packet.is_corrupt,
    )


def _check_complete(path: str, container: InputContainer, stream: VideoStream, packets: list[_Packet]) -> None:
    """Raise VideoError where the container promises more than was read; many formats promise nothing."""
    if not any(packet.is_shown for packet in packets):
        raise VideoError(f"{path}: its video stream holds no frames")
    damaged = [number for number, packet in enumerate(packets) if not packet.is_whole]
    # MP4 and AVI have a table of all packets.
    listed = len(stream.index_entries) if container.format.name.startswith((MP4, AVI)) else 0
    if (whole := len(packets) - len(damaged)) < listed:
        raise VideoError(
            f"{path}: truncated or corrupt: the container promises {listed} frames, {whole} could be read", COPY_AGAIN
        )
    if damaged:
        raise VideoError(
            f"{path}: truncated or corrupt: packet {damaged[0]} of {len(packets)} is incomplete or follows a gap",
            COPY_AGAIN,
        )
