"""Write one question's files into the run directory, and read them back.

items/<video>/<question>.json holds the answer: text, window, score, frame numbers, masks as RLE (format rle), and the
sha256 of every mask file. masks/<video>/<question>/<frame>.png holds the masks (format png or png1). Both are written as
they are made, so memory does not grow with the length of the video.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from gmcli.data import ItemResult, Question, Rle
from gmcli.devices import cpu_count
from gmcli.distrust import load_json, read_file
from gmcli.files import remove, write_file, write_folder
from gmcli.ledger import MASKS, item_name
from gmcli.masks.png import Bits, encode_png
from gmcli.masks.rle import decode_rle, empty_rle, rle_to_json
from gmcli.text import json_text

_MOST_THREADS = 4

# Masks turned into JSON at a time: enough for few calls, and little text.
_PIECE = 64


def write_item(
    root: Path, result: ItemResult, question: Question, formats: Iterable[str], *, threads: int | None = None
) -> str:
    """Write a question's masks, then its item file; return the item file's sha256. All is durable on return.

    threads: how many encode PNGs; None means one a core, at most four. The bytes do not depend on it. Raises OSError where
    writing fails; then the question has no item file, or its former one.
    """
    wanted = set(formats)
    # 32 bytes a mask, in the masks' order: as text they would be most of what the driver holds of a long clip.
    hashes: bytearray | None = None
    if wanted & {"png", "png1"}:
        hashes = bytearray()
        bits: Bits = 1 if "png1" in wanted else 8
        threads = threads or min(_MOST_THREADS, cpu_count())
        with ThreadPoolExecutor(threads, thread_name_prefix="png") as pool:
            folder = mask_folder(result.video_id, result.question_id)
            write_folder(root, folder, _pngs(result, bits, pool, 2 * threads, hashes))
    sha256 = hashlib.sha256()

    def write(file: BinaryIO) -> None:
        for piece in _json(result, question, hashes, "rle" in wanted):
            content = piece.encode()
            sha256.update(content)
            file.write(content)

    item = item_name(result.video_id, result.question_id)
    if (root / item).is_dir():
        remove(root / item)  # nothing of ours, and no file can be renamed over a folder
    write_file(root, item, write)
    return sha256.hexdigest()


def remove_item(root: Path, video: str, question: str) -> None:
    """Remove a question's files, if there are any: a former answer's, or those of a run that was killed."""
    remove(root / item_name(video, question))
    remove(root / mask_folder(video, question))


def masks_of(root: Path, video: str, question: str) -> Path:
    """Return the folder of a question's PNG masks. Raises ValueError where links lead out of the run directory."""
    path = root / mask_folder(video, question)
    _refuse_links(path, path.parent, path.parent.parent)
    return path


def mask_folder(video: str, question: str) -> str:
    """Return the name, inside the run directory, of the folder of a question's PNG masks."""
    return f"{MASKS}/{video}/{question}"


def _pngs(
    result: ItemResult, bits: Bits, pool: ThreadPoolExecutor, ahead: int, hashes: bytearray
) -> Iterator[tuple[str, bytes]]:
    """Yield mask files by name, in order, and note their hashes; at most `ahead` of them are held."""
    nothing = empty_rle(result.masks[0].size) if result.masks else None
    known: dict[Rle, Future[tuple[bytes, bytes]]] = {}
    waiting: deque[tuple[str, Future[tuple[bytes, bytes]]]] = deque()

    def next_one() -> tuple[str, bytes]:
        name, encoded = waiting.popleft()
        content, digest = encoded.result()
        hashes.extend(digest)
        return name, content

    for name, rle in zip(result.names, result.masks, strict=True):
        if len(waiting) == ahead:
            yield next_one()
        # Most frames of a clip lie outside the window: equal masks are encoded once. Of those with an object, the last
        # ones are remembered.
        if rle not in known:
            if len(known) > ahead:
                del known[next(old for old in known if old != nothing)]
            known[rle] = pool.submit(_png, rle, bits)
        waiting.append((f"{name}.png", known[rle]))
    while waiting:
        yield next_one()


def _png(rle: Rle, bits: Bits) -> tuple[bytes, bytes]:
    content = encode_png(decode_rle(rle), bits)
    return content, hashlib.sha256(content).digest()


def _json(result: ItemResult, question: Question, hashes: bytearray | None, rle: bool) -> Iterator[str]:
    """Yield the item file piece by piece: one object of JSON, on one line."""
    item: dict[str, Any] = {
        "video": result.video_id,
        "question": result.question_id,
        "text": question.text,
        "type": question.type,
        "status": result.status,
        "answer": result.answer,
        "finished": result.finished,
        "span": [result.span.start, result.span.end] if result.span else None,
        # The last digits depend on the machine, and mean nothing.
        "score": None if result.score is None else round(result.score, 6),
    }
    yield json_text(item)[:-1]
    yield from _list("frames", result.frames)
    yield from _list("names", result.names)
    if rle:
        yield from _list("masks", map(rle_to_json, result.masks))
    if hashes is not None:
        yield ', "png_sha256": {'
        for number, name in enumerate(result.names):
            digest = hashes[32 * number : 32 * (number + 1)].hex()
            yield f"{', ' if number else ''}{json_text(f'{name}.png')}: {json_text(digest)}"
        yield "}"
    yield "}\n"


def _list(name: str, values: Iterable[object]) -> Iterator[str]:
    """Yield a field that holds a list, some values at a time: json makes a string of each before it joins them."""
    yield f', "{name}": ['
    rest, separator = iter(values), ""
    while piece := list(islice(rest, _PIECE)):
        yield separator + json_text(piece)[1:-1]
        separator = ", "
    yield "]"


class ItemChanged(ValueError):
    """Say that a question's file is not what was recorded."""


def read_item(root: Path, video: str, question: str, recorded: str | None = None) -> tuple[dict[str, Any], str]:
    """Read a question's item file; return it with its sha256.

    recorded: the sha256 that it must have; nothing else is parsed. Raises OSError or ValueError where it cannot be read or
    is none that a run writes, ItemChanged, which is a ValueError, where it has another hash.
    """
    path = root / item_name(video, question)
    _refuse_links(path, path.parent, path.parent.parent)
    content = read_file(path)
    sha256 = hashlib.sha256(content).hexdigest()
    if recorded is not None and sha256 != recorded:
        raise ItemChanged("its content differs from what was recorded")
    item = load_json(content)
    check_item(item)
    return item, sha256


def check_item(item: object) -> None:
    """Raise ValueError for what no run writes: fields of other kinds, and names of masks that lead to other folders."""
    if not isinstance(item, dict):
        raise ValueError("not an object")
    frames, names, masks, span = (item.get(field) for field in ("frames", "names", "masks", "span"))
    hashes = item.get("png_sha256", {})
    if not isinstance(frames, list) or not all(type(frame) is int and frame >= 0 for frame in frames):
        raise ValueError("'frames' are no numbers of frames")
    if not isinstance(names, list) or len(names) != len(frames) or not all(map(_is_file_name, names)):
        raise ValueError("'names' are not one name for each frame")
    if masks is not None and not (isinstance(masks, list) and len(masks) == len(frames)):
        raise ValueError("'masks' are not one mask for each frame")
    if not isinstance(hashes, dict) or not all(_is_file_name(n) and isinstance(h, str) for n, h in hashes.items()):
        raise ValueError("'png_sha256' is no list of hashes by name")
    if span is not None:
        good = isinstance(span, list) and len(span) == 2 and all(type(edge) is int for edge in span)
        if not good or not 0 <= span[0] <= span[1]:
            raise ValueError("'span' is no window of frames")
    if not isinstance(item.get("answer"), str | None):
        raise ValueError("'answer' is no text")


def _refuse_links(*places: Path) -> None:
    for place in places:
        if place.is_symlink():
            raise ValueError(f"{place} is a link, and a run leaves none")


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name
