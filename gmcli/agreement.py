"""Find out whether two ways to run a model draw the same masks, on real features of a drawn clip."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from gmcli.checkpoints.load import Checkpoint
from gmcli.errors import EngineError
from gmcli.model.generate import Prefix, answer_questions, prefill, read_answers
from gmcli.model.preprocess import clip_pixels, resized_size, sam_pixels
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.model.sam import postprocess_masks
from gmcli.synth.draw import draw, make_look
from gmcli.synth.samples import scene_with_questions, stream

if TYPE_CHECKING:
    from gmcli.engines import Engines

# Frames of the drawn clip, spread over its ten seconds as a run would sample them.
_FRAMES = (0, 12, 24, 36, 48, 59)
_QUESTIONS = 2
_ANSWER = "It is [SEG]."


@dataclass(frozen=True, slots=True)
class Agreement:
    """Compare sets of masks: IoU over all pixels of all of them, the lowest of a single one, and how many there are."""

    iou: float
    least: float
    count: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Hold what masks are drawn of: frames [H,W,3] uint8 of a clip, questions, and the ids of their answers."""

    frames: tuple[NDArray[np.uint8], ...]
    questions: tuple[str, ...]
    answers: tuple[tuple[int, ...], ...] = ()


@torch.inference_mode()
def make_sample(checkpoint: Checkpoint, engines: "Engines") -> Sample:
    """Draw a clip, ask two questions about it, and note the answers.

    An answer without [SEG] is replaced by one that has it, so that every checkpoint has something to draw.
    """
    rng = stream("test", 0, 0)
    facts, asked = scene_with_questions(rng)
    pixels, _ = draw(facts.scene, make_look(facts.scene, 60, rng), _FRAMES)
    sample = Sample(tuple(pixels), tuple(question.text for question in asked[:_QUESTIONS]))
    prefix, suffixes = _prompt(checkpoint, engines, sample)
    special, limit = checkpoint.special, 64
    made = answer_questions(engines.model, engines.language, prefix, suffixes, special, limit).answers
    instead = tuple(checkpoint.tokenizer.encode(_ANSWER)[1:])
    return replace(sample, answers=tuple(a.ids if special.seg in a.ids else instead for a in made))


@torch.inference_mode()
def sample_masks(checkpoint: Checkpoint, engines: "Engines", sample: Sample) -> NDArray[np.bool_]:
    """Draw the masks of a sample the whole way from its pixels, bool [frames * questions,H,W].

    Answers are given; features, states, prompts and masks are the model's own.
    """
    model, sam = engines.model, engines.model.visual_model.sizes
    like = next(model.language_model.parameters())
    prefix, suffixes = _prompt(checkpoint, engines, sample)
    states, _ = read_answers(model, engines.language, prefix, suffixes, sample.answers)
    at = [ids.index(checkpoint.special.seg) for ids in sample.answers]
    points = model.segmentation_prompts(torch.stack([own[i] for own, i in zip(states, at, strict=True)]))
    size = (sample.frames[0].shape[0], sample.frames[0].shape[1])
    masks = []
    for frame in sample.frames:
        embedding = engines.encode(sam_pixels([frame], sam.image_size).to(like.device, like.dtype))
        for point in points:
            low_res, _ = engines.decode(embedding, point[None])
            full = postprocess_masks(low_res, resized_size(size, sam.image_size), size, sam.image_size)
            masks.append((full[0] > 0).cpu().numpy())
    return np.stack(masks)


def _prompt(checkpoint: Checkpoint, engines: "Engines", sample: Sample) -> tuple[Prefix, list[list[int]]]:
    """Show the frames to the language model; return their prefix and each question's tokens behind it."""
    model, like = engines.model, next(engines.model.language_model.parameters())
    pixels = clip_pixels(sample.frames, model.config.clip.image_size).to(like.device, like.dtype)
    size = engines.batch["clip"]
    features = torch.cat([engines.clip(pixels[i : i + size]) for i in range(0, len(pixels), size)])
    visual = model.visual_embeddings(features, model.config.visual_tokens)[:1]
    prompts = [tokenize_prompt(build_prompt(q, model.config), checkpoint.tokenizer) for q in sample.questions]
    return prefill(model, engines.language, prompts[0][0], visual), [after for _, after in prompts]


def mask_agreement(want: NDArray[np.bool_], got: NDArray[np.bool_]) -> Agreement:
    """Compare masks [N,H,W] with those that they should be.

    Raises EngineError where the wanted masks are all empty or all full: then there is nothing to compare.
    """
    if not want.any() or want.all():
        raise EngineError("the checkpoint draws nothing on the drawn clip, so nothing can be verified on it")
    common, either = (want & got).sum(axis=(1, 2)), (want | got).sum(axis=(1, 2))
    each = common[either > 0] / either[either > 0]
    return Agreement(float(common.sum() / either.sum()), float(each.min()), len(want))
