"""Check that AVI, Matroska and MP4 files are whole, where libav skips what is missing without a word."""

from pathlib import Path
from typing import BinaryIO

from gmcli.errors import VideoError

COPY_AGAIN = "copy or download the file again"

EBML_HEADER, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
# What a Segment and its Clusters may hold: SeekHead, Info, Tracks, Cues, Attachments, Chapters, Tags; Void, CRC-32;
# Timestamp, SimpleBlock, BlockGroup, PrevSize, Position, SilentTracks, EncryptedBlock.
SKIPPED = {0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, 0xEC, 0xBF}
SKIPPED |= {0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0x5854, 0xAF}

MP4_NEEDED = (b"moov", b"moof", b"mdat")
MP4_BOXES = (*MP4_NEEDED, b"ftyp", b"styp", b"sidx", b"free", b"skip", b"wide", b"uuid", b"meta", b"mfra", b"pdin")


def check_structure(path: str, size: int) -> None:
    """Raise VideoError for an AVI, Matroska or MP4 file (by its first bytes) that has lost its end or pieces within.

    `size` is the file's size in bytes. Other files pass. Source: RFC 8794 (EBML), RFC 9559 (Matroska), ISO/IEC 14496-12.
    """
    with Path(path).open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            promised = 8 + int.from_bytes(head[4:8], "little")
            if promised < 0xFFFFFFFF:  # recordings that were never finished say this
                _check_end(path, size, promised)
        elif int.from_bytes(head[:4], "big") == EBML_HEADER:
            _walk_matroska(path, size, file)
        elif head[4:8] in MP4_BOXES:
            _walk_mp4(path, size, file)


def _walk_mp4(path: str, size: int, file: BinaryIO) -> None:
    """Step from box to box; what comes after the last known one is left alone."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8 or kind not in MP4_BOXES:  # a length of 0 means "to the end of the file"
            return
        at += length
        if kind in MP4_NEEDED:
            _check_end(path, size, at)


def _walk_matroska(path: str, size: int, file: BinaryIO) -> None:
    """Step from element to element, into the Segment and its Clusters, over everything else."""
    at, end = 0, size
    while at < end:
        file.seek(at)
        head = file.read(12)
        element, id_length = _vint(head, keep_marker=True)
        length, size_length = _vint(head[id_length:], keep_marker=False)
        body = at + id_length + size_length
        unknown = length == (1 << 7 * size_length) - 1
        if element == SEGMENT:
            end = size if unknown else body + length
            _check_end(path, size, end)
        elif element != CLUSTER:
            if unknown or (element not in SKIPPED and (at or element != EBML_HEADER)):
                raise VideoError(f"{path}: corrupt: its structure breaks off at byte {at} of {size}", COPY_AGAIN)
            body += length
            _check_end(path, size, body)
        at = body


def _vint(data: bytes, *, keep_marker: bool) -> tuple[int, int]:
    """Read a variable-length integer: its value and its length in bytes. The marker bit is part of an element's id."""
    length = 9 - data[0].bit_length() if data else 9
    value = int.from_bytes(data[:length], "big")
    return (value if keep_marker else value & ((1 << 7 * length) - 1)), length


def _check_end(path: str, size: int, promised: int) -> None:
    if promised > size:
        raise VideoError(f"{path}: truncated: the container promises {promised} bytes, the file has {size}", COPY_AGAIN)
