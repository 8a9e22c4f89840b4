"""Cut the model into the components that backends compile: tensors in, tensors out, no branches on values."""

from collections.abc import Mapping

import torch
from torch import nn

from gmcli.backends.component import Axis, Component
from gmcli.model.language import LanguageStep
from gmcli.model.mora import Mora, patch_features
from gmcli.model.sam import Sam, decode_pairs
from gmcli.model.sam_encoder import AttentionKind, ImageEncoder


class ClipTower(nn.Module):
    """Hold the vision tower up to the layer that MoRA reads."""

    def __init__(self, model: Mora) -> None:
        super().__init__()
        self.tower = model.vision_tower
        self.select_layer = model.config.clip.select_layer

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return patch features. pixels: [B,3,S,S]. Returns [B,N,C]."""
        return patch_features(self.tower, self.select_layer, pixels)


class PairDecoder(nn.Module):
    """Hold SAM's mask decoder for pairs of one frame and one prompt, and the positional encoding that never changes."""

    image_pe: torch.Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.decoder = sam.mask_decoder
        self.no_mask = sam.prompt_encoder.no_mask_embed
        self.register_buffer("image_pe", sam.dense_pe(), persistent=False)

    def forward(self, image_embeddings: torch.Tensor, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode pairs. image_embeddings: [B,C,h,w]. prompts: [B,C]. Returns low_res_logits [B,1,4h,4w], iou [B,1]."""
        return decode_pairs(self.decoder, self.no_mask.weight, image_embeddings, prompts, self.image_pe)


def components(
    model: Mora, batch: Mapping[str, int], *, questions: int, attention: AttentionKind = "bias"
) -> dict[str, Component]:
    """Return every component by name, with example inputs on the model's device and in its dtype.

    batch: the largest batch of one call for `clip`, `sam_image_encoder` and `sam_mask_decoder`. questions: the most
    questions in one batch of the language model.
    """
    like = next(model.language_model.parameters())
    sam, clip = model.config.sam, model.config.clip
    grid = sam.image_size // sam.patch_size
    axes = {name: Axis(f"{name}_batch", 1, size, size) for name, size in batch.items()}

    def example(name: str, *shape: int) -> torch.Tensor:
        return like.new_zeros(batch[name], *shape)

    made = [
        Component(
            "clip",
            ClipTower(model),
            (example("clip", 3, clip.image_size, clip.image_size),),
            ({0: axes["clip"]},),
        ),
        Component(
            "sam_image_encoder",
            ImageEncoder(model.visual_model.image_encoder, attention),
            (example("sam_image_encoder", 3, sam.image_size, sam.image_size),),
            ({0: axes["sam_image_encoder"]},),
        ),
        Component(
            "sam_mask_decoder",
            PairDecoder(model.visual_model),
            (
                example("sam_mask_decoder", sam.prompt_dim, grid, grid),
                example("sam_mask_decoder", sam.prompt_dim),
            ),
            ({0: axes["sam_mask_decoder"]}, {0: axes["sam_mask_decoder"]}),
        ),
        _language(model, questions, like),
    ]
    return {component.name: component for component in made}


def _language(model: Mora, questions: int, like: torch.Tensor) -> Component:
    llm = model.config.llm
    room = llm.max_position_embeddings
    question = Axis("questions", 1, questions, min(4, questions))
    new = Axis("new_tokens", 1, room, min(48, room))
    past = Axis("past_tokens", 1, room, min(320, room))
    b, s, c = question.usual, new.usual, past.usual
    head = llm.hidden_size // llm.num_attention_heads
    example = (
        like.new_zeros(b, s, llm.hidden_size),
        torch.arange(c, c + s, device=like.device).expand(b, -1).contiguous(),
        torch.ones(b, c, dtype=torch.bool, device=like.device),
        torch.ones(b, s, dtype=torch.bool, device=like.device),
        like.new_zeros(llm.num_hidden_layers, 2, b, llm.num_key_value_heads, c, head),
    )
    axes: tuple[dict[int, Axis], ...] = (
        {0: question, 1: new},
        {0: question, 1: new},
        {0: question, 1: past},
        {0: question, 1: new},
        {2: question, 4: past},
    )
    return Component("llm", LanguageStep(model.language_model), example, axes)
