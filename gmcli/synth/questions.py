"""Ask about a scene what only its motion answers, in GroundMoRe's four types.

Each finder looks at what happens and returns every question of its kind that has exactly one right answer, with room to
spare: the farthest goes half as far again as the next, "after" leaves nothing half begun.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gmcli.synth.facts import Facts, Move
from gmcli.synth.scene import SECONDS

TYPES = ("Descriptive", "Sequential", "Causal", "Counterfactual")

# How much more than the next one the greatest must be.
_MARGIN = 1.5
# A displacement (frame sides) that nobody would call one.
_SLIGHT = 0.07
# How much longer the named component of a displacement must be than the other.
_CLEAR = 1.8

_WORDINGS = {
    "farthest": ("What moves farthest?", "Which shape travels the longest way?", "What covers the greatest distance?"),
    "fastest": ("What moves fastest?", "Which shape has the highest speed?", "What is the quickest?"),
    "left": ("What moves to the left?", "Which shape goes left?"),
    "right": ("What moves to the right?", "Which shape goes right?"),
    "up": ("What moves up?", "Which shape goes upwards?"),
    "down": ("What moves down?", "Which shape goes downwards?"),
    "rests": ("What never moves?", "Which shape stays where it is all the time?"),
    "front": ("What passes in front of {}?", "Which shape moves over {}?"),
    "behind": ("What passes behind {}?", "Which shape moves under {}?"),
    "after": ("What moves after {} stops?", "What starts to move once {} has come to rest?"),
    "before": ("What moves before {} starts to move?", "What has moved by the time {} sets off?"),
    "while": ("What moves at the same time as {}?", "What else is moving while {} moves?"),
    "first": ("What moves first?", "Which shape is the first to move?"),
    "last": ("What moves last?", "Which shape is the last to move?"),
    "pusher": ("What makes {} move?", "What pushes {}?", "Why does {} start to move? What hits it?"),
    "pushed": ("What does {} push?", "What is set in motion by {}?", "What starts to move because {} hits it?"),
    "dependent": (
        "What would have stayed still if {} had not moved?",
        "What could not have moved without {}?",
        "If {} had rested, what would have rested too?",
    ),
    "needed": (
        "Without what would {} have stayed still?",
        "What would have to rest so that {} never moves?",
    ),
    "first_without": ("What would have moved first if {} had stayed still?",),
}
_KINDS = {
    "Descriptive": ("farthest", "fastest", "left", "right", "up", "down", "rests", "front", "behind"),
    "Sequential": ("after", "before", "while", "first", "last"),
    "Causal": ("pusher", "pushed"),
    "Counterfactual": ("dependent", "needed", "first_without"),
}
_TYPE = {kind: kind_type for kind_type, kinds in _KINDS.items() for kind in kinds}


@dataclass(frozen=True, slots=True)
class Asked:
    """Ask one question. `answer` and `about` are things of the scene; the window [start, end) is in seconds."""

    kind: str
    type: str
    text: str
    about: int | None
    answer: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Found:
    kind: str
    about: int | None
    answer: int
    start: int
    end: int


def ask(facts: Facts, rng: np.random.Generator) -> list[Asked]:
    """Return every question that the scene answers without doubt, each in a wording drawn from `rng`."""
    if facts.unclear:
        return []
    asked = []
    movers = {move.thing for move in facts.moves}
    for finder in _FINDERS:
        for found in finder(facts):
            # Among fewer movers the answer could be had by finding out who moves at all.
            if len(movers - {found.about}) < 2:
                continue
            wordings = _WORDINGS[found.kind]
            name = facts.scene.things[found.about].name if found.about is not None else ""
            text = wordings[int(rng.integers(len(wordings)))].format(name)
            asked.append(Asked(found.kind, _TYPE[found.kind], text, found.about, found.answer, found.start, found.end))
    return asked


def wordings() -> tuple[str, ...]:
    """Return every wording, with {} where a thing is named: a tokenizer's training text."""
    return tuple(text for texts in _WORDINGS.values() for text in texts)


def type_of(kind: str) -> str:
    """Return the type of a kind of questions."""
    return _TYPE[kind]


def kinds() -> tuple[str, ...]:
    """Return the names of all kinds of questions."""
    return tuple(_TYPE)


def _of_move(kind: str, move: Move, about: int | None = None) -> _Found:
    return _Found(kind, about, move.thing, move.start, move.end)


def _only(facts: Facts, thing: int) -> Move | None:
    moves = facts.of(thing)
    return moves[0] if len(moves) == 1 else None


def _greatest(facts: Facts) -> Iterator[_Found]:
    things = range(len(facts.scene.things))
    for kind, values in (
        ("farthest", [sum(move.length for move in facts.of(t)) for t in things]),
        ("fastest", [max((move.speed for move in facts.of(t)), default=0.0) for t in things]),
    ):
        order = np.argsort(values)
        move = _only(facts, int(order[-1]))
        if move is not None and values[order[-1]] >= _MARGIN * values[order[-2]]:
            yield _of_move(kind, move)


def _directions(facts: Facts) -> Iterator[_Found]:
    for kind, axis, sign in (("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)):
        going = [(move, sign * (move.dx, move.dy)[axis], abs((move.dx, move.dy)[1 - axis])) for move in facts.moves]
        some = [(move, along, across) for move, along, across in going if along > _SLIGHT]
        if len(some) == 1 and some[0][1] > _CLEAR * some[0][2]:
            yield _of_move(kind, some[0][0])


def _resting(facts: Facts) -> Iterator[_Found]:
    still = [thing for thing in range(len(facts.scene.things)) if not facts.of(thing)]
    if len(still) == 1:
        yield _Found("rests", None, still[0], 0, SECONDS)


def _passing(facts: Facts) -> Iterator[_Found]:
    for move, other in facts.passes:
        # A thing hides those before it in the list; nothing else may pass this one in any way.
        if sum(other in (passed, mover.thing) for mover, passed in facts.passes) == 1:
            yield _of_move("front" if move.thing > other else "behind", move, other)


def _in_order(facts: Facts) -> Iterator[_Found]:
    for about in range(len(facts.scene.things)):
        own = _only(facts, about)
        if own is None:
            continue
        others = [move for move in facts.moves if move.thing != about]
        after = [move for move in others if move.end > own.end]
        if len(after) == 1 and after[0].start >= own.end:
            yield _of_move("after", after[0], about)
        before = [move for move in others if move.start < own.start]
        if len(before) == 1 and before[0].end <= own.start:
            yield _of_move("before", before[0], about)
        during = [move for move in others if move.start < own.end and move.end > own.start]
        if len(during) == 1:
            yield _of_move("while", during[0], about)


def _ends(facts: Facts) -> Iterator[_Found]:
    if len(facts.moves) < 2:
        return
    first, second = facts.moves[:2]
    if first.start < second.start:
        yield _of_move("first", first)
    last = max(facts.moves, key=lambda move: move.start)
    if all(move is last or (move.start < last.start and move.end < last.end) for move in facts.moves):
        yield _of_move("last", last)


def _causes(facts: Facts) -> Iterator[_Found]:
    for effect in facts.moves:
        if effect.cause is None:
            continue
        cause = [move for move in facts.of(effect.cause) if move.end == effect.start]
        if len(cause) != 1:
            continue
        alone = len([move for move in facts.moves if move.cause == effect.cause]) == 1
        once = _only(facts, effect.thing) is not None
        free = cause[0].cause is None
        if once:
            yield _of_move("pusher", cause[0], effect.thing)
        if alone:
            yield _of_move("pushed", effect, effect.cause)
        if alone and once and not any(move.cause == effect.thing for move in facts.moves):
            yield _of_move("dependent", effect, effect.cause)
        if once and free:
            yield _of_move("needed", cause[0], effect.thing)


def _without(facts: Facts) -> Iterator[_Found]:
    """Ask who would be first without the one that is first; who is pushed by it would not move either."""
    if len(facts.moves) < 2 or facts.moves[0].start == facts.moves[1].start:
        return
    gone = {facts.moves[0].thing}
    left = []
    for move in facts.moves:
        if move.thing in gone or move.cause in gone:
            gone.add(move.thing)
        else:
            left.append(move)
    # Where only one thing is left to move, its name could be had without looking at when it moves.
    if len(left) >= 2 and left[0].start < left[1].start and len({move.thing for move in left}) >= 2:
        yield _of_move("first_without", left[0], facts.moves[0].thing)


_FINDERS: tuple[Callable[[Facts], Iterator[_Found]], ...] = (
    _greatest,
    _directions,
    _resting,
    _passing,
    _in_order,
    _ends,
    _causes,
    _without,
)
