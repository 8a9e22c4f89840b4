"""Write one question's files into the run directory, and read them back.

items/<video>/<question>.json holds the answer: text, window, score, frame numbers, masks as RLE (format rle), and the
sha256 of every mask file. masks/<video>/<question>/<frame>.png holds the masks (format png or png1). Both are written as
they are made, so memory does not grow with the length of the video.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from gmcli.data import ItemResult, Question, Rle
from gmcli.devices import cpu_count
from gmcli.files import write_file, write_folder
from gmcli.ledger import MASKS, item_name
from gmcli.masks.png import Bits, encode_png
from gmcli.masks.rle import decode_rle, empty_rle, rle_to_json

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

    write_file(root, item_name(result.video_id, result.question_id), write)
    return sha256.hexdigest()


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
        "frames": list(result.frames),
        "names": list(result.names),
    }
    yield _dumps(item)[:-1]
    if rle:
        yield ', "masks": ['
        masks = (rle_to_json(mask) for mask in result.masks)
        separator = ""
        while piece := list(islice(masks, _PIECE)):
            yield separator + _dumps(piece)[1:-1]
            separator = ", "
        yield "]"
    if hashes is not None:
        yield ', "png_sha256": {'
        for number, name in enumerate(result.names):
            digest = hashes[32 * number : 32 * (number + 1)].hex()
            yield f"{', ' if number else ''}{_dumps(f'{name}.png')}: {_dumps(digest)}"
        yield "}"
    yield "}\n"


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_item(root: Path, video: str, question: str) -> tuple[dict[str, Any], str]:
    """Read a question's item file; return it with its sha256. Raises OSError or ValueError where it cannot be read."""
    content = (root / item_name(video, question)).read_bytes()
    item = json.loads(content)
    if not isinstance(item, dict):
        raise ValueError("not an object")
    return item, hashlib.sha256(content).hexdigest()
