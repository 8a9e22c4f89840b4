"""Render videos, look at them with the trained tower, and keep what the stages need: features, facts, questions.

Rendering and the tower cost more than a step of the small language model, so each batch of videos is made once and kept on disk;
epochs after the first draw other questions about the same videos.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gmcli.model.mora import Mora
from gmcli.model.preprocess import clip_pixels
from gmcli.synth.draw import draw, make_look
from gmcli.synth.facts import Facts
from gmcli.synth.questions import Asked
from gmcli.synth.samples import Split, scene_with_questions, stream
from gmcli.synth.scene import FRAMES
from gmcli.train.tiny.lessons import lesson_truth
from gmcli.train.tiny.sam import phrase_of
from gmcli.train.tiny.stills import colour_of, shape_of
from gmcli.video import sample_indices


@dataclass(frozen=True, slots=True)
class Line:
    """Teach one answer: the question, the answer's name without "the", its phrase, and the window in seconds."""

    kind: str
    text: str
    answer: str
    phrase: int
    start: int
    end: int


class Videos:
    """Make batches of videos by index, and keep them in `cache`."""

    def __init__(self, mora: Mora, split: Split, seed: int, size: int, frames: int, cache: Path) -> None:
        self._mora, self._split, self._seed, self._size, self._cache = mora, split, seed, size, cache
        self._sampled = sample_indices(0, FRAMES, frames)

    def tensors(self, index: int) -> dict[str, torch.Tensor]:
        """Return a batch's tensors, [V, ...] each: `temporal`, the frames' mean features, and those of `lesson_truth`."""
        return load_file(self._made(index))

    def questions(self, index: int) -> list[list[Line]]:
        """Return the questions about a batch's videos."""
        videos = json.loads(self._made(index).with_suffix(".json").read_text("utf-8"))
        return [[Line(**line) for line in video] for video in videos]

    def _made(self, index: int) -> Path:
        """Return the file of a batch's tensors, which are made if they are not there; the questions lie beside it."""
        tensors = self._cache / f"{index:06d}.safetensors"
        if not tensors.exists():
            self._make(index, tensors, tensors.with_suffix(".json"))
        return tensors

    @torch.no_grad()
    def _make(self, index: int, tensors: Path, lines: Path) -> None:
        videos, asked = [], []
        for i in range(index * self._size, (index + 1) * self._size):
            rng = stream(self._split, self._seed, i)
            facts, questions = scene_with_questions(rng)
            pixels, _ = draw(facts.scene, make_look(facts.scene, FRAMES, rng), self._sampled)
            # Here half the time is the tower's; a rounding of one in three hundred is less than what the frames' noise does.
            with torch.autocast("cpu", torch.bfloat16):
                features = self._mora.clip_features(clip_pixels(pixels, self._mora.config.clip.image_size)).float()
            videos.append(
                {
                    "temporal": features.mean(dim=1),
                    **{k: torch.from_numpy(v) for k, v in lesson_truth(facts, self._sampled).items()},
                }
            )
            asked.append([_line(facts, question) for question in questions] + list(_drills(facts)))
        self._cache.mkdir(parents=True, exist_ok=True)
        # Two loader processes may make the same batch at the same time; it will be the same.
        draft = tensors.with_suffix(f".{os.getpid()}.part")
        draft.write_text(json.dumps([[_values(line) for line in video] for video in asked]), encoding="utf-8")
        draft.replace(lines)
        save_file({k: torch.stack([v[k] for v in videos]) for k in videos[0]}, draft)
        draft.replace(tensors)


# Apart from the seeds of the single frames that the tower and SAM have seen.
_APART = 300
_VALIDATION_SEED = 1


class VideoCache:
    """Keep the videos of a training's stages in `folder`: those to learn from and those to be scored on."""

    def __init__(self, folder: Path, seed: int, mora: Mora, size: int) -> None:
        frames = mora.config.localizer_bins
        self.training = Videos(mora, "train", seed + _APART, size, frames, folder / "train")
        self.validation = Videos(mora, "val", _VALIDATION_SEED, size, frames, folder / "val")


def _values(line: Line) -> dict[str, Any]:
    return {name: getattr(line, name) for name in Line.__slots__}


def _line(facts: Facts, asked: Asked) -> Line:
    thing = facts.scene.things[asked.answer]
    phrase = phrase_of(colour_of(thing), shape_of(thing))
    return Line(asked.kind, asked.text, f"{thing.colour} {thing.shape}", phrase, asked.start, asked.end)


def _drills(facts: Facts) -> list[Line]:
    """Ask when a thing moves, naming it: an exercise in finding one thing's motion, no question of the benchmark."""
    drills = []
    for number, thing in enumerate(facts.scene.things):
        moves = facts.of(number)
        if len(moves) == 1:
            phrase = phrase_of(colour_of(thing), shape_of(thing))
            text = f"When does {thing.name} move?"
            drills.append(Line("drill", text, f"{thing.colour} {thing.shape}", phrase, moves[0].start, moves[0].end))
    return drills
