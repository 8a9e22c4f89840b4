"""Draw single frames with what is to be known of them: the cheap samples of the tower's and SAM's stages."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gmcli.synth.draw import draw, make_look
from gmcli.synth.samples import stream
from gmcli.synth.scene import COLOURS, SHAPES, Scene, Thing, make_thing

# Frames that share things and look, placed anew: looks cost more than frames.
_SHARED = 2


@dataclass(frozen=True, slots=True)
class Still:
    """Hold one frame: pixels [H,W,3] uint8, mask [H,W] uint8 (k is the k-th thing, from 1), things, centres [n,2] in 0..1."""

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    things: tuple[Thing, ...]
    centres: NDArray[np.float64]

    def visible(self, k: int) -> float:
        """Return about which part of the k-th thing (from 0) can be seen."""
        side = self.mask.shape[0]
        area = np.pi * (self.things[k].radius * side) ** 2 * 0.85
        return float(min((self.mask == k + 1).sum() / area, 1.0))


def make_stills(seed: int, index: int, count: int) -> list[Still]:
    """Draw `count` frames, a pure function of seed and index. Things lie anywhere and may hide each other."""
    rng = stream("train", seed, index)
    stills: list[Still] = []
    while len(stills) < count:
        stills += _group(rng, min(_SHARED, count - len(stills)))
    return stills


def _group(rng: np.random.Generator, count: int) -> list[Still]:
    number = int(rng.integers(3, len(COLOURS) + 1))
    colours = rng.permutation(len(COLOURS))[:number]
    things = tuple(make_thing(rng, COLOURS[c]) for c in colours)
    look = None
    group = []
    for _ in range(count):
        centres = rng.uniform(0.09, 0.91, (number, 2))
        scene = Scene(things, tuple((float(x), float(y)) for x, y in centres), ())
        look = look or make_look(scene, 60, rng)
        pixels, masks = draw(scene, look, [int(rng.integers(60))])
        group.append(Still(pixels[0], masks[0], things, centres))
    return group


def colour_of(thing: Thing) -> int:
    """Return the colour's number."""
    return COLOURS.index(thing.colour)


def shape_of(thing: Thing) -> int:
    """Return the shape's number."""
    return SHAPES.index(thing.shape)
