"""Scenes are what the module promises, by rules checked on their tracks."""

import itertools
import math

import numpy as np
import pytest

from gmcli.synth.samples import stream
from gmcli.synth.scene import COLOURS, FPS, FRAMES, SECONDS, SPEED, generate_scene

SCENES = [generate_scene(stream("train", 11, i)) for i in range(60)]


def test_equal_streams_give_equal_scenes():
    assert [generate_scene(stream("train", 11, i)) for i in range(5)] == SCENES[:5]


def test_no_two_splits_share_a_stream():
    splits = ("train", "val", "test")
    streams = [stream(split, seed, i) for split in splits for seed in range(4) for i in range(25)]
    draws = {tuple(rng.integers(0, 2**62, 3)) for rng in streams}
    assert len(draws) == 3 * 4 * 25


def test_things_differ_in_colour_and_stay_in_the_frame():
    assert {len(scene.things) for scene in SCENES} == {2, 3, 4}
    for scene in SCENES:
        assert len({thing.colour for thing in scene.things} & set(COLOURS)) == len(scene.things)
        for thing, track in zip(scene.things, scene.tracks(), strict=True):
            assert track.shape == (FRAMES, 2)
            assert (track >= thing.radius).all()
            assert (track <= 1 - thing.radius).all()


def test_motions_take_whole_seconds_at_speeds_that_can_be_followed():
    for motion in itertools.chain.from_iterable(scene.motions for scene in SCENES):
        assert 0 <= motion.start < motion.end <= SECONDS
        speed = math.dist(motion.origin, motion.target) / (motion.end - motion.start)
        assert SPEED[0] * 0.99 <= speed <= SPEED[1] * 1.3 * 1.01


def test_nothing_jumps():
    for scene in SCENES:
        steps = np.hypot(*np.moveaxis(np.diff(scene.tracks(), axis=1), 2, 0))
        assert steps.max() <= SPEED[1] * 1.3 / FPS * 1.01


def test_things_overlap_only_where_one_passes_another():
    overlaps = 0
    for scene in SCENES:
        tracks = scene.tracks()
        for a, b in itertools.combinations(range(len(scene.things)), 2):
            gap = np.hypot(*(tracks[a] - tracks[b]).T) - scene.things[a].radius - scene.things[b].radius
            for frame in np.flatnonzero(gap < -1e-6):
                overlaps += 1
                assert any(
                    {m.thing, m.crosses} == {a, b} and m.start * FPS < frame < m.end * FPS for m in scene.motions
                )
    assert overlaps


@pytest.mark.parametrize("wanted", ["push", "pass", "rest", "twice"])
def test_all_that_is_promised_happens(wanted):
    def happens(scene):
        movers = [m.thing for m in scene.motions]
        return {
            "push": any(a.end == b.start and a.thing != b.thing for a in scene.motions for b in scene.motions),
            "pass": any(m.crosses is not None for m in scene.motions),
            "rest": len(set(movers)) < len(scene.things),
            "twice": len(set(movers)) < len(movers),
        }[wanted]

    assert sum(happens(scene) for scene in SCENES) >= 5
