"""Write one question's files into the run directory, and read them back.

items/<video>/<question>.json holds the answer: text, window, score, frame numbers, masks as RLE (format rle), and the
sha256 of every mask file. masks/<video>/<question>/<frame>.png holds the masks (format png).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gmcli.data import ItemResult, Question
from gmcli.files import write_file, write_folder
from gmcli.ledger import MASKS, item_name
from gmcli.masks.png import encode_png
from gmcli.masks.rle import decode_rle, rle_to_json


def write_item(root: Path, result: ItemResult, question: Question, formats: Iterable[str]) -> str:
    """Write a question's masks, then its item file; return the item file's sha256. All is durable on return.

    Raises OSError where writing fails; then the question has no item file, or its former one.
    """
    pngs: dict[str, str] | None = None
    if "png" in formats:
        pngs = {}
        write_folder(root, mask_folder(result.video_id, result.question_id), _pngs(result, pngs))
    content = json.dumps(_item(result, question, pngs, "rle" in formats), ensure_ascii=False).encode() + b"\n"
    write_file(root, item_name(result.video_id, result.question_id), content)
    return hashlib.sha256(content).hexdigest()


def mask_folder(video: str, question: str) -> str:
    """Return the name, inside the run directory, of the folder of a question's PNG masks."""
    return f"{MASKS}/{video}/{question}"


def _pngs(result: ItemResult, hashes: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """Yield mask files by name, one at a time, and note their hashes."""
    encoded: dict[str, bytes] = {}
    for name, rle in zip(result.names, result.masks, strict=True):
        # Most frames of a clip lie outside the window: equal masks are encoded once.
        if rle.counts not in encoded:
            encoded = {rle.counts: encode_png(decode_rle(rle))}
        content = encoded[rle.counts]
        hashes[f"{name}.png"] = hashlib.sha256(content).hexdigest()
        yield f"{name}.png", content


def _item(result: ItemResult, question: Question, pngs: dict[str, str] | None, rle: bool) -> dict[str, Any]:
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
    if rle:
        item["masks"] = [rle_to_json(mask) for mask in result.masks]
    if pngs is not None:
        item["png_sha256"] = pngs
    return item


def read_item(root: Path, video: str, question: str) -> tuple[dict[str, Any], str]:
    """Read a question's item file; return it with its sha256. Raises OSError or ValueError where it cannot be read."""
    content = (root / item_name(video, question)).read_bytes()
    item = json.loads(content)
    if not isinstance(item, dict):
        raise ValueError("not an object")
    return item, hashlib.sha256(content).hexdigest()
