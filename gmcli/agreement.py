"""Find out whether two ways to run a model draw the same masks, on real features of a drawn clip."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from gmcli.checkpoints.load import Checkpoint
from gmcli.errors import EngineError
from gmcli.model.generate import prefill, read_answers
from gmcli.model.preprocess import clip_pixels, resized_size, sam_pixels
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.model.sam import postprocess_masks
from gmcli.synth.draw import draw, make_look
from gmcli.synth.samples import scene_with_questions, stream

if TYPE_CHECKING:
    from gmcli.engines import Engines

_FRAMES = (10, 30, 50)
_QUESTIONS = ("What moves?", "Which shape stays where it is all the time?")
_ANSWER = "It is [SEG]."


@dataclass(frozen=True, slots=True)
class Agreement:
    """Compare sets of masks: IoU over all pixels of all of them, the lowest of a single one, and how many there are."""

    iou: float
    least: float
    count: int


@torch.inference_mode()
def sample_masks(checkpoint: Checkpoint, engines: "Engines") -> NDArray[np.bool_]:
    """Draw the masks of two questions in three frames of a drawn clip, the whole way from pixels, [6,H,W] bool.

    The answer is put into the model's mouth, so that every checkpoint has prompts; frames, features, states, prompts and
    masks are its own.
    """
    model, tokenizer = engines.model, checkpoint.tokenizer
    parameter = next(model.language_model.parameters())
    frames = _clip()
    pixels = clip_pixels(frames, model.config.clip.image_size).to(parameter.device, parameter.dtype)
    size = engines.batch["clip"]
    features = torch.cat([engines.clip(pixels[i : i + size]) for i in range(0, len(pixels), size)])
    visual = model.visual_embeddings(features, model.config.visual_tokens)[:1]
    prompts = [tokenize_prompt(build_prompt(question, model.config), tokenizer) for question in _QUESTIONS]
    prefix = prefill(model, engines.language, prompts[0][0], visual)
    ids = tokenizer.encode(_ANSWER)[1:]
    states, _ = read_answers(model, engines.language, prefix, [after for _, after in prompts], [ids] * len(prompts))
    at = ids.index(checkpoint.special.seg)
    points = model.segmentation_prompts(torch.stack([own[at] for own in states]))
    sam, height, width = model.visual_model.sizes, *frames[0].shape[:2]
    masks = []
    for frame in frames:
        embedding = engines.encode(sam_pixels([frame], sam.image_size).to(parameter.device, parameter.dtype))
        for point in points:
            low_res, _ = engines.decode(embedding, point[None])
            full = postprocess_masks(
                low_res, resized_size((height, width), sam.image_size), (height, width), sam.image_size
            )
            masks.append((full[0] > 0).cpu().numpy())
    return np.stack(masks)


def mask_agreement(want: NDArray[np.bool_], got: NDArray[np.bool_]) -> Agreement:
    """Compare masks [N,H,W] with those that they should be.

    Raises EngineError where the wanted masks are all empty or all full: then there is nothing to compare.
    """
    if not want.any() or want.all():
        raise EngineError("the checkpoint draws nothing on the drawn clip, so nothing can be verified on it")
    common, either = (want & got).sum(axis=(1, 2)), (want | got).sum(axis=(1, 2))
    each = common[either > 0] / either[either > 0]
    return Agreement(float(common.sum() / either.sum()), float(each.min()), len(want))


def _clip() -> list[NDArray[np.uint8]]:
    rng = stream("test", 0, 0)
    facts, _ = scene_with_questions(rng)
    pixels, _ = draw(facts.scene, make_look(facts.scene, 60, rng), _FRAMES)
    return list(pixels)
