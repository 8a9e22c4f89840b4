"""Read what a run answered, and compare its words with the true ones."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmcli.data import TemporalSpan
from gmcli.errors import ConfigError, GmcliError
from gmcli.evaluate.clips import Clip
from gmcli.evaluate.protocol import SAMPLES
from gmcli.items import masks_of, read_item
from gmcli.ledger import item_name
from gmcli.masks.png import read_indices
from gmcli.masks.rle import area, decode_rle, rle_from_json
from gmcli.metrics import Mask
from gmcli.records import Record

_TOKEN = re.compile(r"\[\w+\]")
_ARTICLE = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True, slots=True)
class Answer:
    """Hold one answer of a run: `masks` [H, W] bool of the sampled frames, `span` (empty without a target), and words."""

    masks: Sequence[Mask]
    span: TemporalSpan
    text: str | None


def normalise_answer(text: str) -> str:
    """Reduce an answer to what counts: "The man [SEG]." becomes "man".

    In this order: lower case, words in brackets out ([SEG], [LOC]), punctuation out, articles (a, an, the) out, one space
    between words. Source: normalize_answer of SQuAD's evaluate-v1.1.py; the brackets, and the punctuation of all of
    Unicode, are ours.
    """
    text = _TOKEN.sub(" ", text.lower())
    text = "".join(char for char in text if not _is_punctuation(char))
    return " ".join(_ARTICLE.sub(" ", text).split())


def answer_accuracy(truth: str | None, answer: str | None) -> float | None:
    """Give 1 where an answer equals the true one, both normalised, 0 where it does not, None without a true one."""
    if truth is None:
        return None
    return float(answer is not None and normalise_answer(answer) == normalise_answer(truth))


def read_answer(run: Path, record: Record, clip: Clip) -> Answer:
    """Read a question's answer from a run directory.

    Raises ConfigError where its files are lost, damaged, lack a sampled frame or do not fit the clip.
    """
    where = run / item_name(*record.key)
    try:
        item, _ = read_item(run, *record.key, recorded=record.sha256)
        positions = _positions(where, item, clip)
        span = TemporalSpan(*(item["span"] if item["span"] and record.status != "no_target" else (0, 0)))
        masks = _read_masks(masks_of(run, *record.key), item, positions, clip.size)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, GmcliError) as error:
        raise ConfigError(f"{where}: cannot be read ({error})", f"See what `gmcli verify {run}` says.") from None
    for (_, name), mask in zip(positions, masks, strict=True):
        if mask.shape != clip.size:
            raise ConfigError(f"{where}: the mask of frame {name} is {mask.shape}, the frame {clip.size} (H, W)")
    text = item.get("answer")
    return Answer(masks, span, text if isinstance(text, str) else None)


def _is_punctuation(char: str) -> bool:
    # Of ASCII, SQuAD's string.punctuation has symbols such as + and = too.
    return unicodedata.category(char)[0] == "P" or (char.isascii() and unicodedata.category(char)[0] == "S")


def _read_masks(
    pngs: Path, item: dict[str, Any], positions: Sequence[tuple[int, str]], size: tuple[int, int]
) -> list[Mask]:
    rles = item.get("masks")
    if rles is None:
        return [read_indices(pngs / f"{name}.png") > 0 for _, name in positions]
    nothing = np.zeros(size, dtype=np.bool_)
    masks = []
    for position, _ in positions:
        rle = rle_from_json(rles[position])
        # Most frames lie outside the window and have an empty mask.
        masks.append(nothing if rle.size == size and area(rle) == 0 else decode_rle(rle))
    return masks


def _positions(where: Path, item: dict[str, Any], clip: Clip) -> list[tuple[int, str]]:
    """Find the sampled frames among an item's: the position and the name of each."""
    position_of = {frame: position for position, frame in enumerate(item["frames"])}
    found = []
    for frame in clip.sampled:
        if frame not in position_of:
            raise ConfigError(
                f"{where}: has no mask of frame {frame}, which the protocol scores",
                f"Run with --mask-frames all, or --mask-frames sampled and --frames {SAMPLES}.",
            )
        position, name = position_of[frame], clip.names[frame]
        if item["names"][position] != name:
            raise ConfigError(
                f"{where}: frame {frame} is {item['names'][position]!r}, in the clip it is {name!r}",
                "Were frames added or removed since the run?",
            )
        found.append((position, name))
    return found
