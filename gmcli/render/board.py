"""Lay out what surrounds a video's picture, and draw its frames: the picture, a timeline below it, then the caption."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from gmcli.data import TemporalSpan
from gmcli.render.paint import MASK_COLOUR, TRUTH_COLOUR, Colour, Picture, fit, outline, overlay, resize, resize_mask
from gmcli.render.scene import Scene, mask_of, truth_of
from gmcli.render.words import BACKGROUND, DIM, WHITE, caption, font

_TRACK: Colour = (62, 66, 74)
# Parts of the size of the letters.
_ROW = 1.25
_BAR = 0.6


@dataclass(frozen=True, slots=True)
class Style:
    """Say how large to draw: the sides of pictures, the narrowest canvas, and the letters, all in pixels."""

    least: int
    most: int
    canvas: int
    text: int


@dataclass(frozen=True, slots=True)
class Track:
    """Say where a timeline lies in a canvas, in pixels.

    It is `left <= x < right`, `top <= y < bottom`; its first `ticks` rows hold the ticks, the bars lie below.
    """

    left: int
    right: int
    top: int
    bottom: int
    ticks: int


@dataclass(frozen=True, slots=True)
class Board:
    """Hold what all frames of one video share: a canvas [H,W,3] with everything but the picture and the play head.

    `picture` is the (H, W) of the picture, `origin` the (y, x) of its corner. H and W are even, as H.264 wants them.
    """

    canvas: Picture
    picture: tuple[int, int]
    origin: tuple[int, int]
    track: Track
    text: int


def lay_out(scene: Scene, style: Style) -> Board:
    """Draw all that stays the same from frame to frame."""
    height, width = fit(scene.reader.size, style.least, style.most)
    canvas_width = max(width, style.canvas)
    canvas_width += canvas_width % 2
    size = max(style.text, canvas_width // 48)
    strip, track = timeline(scene, canvas_width, size)
    words = caption(canvas_width, scene.question, scene.answer, truth=scene.true_answer, size=size)
    top = height + height % 2
    canvas = np.full((top + len(strip) + len(words), canvas_width, 3), BACKGROUND, dtype=np.uint8)
    canvas[top : top + len(strip)] = strip
    canvas[top + len(strip) :] = words
    shifted = replace(track, top=track.top + top, bottom=track.bottom + top)
    return Board(canvas, (height, width), (0, (canvas_width - width) // 2), shifted, size)


def draw(board: Board, scene: Scene, frame: int, pixels: Picture) -> Picture:
    """Draw one frame of the clip, `pixels` [H,W,3], into a copy of the board, with its masks and the play head."""
    canvas = board.canvas.copy()
    y, x = board.origin
    height, width = board.picture
    canvas[y : y + height, x : x + width] = paint(scene, frame, pixels, board.picture)
    position = frame - scene.frames.start
    shown = float(scene.edges[position])
    head = _column(board.track, shown, float(scene.edges[-1]))
    canvas[board.track.top - 2 : board.track.bottom + 2, head : head + max(2, board.text // 8)] = WHITE
    image = Image.fromarray(canvas)
    ImageDraw.Draw(image).text(
        (image.width - round(0.7 * board.text), (board.track.top + board.track.ticks + board.track.bottom) // 2),
        f"{shown:.1f} s",
        font=font(_small(board.text)),
        fill=DIM,
        anchor="rm",
    )
    return np.asarray(image)


def paint(scene: Scene, frame: int, pixels: Picture, size: tuple[int, int]) -> Picture:
    """Bring a frame to `size` (H, W) and draw its masks: the answer's filled, the true one as an outline."""
    picture = resize(pixels, size)
    line = max(2, round(max(size) / 400))
    mask, truth = mask_of(scene, frame), truth_of(scene, frame)
    if mask is not None:
        picture = overlay(picture, resize_mask(mask, size), MASK_COLOUR, line=line)
    if truth is not None:
        picture = outline(picture, resize_mask(truth, size), TRUTH_COLOUR, line=line)
    return picture


def timeline(scene: Scene, width: int, size: int) -> tuple[Picture, Track]:
    """Draw a strip [H, width, 3] uint8, H even, with a bar for each window, and say where the bars lie.

    The window is bright in its bar, and a tick above marks each frame that has a mask recorded. size: of the letters.
    """
    rows = [("answer", MASK_COLOUR, scene.window)]
    if scene.truth is not None:
        rows.append(("truth", TRUTH_COLOUR, scene.truth_window))
    margin, step, bar = round(0.7 * size), round(_ROW * size), round(_BAR * size)
    small = font(_small(size))
    left = margin + round(max(small.getlength(f"{label}  ") for label, _, _ in rows))
    right = width - margin - round(small.getlength(f"  {scene.edges[-1]:.1f} s"))
    ticks = max(3, size // 4)
    height = margin + ticks + step * len(rows)
    strip = Image.new("RGB", (width, height + height % 2), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    track = Track(left, right, margin, margin + ticks + 1 + step * (len(rows) - 1) + bar, ticks + 1)
    _draw_ticks(draw, scene, track)
    for number, (label, colour, window) in enumerate(rows):
        top = margin + ticks + 1 + number * step
        draw.text((margin, top + bar // 2), label, font=small, fill=colour, anchor="lm")
        draw.rectangle((left, top, right - 1, top + bar - 1), fill=_TRACK)
        if window.start < window.end:
            first, last = _columns(scene, track, window)
            draw.rectangle((first, top, max(first, last - 1), top + bar - 1), fill=colour)
    return np.asarray(strip), track


def mark(canvas: Picture, scene: Scene, track: Track, frames: Iterable[int]) -> None:
    """Draw a play head for each of these frames into a canvas, in place."""
    for frame in frames:
        x = _column(track, float(scene.edges[frame - scene.frames.start]), float(scene.edges[-1]))
        canvas[track.top - 2 : track.bottom + 2, x : x + 2] = WHITE


def spread(numbers: Sequence[int], count: int) -> list[int]:
    """Choose up to `count` of some numbers, evenly, the first and the last included."""
    if len(numbers) <= count:
        return list(numbers)
    return [numbers[round(float(position))] for position in np.linspace(0, len(numbers) - 1, count)]


def telling(scene: Scene) -> list[int]:
    """List the frames that tell most of an answer: those of the clip with a recorded mask, or all where there is none."""
    recorded = [frame for frame in sorted(scene.names) if frame in scene.frames]
    return recorded or list(scene.frames)


def _small(size: int) -> int:
    return max(9, round(0.8 * size))


def _draw_ticks(draw: ImageDraw.ImageDraw, scene: Scene, track: Track) -> None:
    for frame in scene.names:
        if frame in scene.frames:
            x = _column(track, float(scene.edges[frame - scene.frames.start]), float(scene.edges[-1]))
            draw.line((x, track.top, x, track.top + track.ticks - 2), fill=DIM)


def _columns(scene: Scene, track: Track, window: TemporalSpan) -> tuple[int, int]:
    """Return where a window begins and ends on a track; what lies outside the clip is cut off."""
    first, stop = scene.frames.start, scene.frames.stop
    start, end = (min(max(frame, first), stop) - first for frame in (window.start, window.end))
    total = float(scene.edges[-1])
    return _column(track, float(scene.edges[start]), total), _column(track, float(scene.edges[end]), total)


def _column(track: Track, seconds: float, total: float) -> int:
    return track.left + int(seconds / total * (track.right - track.left))
