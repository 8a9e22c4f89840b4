"""Plan a MotionShapes scene: which shapes there are, when and where each of them moves.

The unit of length is the frame's side, the unit of time the second. Motions start and end at whole seconds, because
GroundMoRe's annotations have no finer clock. x grows to the right, y downwards.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

FPS = 6
SECONDS = 10
FRAMES = FPS * SECONDS

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star")

RADIUS = (0.075, 0.11)
TILT = 0.25

# Slow enough to be followed at two looks a second, fast enough to be told from the camera's shake.
SPEED = (0.09, 0.34)
# How many seconds a motion lasts, and how often.
LASTS = ((1, 2, 3), (0.15, 0.45, 0.4))
CLEARANCE = 0.02
# From here on two shapes count as touching: the collision radius is that of a circle of about the shape's area.
TOUCH = 0.012

_TRIES = 30

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Thing:
    """Describe one shape. `radius` is its collision radius in frame sides, `angle` its rotation in radians."""

    colour: str
    shape: str
    radius: float
    angle: float

    @property
    def name(self) -> str:
        """Name it as questions and answers do."""
        return f"the {self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Motion:
    """Move one thing from `origin` to `target` at constant speed, from second `start` to second `end`.

    `crosses` is the thing that it passes in front of or behind.
    """

    thing: int
    start: int
    end: int
    origin: Point
    target: Point
    crosses: int | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """Hold everything that a video shows except its background. A thing hides those before it in `things`."""

    things: tuple[Thing, ...]
    starts: tuple[Point, ...]
    motions: tuple[Motion, ...]

    def tracks(self) -> NDArray[np.float64]:
        """Return the centres in every frame, [things, FRAMES, 2]."""
        times = np.arange(FRAMES) / FPS
        tracks = np.repeat(np.array(self.starts, np.float64)[:, None], FRAMES, axis=1)
        for motion in sorted(self.motions, key=lambda m: m.start):
            share = ((times - motion.start) / (motion.end - motion.start)).clip(0, 1)[:, None]
            path = np.array(motion.origin) * (1 - share) + np.array(motion.target) * share
            after = times > motion.start
            tracks[motion.thing, after] = path[after]
        return tracks


@dataclass(slots=True)
class _Plan:
    """Hold a scene while it is being made up."""

    rng: np.random.Generator
    things: list[Thing]
    starts: list[Point | None]
    motions: list[Motion] = field(default_factory=list)

    def place(self, thing: int, second: int) -> Point:
        """Return where a thing is at a second at which it rests."""
        place = self.starts[thing]
        assert place is not None
        for motion in self.motions:
            if motion.thing == thing and motion.end <= second:
                place = motion.target
        return place

    def scene(self) -> Scene:
        """Return what is planned so far; things that have no place yet are far outside."""
        starts = (start or (9.0 * (i + 1), 9.0) for i, start in enumerate(self.starts))
        return Scene(tuple(self.things), tuple(starts), tuple(self.motions))

    def rests(self, thing: int, start: int, end: int) -> bool:
        return all(m.end <= start or m.start >= end for m in self.motions if m.thing == thing)


def generate_scene(rng: np.random.Generator) -> Scene:
    """Make up a scene with 2 to 4 things: pushes, passings, approaches, free motions, rests.

    Equal generator states give equal scenes.
    """
    count = int(rng.choice([2, 3, 4], p=[0.04, 0.26, 0.7]))
    pushes = int(rng.choice(count // 2 + 1, p=([0.4, 0.6] if count < 4 else [0.25, 0.55, 0.2])))
    wanders = [int(rng.choice(3, p=[0.18, 0.6, 0.22])) for _ in range(count - 2 * pushes)]
    again = bool(pushes) and rng.random() < 0.2
    if not pushes and not any(wanders):
        wanders[0] = 1
    # What is wanted is drawn once: else the scenes that are hard to make would be rare.
    while True:
        plan = _propose(rng, count, pushes, wanders, again)
        if plan is not None:
            return plan.scene()


def make_thing(rng: np.random.Generator, colour: str) -> Thing:
    """Make up a thing of this colour: its shape, its size, a slight tilt."""
    shape = SHAPES[rng.integers(len(SHAPES))]
    return Thing(colour, shape, float(rng.uniform(*RADIUS)), float(rng.uniform(-TILT, TILT)))


def _propose(rng: np.random.Generator, count: int, pushes: int, wanders: list[int], again: bool) -> _Plan | None:
    """Plan step by step; a step that does not fit what is planned already is tried anew, a few times."""
    colours = rng.permutation(len(COLOURS))[:count]
    things = [make_thing(rng, COLOURS[c]) for c in colours]
    plan = _Plan(rng, things, [None] * count)
    order = [int(i) for i in rng.permutation(count)]
    pushed, free = order[: 2 * pushes], order[2 * pushes :]
    steps: list[Callable[[], bool]] = [
        partial(_push, plan, pushed[first], pushed[first + 1]) for first in range(0, len(pushed), 2)
    ]
    for thing, motions in zip(free, wanders, strict=True):
        steps.append(partial(_put, plan, thing))
        # Two motions of one thing need the first to be early.
        steps += [partial(_wander, plan, thing, 3 if k < motions - 1 else SECONDS - 2) for k in range(motions)]
    if again:
        steps.append(partial(_wander, plan, int(rng.choice(pushed)), SECONDS - 2))
    return plan if all(_achieve(plan, step) for step in steps) else None


def _achieve(plan: _Plan, step: Callable[[], bool]) -> bool:
    starts, motions = list(plan.starts), list(plan.motions)
    for _ in range(_TRIES):
        if step() and _is_clean(plan.scene()):
            return True
        plan.starts[:], plan.motions[:] = starts, motions
    return False


def _put(plan: _Plan, thing: int) -> bool:
    plan.starts[thing] = _anywhere(plan.rng, plan.things[thing].radius)
    return True


def _push(plan: _Plan, pusher: int, pushed: int) -> bool:
    """Let one thing run up to another and stop there, which then moves on in about the same direction."""
    rng = plan.rng
    start = int(rng.integers(0, 6))
    contact = start + _lasts(rng)
    end = min(contact + _lasts(rng), SECONDS)
    angle = rng.uniform(0, 2 * math.pi)
    touch = plan.things[pusher].radius + plan.things[pushed].radius
    meet = _anywhere(rng, plan.things[pushed].radius)
    run_up = rng.uniform(*SPEED) * (contact - start)
    stop = _step(meet, angle + math.pi, touch)
    origin = _step(stop, angle + math.pi, run_up)
    target = _step(meet, angle + rng.uniform(-0.2, 0.2), rng.uniform(*SPEED) * (end - contact))
    if run_up < 0.13 or not _inside(origin, plan.things[pusher]) or not _inside(target, plan.things[pushed]):
        return False
    if not _inside(stop, plan.things[pusher]):
        return False
    plan.starts[pusher], plan.starts[pushed] = origin, meet
    plan.motions.append(Motion(pusher, start, contact, origin, stop))
    plan.motions.append(Motion(pushed, contact, end, meet, target))
    return True


def _wander(plan: _Plan, thing: int, latest: int) -> bool:
    """Give a thing one more motion of its own: past another one, up to another one, or just somewhere."""
    rng = plan.rng
    # A second of rest between two motions keeps them two, and no motion is put before one that is planned.
    earliest = max((m.end + 1 for m in plan.motions if m.thing == thing), default=0)
    if earliest > latest:
        return False
    start = int(rng.integers(earliest, latest + 1))
    end = min(start + _lasts(rng), SECONDS)
    origin = plan.place(thing, start)
    others = [
        i
        for i in range(len(plan.things))
        if i != thing and plan.starts[i] is not None and plan.rests(i, max(start - 1, 0), end + 2)
    ]
    kind = rng.random()
    if others and kind < 0.45:
        other = int(rng.choice(others))
        place = plan.place(other, start)
        away = math.dist(origin, place)
        angle = math.atan2(place[1] - origin[1], place[0] - origin[0])
        touch = plan.things[thing].radius + plan.things[other].radius
        if kind < 0.25:
            length = away + touch + rng.uniform(CLEARANCE, 0.2)
            crosses = other
        else:
            length, crosses = away - touch, None
    else:
        angle, crosses = _direction(rng), None
        length = rng.uniform(*SPEED) * (end - start)
    target = _step(origin, angle, length)
    speed = length / (end - start)
    if not SPEED[0] <= speed <= SPEED[1] * 1.3 or length < 0.13 or not _inside(target, plan.things[thing]):
        return False
    plan.motions.append(Motion(thing, start, end, origin, target, crosses))
    return True


def _lasts(rng: np.random.Generator) -> int:
    return int(rng.choice(LASTS[0], p=LASTS[1]))


def _direction(rng: np.random.Generator) -> float:
    """Draw an angle, mostly about one of the four that have a name."""
    if rng.random() < 0.8:
        return float(rng.integers(4) * math.pi / 2 + rng.uniform(-0.35, 0.35))
    return float(rng.uniform(0, 2 * math.pi))


def _is_clean(scene: Scene) -> bool:
    """Ask whether no two things meet but those that are meant to."""
    tracks = scene.tracks()
    radii = np.array([thing.radius for thing in scene.things])
    first, second = np.triu_indices(len(radii), 1)
    gaps = np.hypot(*np.moveaxis(tracks[first] - tracks[second], 2, 0)) - (radii[first] + radii[second])[:, None]
    if (gaps[:, 0] < CLEARANCE).any():
        return False
    bad = gaps < -1e-6
    for motion in scene.motions:
        if motion.crosses is not None:
            pair = {motion.thing, motion.crosses}
            row = next(i for i, both in enumerate(zip(first, second, strict=True)) if set(both) == pair)
            bad[row, motion.start * FPS + 1 : motion.end * FPS] = False
    return not bad.any()


def _anywhere(rng: np.random.Generator, radius: float) -> Point:
    low, high = 1.3 * radius, 1 - 1.3 * radius
    return float(rng.uniform(low, high)), float(rng.uniform(low, high))


def _inside(place: Point, thing: Thing) -> bool:
    return all(1.3 * thing.radius <= value <= 1 - 1.3 * thing.radius for value in place)


def _step(place: Point, angle: float, length: float) -> Point:
    return float(place[0] + math.cos(angle) * length), float(place[1] + math.sin(angle) * length)
