"""Every answer is checked by a second judge that sees the drawn masks and nothing else."""

from collections import Counter

import numpy as np
import pytest

from gmcli.synth.draw import SIZE, draw, make_look
from gmcli.synth.facts import Facts, Move, observe
from gmcli.synth.questions import TYPES, ask, wordings
from gmcli.synth.samples import scene_with_questions, stream
from gmcli.synth.scene import FPS, FRAMES, Motion, Scene, Thing

SAMPLES = 40


class Judge:
    """Watch indexed masks [FRAMES,H,W]; know nothing of tracks, motions or plans."""

    def __init__(self, masks, count):
        self.masks, self.count = masks, count
        self.centres = np.full((count, FRAMES, 2), np.nan)
        for thing in range(count):
            for frame in range(FRAMES):
                y, x = np.nonzero(masks[frame] == thing + 1)
                self.centres[thing, frame] = x.mean() / SIZE, y.mean() / SIZE
        step = np.hypot(*np.moveaxis(np.diff(self.centres, axis=1), 2, 0))
        self.active = np.append(step, step[:, -1:], axis=1) > 0.006

    def spans(self, thing):
        """Return the seconds in which the thing moves, as (start, end) pairs."""
        edges = np.flatnonzero(np.diff(np.r_[0, self.active[thing].astype(int), 0]))
        return [(round(a / FPS), round(b / FPS)) for a, b in zip(edges[::2], edges[1::2], strict=True)]

    def way(self, thing, start, end):
        first, last = start * FPS, min(end * FPS, FRAMES - 1)
        return self.centres[thing, last] - self.centres[thing, first]

    def length(self, thing):
        return sum(np.hypot(*self.way(thing, *span)) for span in self.spans(thing))

    def gap(self, a, b, second):
        """Return how far apart two things are, taken as circles of their areas."""
        frame = min(second * FPS, FRAMES - 1)
        radii = sum(np.sqrt((self.masks[frame] == thing + 1).sum() / np.pi) / SIZE for thing in (a, b))
        return np.hypot(*(self.centres[a, frame] - self.centres[b, frame])) - radii

    def pushes(self):
        """Return (pusher, pushed): the first stops as the second sets off, and they are close."""
        found = set()
        for a in range(self.count):
            for b in range(self.count):
                for _, stop in self.spans(a):
                    if a != b and any(start == stop for start, _ in self.spans(b)) and self.gap(a, b, stop) <= 0.045:
                        found.add((a, b))
        return found


def plain_scenes():
    """Yield scenes in which nothing hides anything, with their judges: then centroids are centres."""
    found, index = 0, 0
    while found < SAMPLES:
        rng = stream("val", 5, index)
        facts, asked = scene_with_questions(rng)
        index += 1
        if facts.passes or any(m.crosses is not None for m in facts.scene.motions):
            continue
        look = make_look(facts.scene, FRAMES, rng)
        look.shake[:] = 0
        found += 1
        yield facts, asked, Judge(draw(facts.scene, look, range(FRAMES))[1], len(facts.scene.things))


JUDGED = list(plain_scenes())
KINDS = Counter(question.kind for _, asked, _ in JUDGED for question in asked)


def right_answers(judge, kind, about):
    """Return all things that the judge would accept."""
    things = [thing for thing in range(judge.count) if thing != about]
    own = judge.spans(about)[0] if about is not None and judge.spans(about) else (0, 0)
    every = [(start, end, thing) for thing in range(judge.count) for start, end in judge.spans(thing)]
    pushes = judge.pushes()
    match kind:
        case "farthest":
            return [max(things, key=judge.length)]
        case "fastest":

            def speed(thing):
                return max((np.hypot(*judge.way(thing, *s)) / (s[1] - s[0]) for s in judge.spans(thing)), default=0)

            return [max(things, key=speed)]
        case "left" | "right" | "up" | "down":
            axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[kind]
            return [t for s, e, t in every if sign * judge.way(t, s, e)[axis] > 0.08]
        case "rests":
            return [thing for thing in things if not judge.spans(thing)]
        case "after":
            return [t for s, _, t in every if t != about and s >= own[1]]
        case "before":
            return [t for s, _, t in every if t != about and s < own[0]]
        case "while":
            return [t for s, e, t in every if t != about and s < own[1] and e > own[0]]
        case "first":
            return [min(every)[2]]
        case "last":
            return [max(every)[2]]
        case "pusher" | "needed":
            return [a for a, b in pushes if b == about]
        case "pushed" | "dependent":
            return [b for a, b in pushes if a == about]
        case "first_without":
            gone = {about} | {b for a, b in pushes if a == about}
            return [min(entry for entry in every if entry[2] not in gone)[2]]
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_judge_finds_the_same_answer_and_no_other(kind):
    for facts, asked, judge in JUDGED:
        for question in asked:
            if question.kind == kind:
                assert right_answers(judge, kind, question.about) == [question.answer], (facts.scene, question)


def test_the_windows_are_those_in_which_the_answer_moves():
    for _, asked, judge in JUDGED:
        for question in asked:
            if question.kind == "rests":
                assert (question.start, question.end) == (0, 10)
            else:
                assert (question.start, question.end) in judge.spans(question.answer)


def test_most_kinds_are_judged():
    assert len(KINDS) >= 14


def test_every_type_is_asked_and_no_question_twice():
    types = Counter()
    for _, asked, _ in JUDGED:
        types.update(question.type for question in asked)
        assert len({(q.kind, q.about) for q in asked}) == len(asked)
    assert set(types) == set(TYPES)


def test_the_thing_that_is_named_is_never_the_answer():
    for facts, asked, _ in JUDGED:
        for question in asked:
            assert question.answer != question.about
            assert "{" not in question.text
            if question.about is not None:
                assert facts.scene.things[question.about].name in question.text


def test_who_passes_whom_is_seen_in_the_masks():
    kinds = Counter()
    for i in range(300):
        rng = stream("val", 6, i)
        facts, asked = scene_with_questions(rng)
        for question in asked:
            if question.kind not in ("front", "behind"):
                continue
            kinds[question.kind] += 1
            look = make_look(facts.scene, FRAMES, rng)
            masks = draw(facts.scene, look, range(question.start * FPS, min(question.end * FPS, FRAMES)))[1]
            hidden = question.about if question.kind == "front" else question.answer
            areas = (masks == hidden + 1).sum(axis=(1, 2))
            assert areas.min() < 0.9 * areas.max()
    assert min(kinds["front"], kinds["behind"]) >= 3


def thing(colour, radius=0.08):
    return Thing(colour, "circle", radius, 0.0)


def test_a_push_is_one_only_where_they_touch():
    def facts(target):
        return observe(
            Scene(
                (thing("red"), thing("blue")),
                ((0.1, 0.5), (0.6, 0.5)),
                (Motion(0, 1, 3, (0.1, 0.5), (target, 0.5)), Motion(1, 3, 5, (0.6, 0.5), (0.9, 0.5))),
            )
        )

    assert [move.cause for move in facts(0.44).moves] == [None, 0]
    assert [move.cause for move in facts(0.38).moves] == [None, None]


def test_nearly_as_far_is_not_asked():
    def kinds(length):
        scene = Scene(
            (thing("red"), thing("blue")),
            ((0.1, 0.2), (0.1, 0.8)),
            (Motion(0, 1, 3, (0.1, 0.2), (0.6, 0.2)), Motion(1, 4, 6, (0.1, 0.8), (0.1 + length, 0.8))),
        )
        return {question.kind for question in ask(observe(scene), np.random.default_rng(0))}

    assert "farthest" in kinds(0.3)
    assert "farthest" not in kinds(0.4)


def test_one_mover_raises_no_question():
    move = Move(0, 1, 3, 0.5, 0.0, None)
    scene = Scene((thing("red"), thing("blue")), ((0.1, 0.2), (0.1, 0.8)), ())
    assert ask(Facts(scene, (move,), ()), np.random.default_rng(0)) == []


def test_wordings_differ():
    assert len(set(wordings())) == len(wordings())
