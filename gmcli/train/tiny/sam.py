"""Train SAM by itself on single frames, prompted by a learned embedding of the object's phrase.

The real SAM came trained on a billion masks; this one sees a few ten thousand frames of shapes. The embeddings are kept: in the
language stage the [SEG] states learn to point at them.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional

from gmcli.model.mora import Mora
from gmcli.model.preprocess import sam_pixels
from gmcli.synth.scene import COLOURS, SHAPES
from gmcli.train.losses import mask_bce_loss, mask_dice_loss
from gmcli.train.tiny.stills import colour_of, make_stills, shape_of

_VALIDATION_SEED = 1_000_003
# The language model will not hit an embedding exactly: masks have to bear that.
_PROMPT_NOISE = 0.15
_PAIRS = 3


def phrase_of(colour: int, shape: int) -> int:
    """Return the row of a phrase such as "the red circle" in the table of embeddings."""
    return colour * len(SHAPES) + shape


class SamModule(nn.Module):
    """Hold SAM and the embeddings of all phrases, [colours * shapes, C]."""

    def __init__(self, mora: Mora) -> None:
        super().__init__()
        self.mora = mora.requires_grad_(False)
        sam = mora.visual_model
        for part in (sam.image_encoder, sam.mask_decoder, sam.prompt_encoder.no_mask_embed):
            part.requires_grad_(True)
        self.phrases = nn.Embedding(len(COLOURS) * len(SHAPES), mora.config.sam.prompt_dim)

    def predict(
        self, pixels: torch.Tensor, rows: torch.Tensor, prompts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode pairs: frame `rows[i]` with `prompts[i]`. Returns logits [P, S, S] at SAM's input size, and IoU [P]."""
        sam = self.mora.visual_model
        embeddings = sam.encode_images(pixels)
        low_res, iou = sam.decode_masks(embeddings[rows], prompts, sam.dense_pe())
        size = sam.sizes.image_size
        return functional.interpolate(low_res, (size, size), mode="bilinear")[:, 0], iou[:, 0]

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the losses of a batch of `sam_batch`."""
        prompts = self.phrases(batch["phrases"])
        logits, iou = self.predict(batch["pixels"], batch["rows"], prompts + _PROMPT_NOISE * torch.randn_like(prompts))
        truth = batch["masks"]
        bce = mask_bce_loss(logits, truth, len(truth))
        dice = mask_dice_loss(logits, truth, len(truth))
        right = functional.mse_loss(iou, iou_of(logits, truth))
        return {"loss": 5 * bce + dice + 0.5 * right, "bce": bce, "dice": dice, "iou_error": right}


@torch.no_grad()
def iou_of(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the IoU of each mask [P]; both empty count as 1."""
    mask, true = logits.flatten(1) > 0, truth.flatten(1) > 0.5
    both, either = (mask & true).sum(dim=1), (mask | true).sum(dim=1)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def sam_batch(seed: int, size: int, image_size: int, index: int) -> dict[str, torch.Tensor]:
    """Draw a batch of frames, each paired with some of the things in it. A thing may be hidden: then its mask is empty."""
    # An offset in the stream keeps these frames apart from the tower's.
    stills = make_stills(seed + 1, index, size)
    pairs = [(row, k) for row, still in enumerate(stills) for k in _some(len(still.things), index)]
    masks = [_shrunk(stills[row].mask == k + 1, image_size) for row, k in pairs]
    phrases = [phrase_of(colour_of(stills[row].things[k]), shape_of(stills[row].things[k])) for row, k in pairs]
    return {
        "pixels": sam_pixels([still.pixels for still in stills], image_size),
        "rows": torch.tensor([row for row, _ in pairs]),
        "phrases": torch.tensor(phrases),
        "masks": torch.from_numpy(np.stack(masks)),
    }


def _some(count: int, index: int) -> list[int]:
    """Pick things in turns: the decoder costs more than the frame's encoder when all are asked for."""
    return sorted({(index + k) % count for k in range(_PAIRS)})


def _shrunk(mask: NDArray[np.bool_], size: int) -> NDArray[np.float32]:
    """Average a mask down: soft edges tell the logits where inside a pixel the border lies."""
    picture = Image.fromarray(mask.astype(np.float32))
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX), dtype=np.float32)


class SamStage:
    """Train SAM. `batch_size` frames a step, each with all its things."""

    def __init__(self, mora: Mora, seed: int, batch_size: int, save: Any) -> None:
        self.name = "sam"
        self.module = SamModule(mora)
        size = mora.config.sam.image_size
        self.batch = partial(sam_batch, seed, batch_size, size)
        self._check = sam_batch(_VALIDATION_SEED, 48, size, 0)
        self._save = save

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Score on frames of another seed: mean IoU at SAM's input size."""
        self.module.eval()
        check = self._check
        logits, iou = self.module.predict(check["pixels"], check["rows"], self.module.phrases(check["phrases"]))
        right = iou_of(logits, check["masks"])
        return {
            "score": float(right.mean()),
            "iou": float(right.mean()),
            "iou_error": float((iou - right).abs().mean()),
        }

    @torch.no_grad()
    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Draw the first masks: predicted over true."""
        check = self._check
        logits, _ = self.module.predict(check["pixels"], check["rows"][:8], self.module.phrases(check["phrases"][:8]))
        rows = torch.stack([logits > 0, check["masks"][:8] > 0.5]).numpy().astype(np.uint8) * 255
        grid = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
        return {"masks": np.repeat(grid[:, :, None], 3, axis=2)}

    def save(self, folder: Path) -> None:
        """Write the whole model as a checkpoint."""
        self._save(folder)
