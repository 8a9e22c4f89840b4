"""Draw masks onto pictures. Pictures are [H,W,3] uint8 RGB, masks [H,W] bool; nothing given is changed."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

# Okabe and Ito's palette: these two are told apart with any kind of colour blindness, and on grey.
MASK_COLOUR: Colour = (230, 159, 0)
TRUTH_COLOUR: Colour = (86, 180, 233)

OPACITY = 0.4

_DARK: Colour = (24, 26, 30)


def overlay(frame: Picture, mask: Mask, colour: Colour, *, opacity: float = OPACITY, line: int = 2) -> Picture:
    """Tint the pixels of a mask and draw its contour, `line` pixels wide, inside of it.

    A dark hairline follows the contour on its inner side: else it is lost on a ground of its own colour. Pixels outside
    the mask keep their values. Raises ValueError for shapes and dtypes that do not fit.
    """
    _check(frame, mask)
    drawn = frame.copy()
    inside = frame[mask].astype(np.float32)
    tint = np.asarray(colour, dtype=np.float32)
    drawn[mask] = np.rint(inside + (tint - inside) * opacity).astype(np.uint8)
    drawn[contour(mask, line + 1)] = _DARK
    drawn[contour(mask, line)] = colour
    return drawn


def outline(frame: Picture, mask: Mask, colour: Colour, *, line: int = 2) -> Picture:
    """Draw a mask's contour only, `line` pixels wide, inside of it. Raises ValueError as `overlay` does."""
    _check(frame, mask)
    drawn = frame.copy()
    drawn[contour(mask, line)] = colour
    return drawn


def contour(mask: Mask, line: int) -> Mask:
    """Find a mask's pixels that lie fewer than `line` steps (up, down, left, right) from its outside.

    What lies beyond the picture counts as outside: an object that is cut off has its contour along the border.
    """
    inner = mask
    for _ in range(line):
        framed = np.pad(inner, 1)
        inner = inner & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return mask & ~inner


def fit(size: tuple[int, int], least: int, most: int) -> tuple[int, int]:
    """Choose at which (H, W) to draw a picture of `size` (H, W).

    One narrower than `least` is enlarged by a whole factor, unless a side became longer than `most`; one with a longer
    side is made smaller.
    """
    height, width = size
    longest = max(size)
    if longest > most:
        return max(1, round(height * most / longest)), max(1, round(width * most / longest))
    factor = max(1, min(math.ceil(least / width), most // longest))
    return height * factor, width * factor


def resize(frame: Picture, size: tuple[int, int]) -> Picture:
    """Bring a picture to `size` (H, W), smoothly."""
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def resize_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """Bring a mask to `size` (H, W); a whole factor turns each pixel into a square."""
    if mask.shape == size:
        return mask
    grey = Image.fromarray(mask.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(grey) > 0


def _check(frame: Picture, mask: Mask) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"a picture is [H, W, 3] uint8, not {list(frame.shape)} {frame.dtype}")
    if mask.shape != frame.shape[:2] or mask.dtype != np.bool_:
        raise ValueError(f"the mask is {list(mask.shape)} {mask.dtype}, the picture {list(frame.shape)}")
