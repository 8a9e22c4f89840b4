"""Draw a MotionShapes scene: frames with background, shake and noise, and the exact mask of every thing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gmcli.synth.scene import Scene, Thing

SIZE = 192

_RGB = {
    "red": (205, 45, 40),
    "green": (45, 150, 60),
    "blue": (45, 85, 205),
    "yellow": (225, 200, 50),
    "purple": (150, 55, 165),
    "white": (238, 238, 235),
}
# Shapes are drawn this many times larger and averaged down: smooth edges, and masks that agree with them.
_FINE = 4
# Polygons reach out beyond their collision radius, so that all shapes have about the circle's area.
_REACH = {"circle": 1.0, "square": 1.22, "triangle": 1.42, "star": 1.42}


@dataclass(frozen=True, slots=True)
class Look:
    """Hold what a scene looks like beside its shapes.

    backdrop: [SIZE+2m, SIZE+2m, 3] float32, 0..255. shake: the camera's displacement in every frame, [frames, 2] whole pixels
    of at most m. noise: [tile, tile, 3] float32, added with another offset in every frame.
    """

    backdrop: NDArray[np.float32]
    shake: NDArray[np.int64]
    noise: NDArray[np.float32]
    colours: NDArray[np.float32]
    offsets: NDArray[np.int64]


_MARGIN = 3


def make_look(scene: Scene, frames: int, rng: np.random.Generator) -> Look:
    """Make up a look: plain, graded or textured backdrop, still or shaking camera, more or less sensor noise."""
    side = SIZE + 2 * _MARGIN
    base = rng.uniform(40, 150) + rng.uniform(-14, 14, 3)
    backdrop = np.broadcast_to(base, (side, side, 3)).astype(np.float32)
    kind = rng.integers(4)
    if kind == 1:
        ramp = np.linspace(-1, 1, side, dtype=np.float32) * rng.uniform(10, 35)
        backdrop = backdrop + (ramp[:, None, None] if rng.random() < 0.5 else ramp[None, :, None])
    elif kind == 2:
        cells = int(rng.integers(4, 24))
        coarse = rng.normal(0, rng.uniform(6, 16), (cells, cells)).astype(np.float32)
        fine = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
        backdrop = backdrop + fine[:, :, None]
    elif kind == 3:
        y, x = np.mgrid[:side, :side].astype(np.float32)
        angle, period = rng.uniform(0, math.pi), rng.uniform(10, 50)
        waves = np.sin((x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period))
        if rng.random() < 0.5:
            waves = np.sign(waves)
        backdrop = backdrop + (waves * rng.uniform(5, 16))[:, :, None]
    steps = rng.integers(-1, 2, (frames, 2)) if rng.random() < 0.4 else np.zeros((frames, 2), np.int64)
    tile = SIZE + 64
    noise = rng.standard_normal((tile, tile, 3), np.float32) * np.float32(rng.uniform(1, 6))
    tint = np.array([_RGB[thing.colour] for thing in scene.things]) + rng.uniform(-14, 14, (len(scene.things), 3))
    return Look(
        backdrop=backdrop.clip(0, 255).astype(np.float32),
        shake=np.clip(np.cumsum(steps, axis=0), -_MARGIN, _MARGIN),
        noise=noise,
        colours=tint.clip(0, 255).astype(np.float32),
        offsets=rng.integers(0, 64, (frames, 2)),
    )


def draw(scene: Scene, look: Look, frames: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw the frames with these numbers.

    Returns RGB frames [T, SIZE, SIZE, 3] uint8 and indexed masks [T, SIZE, SIZE] uint8: 0 is the background, k the k-th
    thing (from 1) where it is the nearest and covers at least half of the pixel.
    """
    tracks = scene.tracks()
    stamps = [_stamp(thing) for thing in scene.things]
    # What rests looks the same in all frames: there are but _FINE x _FINE ways of lying on the pixels.
    covers: dict[tuple[int, int, int], NDArray[np.float32]] = {}
    pictures = np.empty((len(frames), SIZE, SIZE, 3), np.uint8)
    masks = np.zeros((len(frames), SIZE, SIZE), np.uint8)
    for row, frame in enumerate(frames):
        dx, dy = look.shake[frame]
        canvas = look.backdrop[_MARGIN - dy : _MARGIN - dy + SIZE, _MARGIN - dx : _MARGIN - dx + SIZE].copy()
        for k, stamp in enumerate(stamps):
            corner = np.round((tracks[k, frame] * SIZE + (dx, dy)) * _FINE - stamp.shape[0] / 2).astype(int)
            (left, top), (shift_x, shift_y) = corner // _FINE, corner % _FINE
            key = (k, int(shift_x), int(shift_y))
            if key not in covers:
                covers[key] = _cover(stamp, *key[1:])
            rows, columns, cover = _clip(covers[key], int(left), int(top))
            part = canvas[rows, columns]
            part += cover[:, :, None] * (look.colours[k] - part)
            masks[row, rows, columns][cover >= 0.5] = k + 1
        oy, ox = look.offsets[frame]
        canvas += look.noise[oy : oy + SIZE, ox : ox + SIZE]
        pictures[row] = canvas.clip(0, 255)
    return pictures, masks


def _stamp(thing: Thing) -> NDArray[np.float32]:
    """Draw a thing at _FINE times its size, white on black, in the middle of a square."""
    reach = thing.radius * SIZE * _FINE * _REACH[thing.shape]
    side = 2 * (math.ceil(reach / _FINE) + 1) * _FINE
    picture = Image.new("L", (side, side))
    pen = ImageDraw.Draw(picture)
    middle = (side - 1) / 2
    if thing.shape == "circle":
        pen.ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill=1)
    else:
        pen.polygon(_corners(thing, middle, reach), fill=1)
    return np.asarray(picture, dtype=np.float32)


def _corners(thing: Thing, middle: float, reach: float) -> list[tuple[float, float]]:
    count = {"square": 4, "triangle": 3, "star": 10}[thing.shape]
    # Without a tilt a square lies on its side, triangle and star point upwards.
    upright = math.pi / 4 if thing.shape == "square" else -math.pi / 2
    corners = []
    for k in range(count):
        length = reach * (0.45 if thing.shape == "star" and k % 2 else 1.0)
        angle = upright + thing.angle + 2 * math.pi * k / count
        corners.append((middle + length * math.cos(angle), middle + length * math.sin(angle)))
    return corners


def _cover(stamp: NDArray[np.float32], shift_x: int, shift_y: int) -> NDArray[np.float32]:
    """Average a stamp down, laid so many fine pixels off the grid; return how much of each pixel it covers."""
    side = stamp.shape[0] // _FINE + 1
    room = np.zeros((side * _FINE, side * _FINE), np.float32)
    room[shift_y : shift_y + stamp.shape[0], shift_x : shift_x + stamp.shape[1]] = stamp
    cover: NDArray[np.float32] = room.reshape(side, _FINE, side, _FINE).mean(axis=(1, 3))
    return cover


def _clip(cover: NDArray[np.float32], left: int, top: int) -> tuple[slice, slice, NDArray[np.float32]]:
    """Cut off what lies outside the frame."""
    side = cover.shape[0]
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + side, SIZE), min(left + side, SIZE)
    return slice(y0, y1), slice(x0, x1), cover[y0 - top : y1 - top, x0 - left : x1 - left]
