"""The judges of what MotionShapes gives away see what they are said to see, and no more."""

import dataclasses

import pytest
import torch

from gmcli.synth.questions import kinds
from gmcli.train.tiny import blind
from gmcli.train.tiny.blind import guess, make_exam, train_judge


@pytest.fixture(scope="module")
def exam():
    return make_exam("val", 3, 40)


def test_guessing_is_one_in_those_who_are_left(exam):
    wanted = []
    for there, question in zip(exam.there, exam.question, strict=True):
        names = question[len(kinds()) :]
        assert not (names.bool() & ~there).any(), "a thing that is asked about is there"
        wanted.append(1 / (there.sum() - names.sum()))
    assert guess(exam) == pytest.approx(float(torch.stack(wanted).mean()))


def test_the_answer_is_there_and_is_not_the_one_named(exam):
    for answer, there, question in zip(exam.answer, exam.there, exam.question, strict=True):
        assert there[answer]
        assert not question[len(kinds()) + int(answer)]


def test_a_judge_is_not_shown_what_it_may_not_see(exam, monkeypatch):
    monkeypatch.setattr(blind, "_STEPS", 20)
    noise = torch.randn_like(exam.motion)
    other = dataclasses.replace(exam, motion=noise)
    seen = [train_judge(e, e, frame=True, motion=False, question=True) for e in (exam, other)]
    assert seen[0] == seen[1]


def test_a_judge_learns_what_it_sees(exam, monkeypatch):
    monkeypatch.setattr(blind, "_STEPS", 150)
    given_away = dataclasses.replace(exam, frame=torch.nn.functional.one_hot(exam.answer, exam.frame.shape[1]).float())
    assert train_judge(given_away, given_away, frame=True, motion=False, question=False) == 1.0
