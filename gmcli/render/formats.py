"""Write the renders of one question: a video, an animated GIF, a contact sheet. Each carries what it was made from."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Literal

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from gmcli.errors import GmcliError
from gmcli.render.board import Style, draw, lay_out, mark, paint, spread, telling, timeline
from gmcli.render.paint import MASK_COLOUR, Picture, fit
from gmcli.render.scene import Scene
from gmcli.render.words import BACKGROUND, DIM, caption, font

Watch = Callable[[int], None]
Writer = Callable[..., None]
Format = Literal["mp4", "gif", "sheet"]
FORMATS: tuple[Format, ...] = ("mp4", "gif", "sheet")
ENDINGS: dict[Format, str] = {"mp4": ".mp4", "gif": ".gif", "sheet": ".png"}

GIF_FRAMES = 60
SHEET_FRAMES = 12

_MP4 = Style(least=480, most=1920, canvas=480, text=16)
_GIF = Style(least=160, most=320, canvas=160, text=11)
# Of a sheet's cells.
_CELL = Style(least=200, most=320, canvas=480, text=15)

# Microseconds would not fit players that count in 32 bits; MPEG's own clock does.
_CLOCK = 90_000
_ENCODER = {"preset": "veryfast", "crf": "20", "bf": "0"}
# ITU-R BT.709 by its number in ISO 23091-2, where matrix, primaries and transfer have the same; and "limited" range.
_BT709 = 1
_LIMITED = 1

_KEY = "comment"


def write_mp4(scene: Scene, source: str, file: BinaryIO, watch: Watch) -> None:
    """Write the clip as H.264 in an MP4 file that starts playing before it is there whole; every frame at its own time.

    file: open and empty, with a name: libav opens it again. watch: told how many frames are new. One frame at a time is
    in memory. Raises VideoError, ItemError and OSError.
    """
    board = lay_out(scene, _MP4)
    height, width = board.canvas.shape[:2]
    times = [round(float(edge) * _CLOCK) for edge in scene.edges]
    options = {"movflags": "+faststart"}
    with av.open(file.name, "w", format="mp4", options=options) as container:
        container.metadata[_KEY] = source
        rate = Fraction(len(scene.frames) * _CLOCK, times[-1]).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=_ENCODER)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        _tag_colours(stream)
        for pixels, frame in zip(scene.reader.frames(scene.frames), scene.frames, strict=True):
            position = frame - scene.frames.start
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(draw(board, scene, frame, pixels)), "rgb24")
            coded = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            coded.pts, coded.time_base = times[position], Fraction(1, _CLOCK)
            coded.duration = times[position + 1] - times[position]
            container.mux(stream.encode(coded))
            watch(1)
        container.mux(stream.encode())


def _tag_colours(stream: VideoStream) -> None:
    """Say which colours are meant; players guess otherwise, and guess by the size of the picture."""
    context = stream.codec_context
    context.time_base = Fraction(1, _CLOCK)
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED


def write_gif(scene: Scene, source: str, file: BinaryIO, watch: Watch) -> None:
    """Write up to 60 small frames as an animated GIF that goes on for ever, with one palette made for them.

    Of a run that has masks of some frames only, those frames are shown. The rest is as for `write_mp4`.
    """
    board = lay_out(scene, _GIF)
    chosen = spread(telling(scene), GIF_FRAMES)
    pictures = [Image.fromarray(draw(board, scene, frame, pixels)) for frame, pixels in _read(scene, chosen, watch)]
    palette = _palette(pictures)
    indexed = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    edges = [float(scene.edges[frame - scene.frames.start]) for frame in chosen[1:]] + [float(scene.edges[-1])]
    # GIF counts hundredths of a second; the first frame has the time before it, too.
    ends = [0, *(round(edge * 100) for edge in edges)]
    # Browsers show what should take less than two hundredths for ten.
    durations = [10 * max(2, end - start) for start, end in pairwise(ends)]
    indexed[0].save(
        file, "GIF", save_all=True, append_images=indexed[1:], duration=durations, loop=0, comment=source.encode()
    )


def _palette(pictures: list[Image.Image]) -> Image.Image:
    """Make one palette of 256 colours for all pictures, from a few of them."""
    some = [pictures[number] for number in spread(range(len(pictures)), 6)]
    width, height = some[0].size
    joined = Image.new("RGB", (width, height * len(some)))
    for number, picture in enumerate(some):
        joined.paste(picture, (0, number * height))
    return joined.quantize(256, method=Image.Quantize.MEDIANCUT)


def write_sheet(scene: Scene, source: str, file: BinaryIO, watch: Watch) -> None:
    """Write up to 12 frames, evenly spread, side by side as one PNG, whose bytes depend on the pictures and Pillow only.

    Frames within the predicted window have a coloured border. Of a run that has masks of some frames only, those are
    shown. The rest is as for `write_mp4`.
    """
    chosen = spread(telling(scene), SHEET_FRAMES)
    size = fit(scene.reader.size, _CELL.least, _CELL.most)
    cells = [_cell(scene, frame, pixels, size) for frame, pixels in _read(scene, chosen, watch)]
    columns = min(len(cells), 4 if size[1] >= size[0] else 6)
    height, width = cells[0].shape[:2]
    gap = 6
    canvas_width = max(_CELL.canvas, columns * (width + gap) + gap)
    text = max(_CELL.text, canvas_width // 70)
    words = caption(canvas_width, scene.question, scene.answer, truth=scene.true_answer, size=text)
    strip, track = timeline(scene, canvas_width, text)
    strip = strip.copy()
    mark(strip, scene, track, chosen)
    rows = -(-len(cells) // columns)
    grid = np.full((gap + rows * (height + gap), canvas_width, 3), BACKGROUND, dtype=np.uint8)
    left = (canvas_width - columns * (width + gap) + gap) // 2
    for number, cell in enumerate(cells):
        y, x = gap + number // columns * (height + gap), left + number % columns * (width + gap)
        grid[y : y + height, x : x + width] = cell
    info = PngInfo()
    info.add_text(_KEY, source)
    Image.fromarray(np.concatenate([words, strip, grid])).save(file, "PNG", pnginfo=info)


def _cell(scene: Scene, frame: int, pixels: Picture, size: tuple[int, int]) -> Picture:
    """Draw one frame of a contact sheet: the picture in its border, number and time below."""
    border, text = 4, 13
    inside = frame in scene.window
    cell = Image.new("RGB", (size[1] + 2 * border, size[0] + 2 * border + text + 6), BACKGROUND)
    draw = ImageDraw.Draw(cell)
    if inside:
        draw.rectangle((0, 0, cell.width - 1, size[0] + 2 * border - 1), fill=MASK_COLOUR)
    cell.paste(Image.fromarray(paint(scene, frame, pixels, size)), (border, border))
    seconds = float(scene.edges[frame - scene.frames.start])
    draw.text(
        (border, size[0] + 2 * border + 2),
        f"{seconds:.2f} s   #{frame}",
        font=font(text),
        fill=MASK_COLOUR if inside else DIM,
    )
    return np.asarray(cell)


def _read(scene: Scene, frames: list[int], watch: Watch) -> Iterator[tuple[int, Picture]]:
    for frame, pixels in zip(frames, scene.reader.frames(frames), strict=True):
        yield frame, pixels
        watch(1)


WRITERS: Mapping[Format, Writer] = {"mp4": write_mp4, "gif": write_gif, "sheet": write_sheet}


def source_of(path: Path, kind: Format) -> str | None:
    """Return what a render says it was made from; None where there is no render, or one that cannot be read."""
    found: object = None
    with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError, av.FFmpegError, GmcliError):
        if kind == "mp4":
            with av.open(str(path)) as container:
                found = container.metadata.get(_KEY)
        else:
            with Image.open(path, formats=("PNG", "GIF")) as image:
                found = image.info.get(_KEY)
    if isinstance(found, bytes):
        found = found.decode("ascii", "replace")
    return found if isinstance(found, str) else None
