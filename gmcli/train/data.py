"""Turn a manifest with ground truth into samples: what the model sees, what it should say, where the masks are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gmcli.data import GroundTruth, Question, VideoTask
from gmcli.errors import ConfigError, ManifestError
from gmcli.masks.png import read_indices
from gmcli.model.config import PADDED_TEMPORAL_TOKENS, MoraConfig
from gmcli.model.preprocess import clip_pixels, resized_size, sam_pixels
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.model.tokenizer import Tokenizer
from gmcli.text import shorten
from gmcli.train.config import MoraOptions
from gmcli.train.losses import IGNORED
from gmcli.video import VideoReader, frame_range, open_video, read_frames, sample_indices, time_bins

# Stands in a template for the question's own answer in words.
ANSWER = "{answer}"

# What is left of a frame's time when times in seconds are fractions.
_ROUNDING_S = 1e-6


@dataclass(frozen=True, slots=True)
class MoraBatches:
    """Make the samples of kind `mora`, one question a micro-batch: a pure function of `seed` and the index.

    Small and picklable, so that loader processes can call it. Where `shuffled`, every pass over the questions has an order
    of its own.
    """

    tasks: tuple[VideoTask, ...]
    questions: tuple[tuple[int, Question], ...]
    options: MoraOptions
    config: MoraConfig
    tokenizer: Tokenizer
    seed: int
    shuffled: bool

    def __call__(self, index: int) -> dict[str, Any]:
        """Make sample `index`.

        Returns clip float32 [T,3,S,S]; sam float32 [F,3,S',S']; masks uint8 [F,H,W]; before, after, labels int64;
        resized int64 [2]; bins float32 [K] where there is a localizer.
        """
        position, question = self._question(index)
        task, truth = self.tasks[position], _truth(question)
        rng = np.random.default_rng([self.seed, index])
        template = self.options.answers[int(rng.integers(len(self.options.answers)))]
        answer = template.replace(ANSWER, truth.answer or "")
        before, after, labels = teach(question.text, answer, self.config, self.tokenizer)
        self._check_length(task, question, len(before) + len(after))
        with open_video(task.video, reader=self.options.reader, fps=task.fps) as reader:
            span = frame_range(reader.times, task.start, task.end)
            sampled = sample_indices(span.start, span.stop, self.options.frames)
            inside = frames_inside(reader.times, truth.start, truth.end)
            masked = self._masked(sampled, inside, rng)
            seen = masked if self.config.visual_tokens == "frame" else sampled
            frames = dict(zip(seen, read_frames(reader, seen), strict=True))
            sample: dict[str, Any] = {
                "before": torch.tensor(before),
                "after": torch.tensor(after),
                "labels": torch.tensor(labels),
                "clip": clip_pixels([frames[n] for n in seen], self.config.clip.image_size),
                "sam": sam_pixels([frames[n] for n in masked], self.config.sam.image_size),
                "resized": torch.tensor(resized_size(reader.size, self.config.sam.image_size)),
                "masks": torch.from_numpy(true_masks(reader, truth, masked, inside)),
            }
            if self.config.localizer_bins:
                sample["bins"] = torch.from_numpy(true_bins(reader.times, span, inside, self.config.localizer_bins))
        return sample

    def __len__(self) -> int:
        """Count the questions."""
        return len(self.questions)

    def _question(self, index: int) -> tuple[int, Question]:
        epoch, place = divmod(index, len(self.questions))
        if self.shuffled:
            # A seed of three numbers is another stream than the samples' of two.
            place = int(np.random.default_rng([self.seed, epoch, 1]).permutation(len(self.questions))[place])
        return self.questions[place]

    def _masked(self, sampled: Sequence[int], inside: NDArray[np.bool_], rng: np.random.Generator) -> list[int]:
        """Draw the frames whose masks are compared, in order.

        With a localizer only frames inside the window: outside it [LOC] empties the mask, whatever SAM draws.
        """
        distinct = sorted(set(sampled))
        within = [n for n in distinct if inside[n]] if self.config.localizer_bins else distinct
        candidates = within or distinct
        drawn = rng.permutation(len(candidates))[: self.options.mask_frames]
        return sorted(candidates[int(i)] for i in drawn)

    def _check_length(self, task: VideoTask, question: Question, text: int) -> None:
        frames = {"frame": 0, "pooled": self.options.frames, "pooled_padded": PADDED_TEMPORAL_TOKENS}
        length = text + self.config.clip.patches + frames[self.config.visual_tokens]
        if length > self.config.llm.max_position_embeddings:
            raise ConfigError(
                f"{task.id}/{question.id}: {length} positions; the language model has "
                f"{self.config.llm.max_position_embeddings}"
            )


def check_tasks(tasks: Sequence[VideoTask], manifest: str, answers: Sequence[str]) -> None:
    """Refuse a manifest that cannot be trained on; name every question that lacks something.

    answers: the templates that are taught.
    """
    named = any(ANSWER in template for template in answers)
    problems = []
    for task in tasks:
        for question in task.questions:
            truth, where = question.ground_truth, f"{task.id}/{question.id}"
            if truth is None:
                problems.append(f"{where}: has no ground truth")
            elif named and truth.answer is None:
                problems.append(f"{where}: its ground truth has no 'answer', which the answers name")
            elif named and re.search(r"\[SEG\]|\[LOC\]|</?s>", truth.answer or ""):
                problems.append(
                    f"{where}: its answer holds a token of the model's own: {shorten(truth.answer or '')!r}"
                )
    if not any(task.questions for task in tasks):
        problems.append("has no questions")
    if problems:
        raise ManifestError([f"{manifest}: {problem}" for problem in problems])


def list_questions(tasks: Sequence[VideoTask]) -> tuple[tuple[int, Question], ...]:
    """List all questions, each with the position of its task."""
    return tuple((i, question) for i, task in enumerate(tasks) for question in task.questions)


def teach(
    question: str, answer: str, config: MoraConfig, tokenizer: Tokenizer
) -> tuple[list[int], list[int], list[int]]:
    """Write a conversation to learn from: the prompt as in inference, then the answer and </s>.

    Returns the ids before the visual tokens, those after them, and the latter's labels: IGNORED but for answer and </s>.
    Source: LLaVA conversation.py, get_prompt; LISA utils/dataset.py, collate_fn.
    """
    prompt = build_prompt(question, config)
    end = {"llava_v1": "</s>", "llava_llama_2": " </s>"}[config.conversation]
    before, asked = tokenize_prompt(prompt, tokenizer)
    _, after = tokenize_prompt(f"{prompt} {answer}{end}", tokenizer)
    if after[: len(asked)] != asked:
        raise AssertionError(f"the answer {answer!r} changes the ids of the prompt before it")
    return before, after, [IGNORED] * len(asked) + after[len(asked) :]


def frames_inside(times: NDArray[np.float64], start: float | None, end: float | None) -> NDArray[np.bool_]:
    """Say for each frame whether it is shown, whole, within [start, end] seconds; None leaves a side open.

    At 6 frames a second that is the protocol's window, `start * 6` to `end * 6 - 1`.
    Source: evaluate_groundmore.py of dengandong/GroundMoRe.
    """
    last = np.median(np.diff(times)) if len(times) > 1 else 0.0
    ends = np.append(times[1:], times[-1] + last)
    inside = np.ones(len(times), np.bool_)
    if start is not None:
        inside &= times >= start - _ROUNDING_S
    if end is not None:
        inside &= ends <= end + _ROUNDING_S
    return inside


def true_bins(times: NDArray[np.float64], span: range, inside: NDArray[np.bool_], bins: int) -> NDArray[np.float32]:
    """Say which of K time bins [LOC] should select, float32 [K]: the inverse of how an answer's bins are read.

    Bin k stands for the k-th of K equal parts of the clip; one is selected where at least half of its frames are inside. A
    window that fills no bin so far selects the one in which its middle lies.
    """
    shown = inside[span.start : span.stop]
    bin_of = time_bins(times[span.start : span.stop], bins)
    target = np.zeros(bins, np.float32)
    for k in range(bins):
        own = shown[bin_of == k]
        # A clip of fewer frames than bins has empty ones, which go with their neighbour.
        target[k] = own.mean() >= 0.5 if len(own) else shown[int(np.abs(bin_of - k).argmin())]
    if shown.any() and not target.any():
        within = np.flatnonzero(shown)
        target[bin_of[within[len(within) // 2]]] = 1
    return target


def true_masks(
    reader: VideoReader, truth: GroundTruth, frames: Sequence[int], inside: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Read the true masks of these frames, uint8 [F,H,W] of 0 and 1: the union of the objects, nothing outside the window.

    A frame without a PNG has no object. Raises ConfigError for what is no mask of this video.
    """
    masks = np.zeros((len(frames), *reader.size), np.uint8)
    folder = Path(truth.masks)
    for position, frame in enumerate(frames):
        path = folder / f"{reader.names[frame]}.png"
        if inside[frame] and path.is_file():
            masks[position] = np.isin(_read_plane(path, reader.size), truth.object_ids)
    return masks


def _read_plane(path: Path, size: tuple[int, int]) -> NDArray[Any]:
    try:
        pixels = read_indices(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a mask ({error})") from None
    if pixels.shape != size:
        raise ConfigError(f"{path}: the mask is {pixels.shape}, the frame {size} (H, W)")
    return pixels


def _truth(question: Question) -> GroundTruth:
    if question.ground_truth is None:
        raise ValueError("tasks have been checked for ground truth")
    return question.ground_truth
