"""Measure what can be answered without motion, or without the question: it should be little more than guessing.

The judges here are given more than any model sees: the true colours, shapes and places. One sees a single frame and the
question, one the whole motion and no question, one both. What the first two get is what MotionShapes gives away.

    python -m gmcli.train.tiny.blind
"""

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from gmcli.synth.facts import Facts
from gmcli.synth.questions import Asked, kinds
from gmcli.synth.samples import Split, scene_with_questions, stream
from gmcli.synth.scene import COLOURS, FRAMES, SHAPES
from gmcli.train.tiny.stills import colour_of, shape_of

_LOOKS = 20
_STEPS = 3000
_BATCH = 512


@dataclass(frozen=True, slots=True)
class Exam:
    """Hold questions as numbers: what a frame shows, what all frames show, what is asked, who is there, who is right."""

    frame: torch.Tensor
    motion: torch.Tensor
    question: torch.Tensor
    there: torch.Tensor
    answer: torch.Tensor


def make_exam(split: Split, seed: int, videos: int) -> Exam:
    """Ask all questions of `videos` scenes."""
    rows: list[tuple[NDArray[np.float32], ...]] = []
    answers = []
    for index in range(videos):
        rng = stream(split, seed, index)
        facts, asked = scene_with_questions(rng)
        one, every, there = _seen(facts, int(rng.integers(FRAMES)))
        for question in asked:
            rows.append((one, every, _asked(facts, question), there))
            answers.append(colour_of(facts.scene.things[question.answer]))
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
    return Exam(columns[0], columns[1], columns[2], columns[3] > 0, torch.tensor(answers))


def _seen(facts: Facts, frame: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    looks = np.linspace(0, FRAMES - 1, _LOOKS).astype(int)
    tracks = facts.scene.tracks()
    looked = np.zeros((len(COLOURS), 1 + len(SHAPES)), np.float32)
    one = np.zeros((len(COLOURS), 3), np.float32)
    every = np.zeros((len(COLOURS), 2 * _LOOKS), np.float32)
    for number, thing in enumerate(facts.scene.things):
        colour = colour_of(thing)
        looked[colour, [0, 1 + shape_of(thing)]] = 1
        # Who lies on top is to be seen where two overlap.
        one[colour] = *tracks[number, frame], number / len(facts.scene.things)
        every[colour] = tracks[number, looks].ravel()
    name = looked.ravel()
    return np.concatenate([name, one.ravel()]), np.concatenate([name, every.ravel()]), looked[:, 0]


def _asked(facts: Facts, question: Asked) -> NDArray[np.float32]:
    row = np.zeros(len(kinds()) + len(COLOURS), np.float32)
    row[kinds().index(question.kind)] = 1
    if question.about is not None:
        row[len(kinds()) + colour_of(facts.scene.things[question.about])] = 1
    return row


def guess(exam: Exam) -> float:
    """Return the accuracy of guessing among the things that are there, the one that is named left out."""
    named = exam.question[:, len(kinds()) :].sum(dim=1)
    return float((1 / (exam.there.sum(dim=1) - named)).mean())


def train_judge(training: Exam, test: Exam, *, frame: bool, motion: bool, question: bool, seed: int = 0) -> float:
    """Train a small network on what it may see; return the share of right answers in the test."""
    torch.manual_seed(seed)

    def given(exam: Exam) -> torch.Tensor:
        parts = [(frame, exam.frame), (motion, exam.motion), (question, exam.question)]
        return torch.cat([part if seen else part * 0 for seen, part in parts], dim=1)

    def scores(exam: Exam, rows: torch.Tensor | slice) -> torch.Tensor:
        logits: torch.Tensor = judge(given(exam)[rows])
        return logits.masked_fill(~exam.there[rows], -1e9)

    width = given(training).shape[1]
    judge = nn.Sequential(
        nn.Linear(width, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, len(COLOURS))
    )
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=_STEPS)
    for _ in range(_STEPS):
        rows = torch.randint(len(training.answer), (_BATCH,))
        loss = functional.cross_entropy(scores(training, rows), training.answer[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float((scores(test, slice(None)).argmax(dim=1) == test.answer).float().mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=6000, help="scenes to train on")
    videos = parser.parse_args().videos
    training, test = make_exam("train", 7, videos), make_exam("test", 0, 500)
    print(f"{len(training.answer)} questions to learn from, {len(test.answer)} to answer")
    print(f"guessing            {guess(test):.3f}")
    print(f"one frame, question {train_judge(training, test, frame=True, motion=False, question=True):.3f}")
    print(f"motion, no question {train_judge(training, test, frame=False, motion=True, question=False):.3f}")
    print(f"motion and question {train_judge(training, test, frame=False, motion=True, question=True):.3f}")


if __name__ == "__main__":
    main()
