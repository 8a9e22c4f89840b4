"""Train MoRA as published: language model with LoRA, [SEG] projection, mask decoder and localizer together.

Source: LISA model/LISA.py, model_forward; paper, sections 4.1 and 4.2.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gmcli.model.generate import SpecialIds
from gmcli.model.mora import Mora
from gmcli.model.sam import postprocess_masks
from gmcli.model.tokenizer import Tokenizer
from gmcli.train.config import MoraOptions
from gmcli.train.data import MoraBatches
from gmcli.train.lora import merged_state
from gmcli.train.losses import IGNORED, mask_bce_loss, mask_dice_loss, next_token_loss, window_bce_loss
from gmcli.train.save import write_checkpoint

_PICTURES = 2


@dataclass(frozen=True, slots=True)
class Prediction:
    """Hold what the model makes of a sample whose answer it is told.

    `logits` [R,N+1,V] predict the N ids behind the visual tokens, each from the position before it; the last row predicts
    what would follow. `masks` float32 [F,H,W] are logits at the frames' own size. `bins` [1,K] are logits, None without
    a localizer. R is 1, or F in layout `frame`.
    """

    logits: torch.Tensor
    masks: torch.Tensor
    bins: torch.Tensor | None


class MoraModule(nn.Module):
    """Compute the losses of a sample of MoraBatches."""

    image_pe: torch.Tensor

    def __init__(self, mora: Mora, options: MoraOptions, special: SpecialIds) -> None:
        super().__init__()
        self.mora, self.options, self.special = mora, options, special
        self.register_buffer("image_pe", mora.visual_model.dense_pe().detach(), persistent=False)
        if options.gradient_checkpointing:
            mora.language_model.activation_checkpointing_enable({"use_reentrant": False})

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return "loss", its weighted parts, and the mean IoU of the masks; scalars."""
        options, found = self.options, self.predict(batch)
        true = batch["masks"].float()
        labels = batch["labels"].expand(len(found.logits), -1)
        shifted = torch.cat([torch.full_like(labels[:, :1], IGNORED), labels], dim=1)
        parts = {
            "ce_loss": options.ce_weight * next_token_loss(found.logits, shifted),
            "mask_bce_loss": options.bce_weight * mask_bce_loss(found.masks, true, len(true)),
            "mask_dice_loss": options.dice_weight * mask_dice_loss(found.masks, true, len(true)),
        }
        if found.bins is not None:
            parts["window_bce_loss"] = options.window_weight * window_bce_loss(found.bins, batch["bins"][None])
        return {"loss": torch.stack(list(parts.values())).sum(), **parts, "iou": _mean_iou(found.masks > 0, true > 0)}

    def predict(self, batch: Mapping[str, torch.Tensor]) -> Prediction:
        """Run the model on a sample with the answer given."""
        mora = self.mora
        tail = self._tail(batch)
        answer = batch["labels"] == batch["after"]  # a question may speak of [SEG] too
        seg = tail[:, torch.where(answer & (batch["after"] == self.special.seg))[0]]
        prompts = mora.segmentation_prompts(seg)[:, 0].expand(len(batch["sam"]), -1)
        with torch.no_grad():
            embeddings = mora.visual_model.encode_images(batch["sam"].to(self._frozen_type))
        low_res, _ = mora.visual_model.decode_masks(embeddings, prompts, self.image_pe)
        height, width = batch["masks"].shape[-2:]
        inner = (int(batch["resized"][0]), int(batch["resized"][1]))
        masks = postprocess_masks(low_res, inner, (height, width), mora.visual_model.sizes.image_size)
        bins = None
        if mora.localizer is not None:
            bins = mora.localizer(tail[0, torch.where(answer & (batch["after"] == self.special.loc))[0]])
        return Prediction(mora.language_model.lm_head(tail), masks, bins)

    def _tail(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the states, after the final norm, from the last visual token on, [R,N+1,H]: state j predicts id j."""
        mora = self.mora
        with torch.no_grad():
            features = mora.clip_features(batch["clip"].to(self._frozen_type))
            visual = mora.visual_embeddings(features, mora.config.visual_tokens)
        table = mora.language_model.get_input_embeddings()
        before, after = (table(batch[name]).expand(len(visual), -1, -1) for name in ("before", "after"))
        embeddings = torch.cat([before, visual.to(before.dtype), after], dim=1)
        hidden = mora.language_model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        start: torch.Tensor = hidden[:, before.shape[1] + visual.shape[1] - 1 :]
        return start

    @property
    def _frozen_type(self) -> torch.dtype:
        return self.mora.mm_projector.weight.dtype


class MoraStage:
    """Train a MoraModule on samples of a manifest, and score it on those of another."""

    def __init__(
        self,
        name: str,
        module: MoraModule,
        tokenizer: Tokenizer,
        tokenizer_file: Path,
        training: MoraBatches,
        validation: MoraBatches,
    ) -> None:
        self.name, self.module = name, module
        # Not a method: loader processes get the samples' maker without the model.
        self.batch: Callable[[int], Any] = training
        self._tokenizer, self._tokenizer_file = tokenizer, tokenizer_file
        self._validation = validation

    def validate(self) -> dict[str, float]:
        """Return the means over the validation questions; "score" is the mean IoU with the answer given, as LISA's is."""
        self.module.eval()
        rows = [self.module(self._sample(i)) for i in range(self._count())]
        means = {name: float(np.mean([float(row[name]) for row in rows])) for name in rows[0]}
        return {"score": means["iou"], **means}

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Draw the first masked frame of two samples: what was found in red beside the truth in green."""
        self.module.eval()
        drawn = {}
        for i in range(min(_PICTURES, self._count())):
            batch = self._sample(i)
            device = batch["masks"].device
            # Called beside `forward`, so the trainer's mixed precision must be asked for.
            mixed = self.module.mora.mm_projector.weight.dtype == torch.bfloat16
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                found = self.module.predict(batch).masks[0] > 0
            true = batch["masks"][0] > 0
            drawn[f"sample_{i}"] = _beside(found.cpu().numpy(), true.cpu().numpy())
        return drawn

    def save(self, folder: Path) -> None:
        """Write the merged model as a checkpoint that `gmcli infer` reads."""
        mora = self.module.mora
        write_checkpoint(folder, mora.config, merged_state(mora), self._tokenizer.added, self._tokenizer_file)

    def _count(self) -> int:
        return min(len(self._validation), self.module.options.validation_questions)

    def _sample(self, place: int) -> dict[str, torch.Tensor]:
        """Return one of the validation samples, spread evenly over the questions."""
        device = self.module.image_pe.device
        batch = self._validation(place * len(self._validation) // self._count())
        return {name: value.to(device) for name, value in batch.items()}


def _mean_iou(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Return the mean over frames of the masks' IoU; 1 where both are empty. found, true: bool [F,H,W]."""
    both = (found & true).flatten(1).sum(1).float()
    either = (found | true).flatten(1).sum(1).float()
    return torch.where(either > 0, both / either.clamp(min=1), 1.0).mean()


def _beside(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> NDArray[np.uint8]:
    picture = np.zeros((*true.shape, 3), np.uint8)
    picture[..., 0], picture[..., 1] = found * 255, true * 255
    return picture
