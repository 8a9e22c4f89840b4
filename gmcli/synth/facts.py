"""Read off the tracks alone what moved when, how far, and who set whom in motion: the judge of every answer.

Nothing here knows what the scene's maker intended.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gmcli.synth.scene import FPS, FRAMES, TOUCH, Scene

_STILL = 1e-9
# So near, somebody might say that they touch.
_NEAR = 0.05


@dataclass(frozen=True, slots=True)
class Move:
    """Describe one uninterrupted motion: seconds, displacement (dx, dy) and length in frame sides, and its cause.

    `cause` is the thing that arrived and touched this one at the moment it set off.
    """

    thing: int
    start: int
    end: int
    dx: float
    dy: float
    cause: int | None

    @property
    def length(self) -> float:
        """Return how far it goes."""
        return float(np.hypot(self.dx, self.dy))

    @property
    def speed(self) -> float:
        """Return its speed in frame sides a second."""
        return self.length / (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Facts:
    """Hold what happens in a scene: all moves by start, and which move passes whom.

    `unclear` says that somebody sets off where it might be disputed who pushed it, if anybody did.
    """

    scene: Scene
    moves: tuple[Move, ...]
    passes: tuple[tuple[Move, int], ...]
    unclear: bool = False

    def of(self, thing: int) -> list[Move]:
        """Return one thing's moves in order."""
        return [move for move in self.moves if move.thing == thing]


def observe(scene: Scene) -> Facts:
    """Watch a scene frame by frame and write down what happens."""
    tracks = scene.tracks()
    moves = [move for thing in range(len(scene.things)) for move in _moves(scene, tracks, thing)]
    moves.sort(key=lambda move: (move.start, move.thing))
    near = [_arrivals(scene, tracks, move.thing, move.start * FPS, _NEAR) for move in moves]
    unclear = any(len(n) > (move.cause is not None) for n, move in zip(near, moves, strict=True))
    return Facts(scene, tuple(moves), tuple(_passes(scene, tracks, moves)), unclear)


def moving(tracks: NDArray[np.float64], thing: int) -> NDArray[np.bool_]:
    """Say for each frame whether the thing moves between it and the next one, [FRAMES]."""
    steps = np.hypot(*np.diff(tracks[thing], axis=0).T)
    return np.append(steps, steps[-1]) > _STILL


def _moves(scene: Scene, tracks: NDArray[np.float64], thing: int) -> list[Move]:
    active = moving(tracks, thing)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    moves = []
    for first, stop in zip(edges[::2], edges[1::2], strict=True):
        last = min(stop, FRAMES - 1)
        dx, dy = (tracks[thing, last] - tracks[thing, first]) * (stop - first) / (last - first)
        arrived = _arrivals(scene, tracks, thing, int(first), TOUCH)
        cause = arrived[0] if arrived else None
        moves.append(Move(thing, round(first / FPS), round(stop / FPS), float(dx), float(dy), cause))
    return moves


def _arrivals(scene: Scene, tracks: NDArray[np.float64], thing: int, frame: int, gap: float) -> list[int]:
    """List the things that were moving until this frame and are now within `gap` of this one."""
    found = []
    for other in range(len(scene.things)):
        if other == thing or frame == 0 or not moving(tracks, other)[frame - 1]:
            continue
        distance = np.hypot(*(tracks[other, frame] - tracks[thing, frame]))
        if distance - scene.things[other].radius - scene.things[thing].radius <= gap:
            found.append(other)
    return found


def _passes(scene: Scene, tracks: NDArray[np.float64], moves: list[Move]) -> list[tuple[Move, int]]:
    """List which move overlaps which thing by more than half the smaller radius."""
    others = range(len(scene.things))
    return [
        (m, other) for m in moves for other in others if m.thing != other and overlap(scene, tracks, m, other).any()
    ]


def overlap(scene: Scene, tracks: NDArray[np.float64], move: Move, other: int) -> NDArray[np.bool_]:
    """Say in which frames a move overlaps another thing by more than half the smaller radius, [FRAMES]."""
    mine, thing = scene.things[move.thing].radius, scene.things[other].radius
    gaps = np.hypot(*(tracks[move.thing] - tracks[other]).T) - mine - thing
    found: NDArray[np.bool_] = gaps < -0.5 * min(mine, thing)
    found[: move.start * FPS] = found[move.end * FPS :] = False
    return found
