"""Choose, shrink and encode the frames of a video, and lay the masks of its questions over them."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gmcli.data import GroundTruth, VideoTask
from gmcli.errors import GmcliError, VideoError
from gmcli.evaluate import window_frames
from gmcli.items import masks_of
from gmcli.masks.png import read_indices
from gmcli.masks.rle import area, decode_rle, encode_rle, rle_from_json
from gmcli.video import GROUNDMORE_FPS, OpenVideo, VideoReader, frame_range

# A question's frame with the largest mask is looked for among so many.
_CANDIDATES = 48


@dataclass(frozen=True, slots=True)
class Level:
    """Say how many frames of a video are embedded, how large (pixels of the longer side), and the JPEG quality."""

    frames: int
    pixels: int
    quality: int


LEVELS = (
    Level(16, 256, 60),
    Level(12, 224, 55),
    Level(8, 192, 50),
    Level(6, 160, 45),
    Level(4, 128, 40),
    Level(2, 96, 35),
)


@dataclass(frozen=True, slots=True)
class Clip:
    """Hold what the page shows of a video, as large as it may get.

    first, stop: the clip's frames. frames: numbers of the chosen ones; times: their seconds, None where unknown.
    pictures: one image each, None where it could not be read. masks: for each question one [h, w] bool a frame, None where
    nothing is masked. size: (H, W) of the video, None where neither frames nor masks tell. timeline: [N + 1] float64, the
    seconds of all N frames and of the end. note: what went wrong.
    """

    first: int
    stop: int
    frames: tuple[int, ...] = ()
    times: tuple[float | None, ...] = ()
    pictures: tuple[Image.Image | None, ...] = ()
    masks: Mapping[str, tuple[NDArray[np.bool_] | None, ...]] | None = None
    size: tuple[int, int] | None = None
    timeline: NDArray[np.float64] | None = None
    note: str | None = None

    def seconds(self, frame: int) -> float | None:
        """Return when a frame begins, in seconds from the video's start; None where unknown."""
        known = self.timeline is not None and 0 <= frame < len(self.timeline)
        return round(float(self.timeline[frame]), 3) if known and self.timeline is not None else None


def read_clip(
    run: Path,
    video: str,
    task: VideoTask | None,
    items: Mapping[str, Mapping[str, Any]],
    open_video: OpenVideo,
) -> Clip:
    """Read the frames of a video that show its questions best, and the questions' masks on them.

    items: the answered questions' items by id. Frames are chosen among those with masks. A video that cannot be read costs
    its pictures, not its masks, and says why in `note`.
    """
    masked = sorted({frame for item in items.values() for frame in item["frames"]})
    if task is None:
        return _with_masks(run, video, items, _without_pictures(masked))
    try:
        with open_video(task.video, fps=task.fps) as reader:
            inside = frame_range(reader.times, task.start, task.end)
            available = [frame for frame in masked if frame < len(reader.times)] or list(inside)
            frames = choose_frames(available, _keys(items), LEVELS[0].frames)
            pictures, note = _read_pictures(reader, frames)
            clip = Clip(
                first=inside.start,
                stop=inside.stop,
                frames=frames,
                times=tuple(float(reader.times[frame]) for frame in frames),
                pictures=pictures,
                size=reader.size,
                timeline=np.append(reader.times, _length(reader.times)),
                note=note,
            )
    except (GmcliError, OSError) as error:
        reason = error.message if isinstance(error, GmcliError) else str(error)
        clip = _without_pictures(masked, note=reason)
    return _with_masks(run, video, items, clip)


def _without_pictures(masked: Sequence[int], note: str | None = None) -> Clip:
    frames = choose_frames(masked, [], LEVELS[0].frames)
    first, stop = (masked[0], masked[-1] + 1) if masked else (0, 0)
    return Clip(first, stop, frames, (None,) * len(frames), (None,) * len(frames), note=note)


def _length(times: NDArray[np.float64]) -> float:
    """Return the seconds at which a video ends: its last frame lasts as long as the others on average."""
    count = len(times)
    return float(times[-1] * count / (count - 1)) if count > 1 else float(times[-1])


def _read_pictures(reader: VideoReader, frames: Sequence[int]) -> tuple[tuple[Image.Image | None, ...], str | None]:
    pictures: list[Image.Image | None] = []
    note = None
    try:
        for frame in reader.frames(frames):
            picture = Image.fromarray(frame)
            size = thumbnail_size((picture.height, picture.width), LEVELS[0].pixels)
            pictures.append(picture.resize(size[::-1], Image.Resampling.BOX if size[0] < picture.height else None))
    except VideoError as error:
        note = error.message
    return (*pictures, *(None,) * (len(frames) - len(pictures))), note


def thumbnail_size(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    """Return (h, w) of a frame of `size` (H, W) whose longer side is at most `pixels`; small frames stay as they are."""
    scale = min(1.0, pixels / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def choose_frames(available: Sequence[int], keys: Sequence[int], count: int) -> tuple[int, ...]:
    """Choose at most `count` of the ascending frame numbers, evenly spread, each key's nearest neighbour moved onto it.

    Keys that are not available are ignored; of two that are near to the same frame the first one gets it.
    """
    if len(available) <= count:
        return tuple(available)
    spread = [available[round(position)] for position in np.linspace(0, len(available) - 1, count).tolist()]
    known, settled = set(available), set[int]()
    for key in keys:
        if key not in known or key in settled:
            continue
        free = [position for position, frame in enumerate(spread) if frame not in settled]
        if not free:
            break
        spread[min(free, key=lambda position: abs(spread[position] - key))] = key
        settled.add(key)
        spread.sort()
    return tuple(sorted(set(spread)))


def _keys(items: Mapping[str, Mapping[str, Any]]) -> list[int]:
    """Return for each question the frame with its largest mask, or the middle of its window where only PNGs tell."""
    found = []
    for item in items.values():
        frames, span, masks = item["frames"], item.get("span"), item.get("masks")
        if masks and len(masks) == len(frames):
            positions = sorted({round(p) for p in np.linspace(0, len(frames) - 1, _CANDIDATES).tolist()})
            areas = {position: _area(masks[position]) for position in positions}
            best = max(positions, key=lambda position: areas[position])
            found += [frames[best]] if areas[best] else []
        elif span and frames:
            found.append(min(frames, key=lambda frame: abs(frame - (span[0] + span[1]) // 2)))
    return found


def _area(mask: object) -> int:
    try:
        return area(rle_from_json(mask))
    except GmcliError:
        return 0


def _with_masks(run: Path, video: str, items: Mapping[str, Mapping[str, Any]], clip: Clip) -> Clip:
    size = clip.size
    masks: dict[str, tuple[NDArray[np.bool_] | None, ...]] = {}
    for question, item in items.items():
        positions = {frame: position for position, frame in enumerate(item["frames"])}
        found: list[NDArray[np.bool_] | None] = []
        for frame in clip.frames:
            mask = _read_mask(run, (video, question), item, positions[frame]) if frame in positions else None
            size = size or (None if mask is None else (mask.shape[0], mask.shape[1]))
            fits = mask is not None and mask.shape == size
            found.append(shrink_mask(mask, LEVELS[0].pixels) if fits and mask is not None else None)
        masks[question] = tuple(found)
    return Clip(clip.first, clip.stop, clip.frames, clip.times, clip.pictures, masks, size, clip.timeline, clip.note)


def _read_mask(run: Path, key: tuple[str, str], item: Mapping[str, Any], position: int) -> NDArray[np.bool_] | None:
    """Read one mask [H, W] bool from the item or its PNG; None where it is empty or cannot be read."""
    with suppress(GmcliError, OSError, ValueError, IndexError, TypeError, KeyError):
        if item.get("masks"):
            rle = rle_from_json(item["masks"][position])
            return decode_rle(rle) if area(rle) else None
        mask = read_indices(masks_of(run, *key) / f"{item['names'][position]}.png") > 0
        return mask if mask.any() else None
    return None


def shrink_mask(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Shrink a mask [H, W] bool to thumbnail size: what is half covered counts, and a small object does not vanish."""
    height, width = thumbnail_size((mask.shape[0], mask.shape[1]), pixels)
    if (height, width) == mask.shape:
        return mask
    image = Image.fromarray(mask.view(np.uint8) * np.uint8(255))
    shrunk = np.asarray(image.resize((width, height), Image.Resampling.BOX))
    half: NDArray[np.bool_] = shrunk >= 128
    return half if half.any() else shrunk > 0


def true_window(task: VideoTask, truth: GroundTruth, clip: Clip) -> list[int] | None:
    """Return the true window as frames [first, stop); None where the truth says no time or the video was not read."""
    if (truth.start is None and truth.end is None) or clip.timeline is None:
        return None
    times = clip.timeline[:-1]
    if Path(task.video).is_dir():  # as the scores have it
        span = window_frames(truth.start, truth.end, task.fps or GROUNDMORE_FPS, len(times))
        return [span.start, span.end]
    begin = times[clip.first]  # the truth counts from the clip's start
    first = clip.first if truth.start is None else int(np.searchsorted(times, begin + truth.start))
    stop = clip.stop if truth.end is None else int(np.searchsorted(times, begin + truth.end))
    return [min(first, clip.stop), max(first, min(stop, clip.stop))]


def encode_clip(clip: Clip, level: Level, questions: Sequence[str]) -> bytes:
    """Return a clip as JSON for the page, at one level.

    {"w", "h": size of the masks, "n": frame numbers, "t": seconds, "j": JPEGs in base64, "m": for each question its masks as
    COCO counts, 0 for an empty one, or null, "k": for each question the position of the frame that shows it best}.
    """
    frames = choose_frames(clip.frames, _largest(clip), level.frames)
    kept = [clip.frames.index(frame) for frame in frames]
    size = thumbnail_size(clip.size, level.pixels) if clip.size else (0, 0)
    masks = {
        question: [None if mask is None else shrink_mask(mask, level.pixels) for mask in (all_masks[i] for i in kept)]
        for question, all_masks in (clip.masks or {}).items()
    }
    value = {
        "w": size[1],
        "h": size[0],
        "n": list(frames),
        "t": [None if clip.times[i] is None else round(clip.times[i] or 0.0, 3) for i in kept],
        "j": [_jpeg(clip.pictures[i], level) for i in kept],
        "m": [_counts(masks[question]) if question in masks else None for question in questions],
        "k": [_best(masks.get(question, [None] * len(kept))) for question in questions],
    }
    return json.dumps(value, separators=(",", ":")).encode()


def _largest(clip: Clip) -> list[int]:
    """Return the frame with the largest mask of each question that has one."""
    return [
        clip.frames[_best(listed)] for listed in (clip.masks or {}).values() if any(mask is not None for mask in listed)
    ]


def _counts(masks: Sequence[NDArray[np.bool_] | None]) -> list[str | int]:
    return [0 if mask is None else encode_rle(mask).counts for mask in masks]


def _best(masks: Sequence[NDArray[np.bool_] | None]) -> int:
    """Return the position of the largest mask, or the middle one where there is none."""
    areas = [0 if mask is None else int(mask.sum()) for mask in masks]
    return areas.index(max(areas)) if any(areas) else len(areas) // 2


def _jpeg(picture: Image.Image | None, level: Level) -> str | None:
    if picture is None:
        return None
    height, width = thumbnail_size((picture.height, picture.width), level.pixels)
    small = picture if (width, height) == picture.size else picture.resize((width, height), Image.Resampling.BOX)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=level.quality, optimize=True, subsampling=2)
    return base64.b64encode(file.getvalue()).decode("ascii")
