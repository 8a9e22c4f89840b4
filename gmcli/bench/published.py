"""Run the published schedule, over the same modules and weights: what gmcli is measured against.

It answers (question, frame) by (question, frame), or (question, clip) by (question, clip), keeps nothing between two
tokens and nothing between two questions. Where the published code left room, the cheaper way is taken: attention is
SDPA as in gmcli (there it was written out), frames are decoded once for a video (there once for a question).
Source: LISA model/LISA.py (`evaluate`, `get_visual_embs`), model/llava/model (`forward`); MoRA is built on it.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gmcli.bench.stopwatch import Stopwatch
from gmcli.checkpoints.load import Checkpoint
from gmcli.config import RunConfig
from gmcli.data import VideoTask
from gmcli.model.config import VisualTokens
from gmcli.model.preprocess import Frame, clip_pixels, resized_size, sam_pixels
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.model.sam import postprocess_masks
from gmcli.video import open_video, read_frames, sample_indices


@dataclass(frozen=True, slots=True)
class Published:
    """Hold what the published schedule found: an answer for each question, and its masks by the sampled frames' numbers."""

    answers: tuple[str, ...]
    masks: tuple[dict[int, NDArray[np.bool_]], ...]


@torch.inference_mode()
def run_published(
    checkpoint: Checkpoint, task: VideoTask, config: RunConfig, layout: VisualTokens, clock: Stopwatch
) -> Published:
    """Answer a video's questions one by one with masks on the sampled frames.

    layout: `frame` asks about every frame by itself, any other about the clip. clock: gets seconds by stage, and counts.
    """
    with clock.stage("decode"), open_video(task.video) as reader:
        numbers = sorted(set(sample_indices(0, len(reader.times), config.frames)))
        frames = list(read_frames(reader, numbers))
    answers, masks = [], []
    for question in task.questions:
        clips = [[frame] for frame in frames] if layout == "frame" else [frames]
        texts: Counter[str] = Counter()
        found: list[NDArray[np.bool_]] = []
        for clip in clips:
            ids, states = generate(checkpoint, question.text, clip, layout, config.max_new_tokens, clock)
            texts[checkpoint.tokenizer.answer(ids)] += 1
            found += _masks(checkpoint, states, clip, clock)
        answers.append(texts.most_common(1)[0][0])
        masks.append(dict(zip(numbers, found, strict=True)))
    return Published(tuple(answers), tuple(masks))


def generate(
    checkpoint: Checkpoint, question: str, clip: list[Frame], layout: VisualTokens, most: int, clock: Stopwatch
) -> tuple[list[int], torch.Tensor]:
    """Decode one answer greedily, with use_cache=False: every token sees CLIP and the whole sequence run again.

    Returns the answer's ids and the states [S,H] that predicted its [SEG] tokens, from the last pass.
    """
    model, special = checkpoint.model, checkpoint.special
    llm, device = model.language_model, clock.device
    before, after = tokenize_prompt(build_prompt(question, model.config), checkpoint.tokenizer)
    table = llm.get_input_embeddings()
    dtype = next(llm.parameters()).dtype
    with clock.stage("clip"):
        pixels = clip_pixels(clip, model.config.clip.image_size).to(device, dtype)
    ids: list[int] = []
    while len(ids) < most:
        # prepare_inputs_labels_for_multimodal encodes the images in every forward pass, with all the tower's layers.
        with clock.stage("clip"):
            hidden = model.vision_tower(pixels, output_hidden_states=True).hidden_states
            visual = model.visual_embeddings(hidden[model.config.clip.select_layer][:, 1:], layout)
            clock.counts["clip_frames"] += len(pixels)
        with clock.stage("llm"):
            embedded = [table(torch.tensor([part], dtype=torch.long, device=device)) for part in (before, after + ids)]
            sequence = torch.cat([embedded[0], visual.reshape(1, -1, visual.shape[-1]), embedded[1]], dim=1)
            states = llm.model(inputs_embeds=sequence, use_cache=False).last_hidden_state
            # The logits of all positions, though generation reads the last one's only.
            token = int(llm.lm_head(states)[0, -1].argmax())
            clock.counts["llm_passes"] += 1
            clock.counts["llm_tokens"] += sequence.shape[1]
        ids.append(token)
        if token == special.eos:
            break
    # The last pass has read all ids but the last one: the state before a token is the one that predicted it.
    start = states.shape[1] - len(ids)
    at = [start + i for i, token in enumerate(ids) if token == special.seg]
    return ids, states[0, at]


def _masks(
    checkpoint: Checkpoint, states: torch.Tensor, clip: list[Frame], clock: Stopwatch
) -> list[NDArray[np.bool_]]:
    """Encode and decode a clip's frames one by one, for this question only. Returns a mask [H,W] for each."""
    model, device = checkpoint.model, clock.device
    sam = model.visual_model
    dtype = next(model.language_model.parameters()).dtype
    with clock.stage("sam_decoder"):
        prompts = model.text_hidden_fcs[0](states)
    masks = []
    for frame in clip:
        # get_visual_embs runs the encoder on one image at a time, with or without a [SEG] to mask.
        with clock.stage("sam_encoder"):
            embedding = sam.image_encoder(sam_pixels([frame], sam.sizes.image_size).to(device, dtype))
            clock.counts["sam_frames"] += 1
        with clock.stage("sam_decoder"):
            masks.append(_mask(checkpoint, embedding, prompts, frame.shape[:2]))
            clock.counts["decoded_pairs"] += len(prompts)
    return masks


def _mask(
    checkpoint: Checkpoint, embedding: torch.Tensor, prompts: torch.Tensor, size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Decode a frame's masks with all its prompts and unite them: several [SEG] are several objects of one answer."""
    sam = checkpoint.model.visual_model
    if not len(prompts):
        return np.zeros(size, np.bool_)
    # PromptEncoder.forward with text_embeds: one sparse token a prompt, and no mask as the dense input.
    sparse = prompts.unsqueeze(1)
    dense = sam.prompt_encoder.no_mask_embed.weight.to(embedding.dtype).view(1, -1, 1, 1)
    low_res, _ = sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe().to(embedding.dtype),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense.expand(len(prompts), -1, *embedding.shape[-2:]),
        multimask_output=False,
    )
    square = sam.sizes.image_size
    full = postprocess_masks(low_res, resized_size(size, square), size, square)
    mask: NDArray[np.bool_] = (full > 0).any(dim=0).cpu().numpy()
    return mask
