"""Frames and masks agree with each other, with geometry, and with themselves."""

import math

import numpy as np
import pytest

from gmcli.synth.draw import SIZE, draw, make_look
from gmcli.synth.scene import FRAMES, Motion, Scene, Thing

RADIUS = 0.1


def scene(*things, centres=((0.5, 0.5), (0.56, 0.5))):
    return Scene(tuple(things), tuple(centres[: len(things)]), ())


def plain_look(what):
    look = make_look(what, FRAMES, np.random.default_rng(0))
    look.shake[:] = 0
    look.noise[:] = 0
    look.backdrop[:] = 90
    return look


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", math.pi),
        ("square", 2 * 1.22**2),
        ("triangle", 3 * math.sqrt(3) / 4 * 1.42**2),
        ("star", 10 * 0.5 * 0.45 * math.sin(math.pi / 5) * 1.42**2),
    ],
)
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_a_mask_has_the_area_and_centre_of_its_shape(shape, area, angle):
    what = scene(Thing("red", shape, RADIUS, angle), centres=((0.503, 0.251),))
    mask = draw(what, plain_look(what), [0])[1][0]
    y, x = np.nonzero(mask)
    assert len(x) == pytest.approx(area * (RADIUS * SIZE) ** 2, rel=0.04)
    assert (x.mean() + 0.5, y.mean() + 0.5) == pytest.approx((0.503 * SIZE, 0.251 * SIZE), abs=0.6)


def test_the_mask_is_where_the_frame_has_the_colour():
    what = scene(Thing("blue", "star", RADIUS, 0.3))
    look = plain_look(what)
    frames, masks = draw(what, look, [0])
    coloured = np.abs(frames[0].astype(float) - look.colours[0]).sum(axis=2) < np.abs(frames[0].astype(float) - 90).sum(
        axis=2
    )
    assert (coloured == (masks[0] == 1)).mean() > 0.999


def test_the_later_thing_hides_the_earlier_one():
    red, blue = Thing("red", "circle", RADIUS, 0.0), Thing("blue", "circle", RADIUS, 0.0)
    both = scene(red, blue)
    mask = draw(both, plain_look(both), [0])[1][0]
    alone = scene(blue, centres=((0.56, 0.5),))
    assert ((mask == 2) == (draw(alone, plain_look(alone), [0])[1][0] == 1)).all()
    assert 0 < (mask == 1).sum() < (mask == 2).sum()


def test_the_camera_shakes_frame_and_mask_alike():
    what = scene(Thing("red", "square", RADIUS, 0.2))
    look = plain_look(what)
    still, mask = draw(what, look, [0])
    look.shake[0] = (2, -1)
    moved, moved_mask = draw(what, look, [0])
    assert (moved_mask[0, :-1, 2:] == mask[0, 1:, :-2]).all()
    assert (moved[0, :-1, 2:] == still[0, 1:, :-2]).all()


def test_any_frame_can_be_drawn_by_itself():
    what = Scene((Thing("red", "circle", RADIUS, 0.0),), ((0.2, 0.2),), (Motion(0, 2, 5, (0.2, 0.2), (0.8, 0.5)),))
    look = make_look(what, FRAMES, np.random.default_rng(1))
    frames, masks = draw(what, look, range(FRAMES))
    some, some_masks = draw(what, look, [7, 31])
    assert (some == frames[[7, 31]]).all()
    assert (some_masks == masks[[7, 31]]).all()


def test_looks_vary():
    what = scene(Thing("red", "circle", RADIUS, 0.0))
    looks = [make_look(what, FRAMES, np.random.default_rng(i)) for i in range(30)]
    flat = [np.ptp(look.backdrop.reshape(-1, 3), axis=0).max() < 1e-3 for look in looks]
    shaking = [bool(look.shake.any()) for look in looks]
    assert 2 <= sum(flat) <= 20
    assert 4 <= sum(shaking) <= 24
