"""Train the vision tower by itself on single frames: what CLIP's pre-training gives the real model.

What is asked of the *mean* over the patch features is where each colour is, how much of it is seen, and what shape it has: so the
temporal tokens, which are such means, keep places and names. A linear head reads it off, as the projector will.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from gmcli.model.mora import Mora
from gmcli.model.preprocess import clip_pixels
from gmcli.synth.scene import COLOURS, SHAPES
from gmcli.train.tiny.stills import Still, colour_of, make_stills, shape_of

_VALIDATION_SEED = 1_000_003
_SEEN = 0.2
# About as large as what a patch shows.
_POSITION_SCALE = 0.3


class TowerModule(nn.Module):
    """Read colours, places and shapes off the tower's features with linear heads."""

    def __init__(self, mora: Mora, place_weight: float = 1.0) -> None:
        super().__init__()
        self.place_weight = place_weight
        self.mora = mora.requires_grad_(False)
        mora.vision_tower.requires_grad_(True)
        width = mora.config.clip.hidden_size
        self.frame_head = nn.Linear(width, len(COLOURS) * (3 + len(SHAPES)))
        # What a patch shows is the easier lesson, and the ground of the other one.
        self.patch_head = nn.Linear(width, len(COLOURS) + 1 + len(SHAPES) + 2)

    def predict(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what frames and patches show.

        [B, colours, 3 + shapes]: visible, x, y, shape logits. [B, N, colours + 1 + shapes + 2]: colour logits (background
        first), shape logits, the way from the patch to the thing's centre.
        """
        features = self.mora.clip_features(pixels)
        frame = self.frame_head(features.mean(dim=1))
        return frame.view(len(pixels), len(COLOURS), -1), self.patch_head(features)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the losses of a batch of `tower_batch`."""
        frame, patches = self.predict(batch["pixels"])
        seen = batch["visible"] > _SEEN
        visible = functional.smooth_l1_loss(frame[..., 0], batch["visible"], beta=0.1)
        place = functional.smooth_l1_loss(frame[..., 1:3][seen], batch["place"][seen], beta=0.02)
        shape = functional.cross_entropy(frame[..., 3:][seen], batch["shape"][seen])
        colour, patch_shape, way = torch.split(patches.flatten(0, 1), [len(COLOURS) + 1, len(SHAPES), 2], dim=1)
        on = batch["patch"].flatten() > 0
        patch = functional.cross_entropy(colour, batch["patch"].flatten())
        patch_shape = functional.cross_entropy(patch_shape[on], batch["patch_shape"].flatten()[on])
        way = functional.smooth_l1_loss(way[on], batch["patch_way"].flatten(0, 1)[on], beta=0.02)
        loss = visible + self.place_weight * place + shape + 0.3 * patch + patch_shape + 0.5 * way
        parts = {"visible": visible, "place": place, "shape": shape, "patch": patch}
        return {"loss": loss, **parts, "patch_shape": patch_shape, "patch_way": way}


@torch.no_grad()
def start_positions(mora: Mora) -> None:
    """Start the position embeddings as sines and cosines of x and y, so that neighbours are found from the first step on."""
    clip = mora.config.clip
    grid, width = clip.image_size // clip.patch_size, clip.hidden_size // 4
    waves = torch.exp(-torch.arange(width) / width * torch.log(torch.tensor(100.0)))
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [axis.flatten()[:, None] * waves for axis in (x, y)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    mora.vision_tower.embeddings.position_embedding.weight[1:] = _POSITION_SCALE * table


def tower_batch(seed: int, size: int, image_size: int, grid: int, index: int) -> dict[str, torch.Tensor]:
    """Draw a batch of frames with the truth about each colour and patch."""
    stills = make_stills(seed, index, size)
    truth = [_truth(still, grid) for still in stills]
    return {
        "pixels": clip_pixels([still.pixels for still in stills], image_size),
        **{key: torch.from_numpy(np.stack([t[key] for t in truth])) for key in truth[0]},
    }


def _truth(still: Still, grid: int) -> dict[str, NDArray[Any]]:
    visible = np.zeros(len(COLOURS), np.float32)
    place = np.zeros((len(COLOURS), 2), np.float32)
    shape = np.zeros(len(COLOURS), np.int64)
    names = np.zeros(len(still.things) + 1, np.int64)
    for k, thing in enumerate(still.things):
        colour = colour_of(thing)
        visible[colour] = still.visible(k)
        place[colour] = still.centres[k]
        shape[colour] = shape_of(thing)
        names[k + 1] = colour + 1
    # A patch is what most of its pixels are; the background needs three quarters of them.
    cells = still.mask.reshape(grid, still.mask.shape[0] // grid, grid, -1).swapaxes(1, 2).reshape(grid * grid, -1)
    counts = np.stack([(cells == k).sum(axis=1) for k in range(len(still.things) + 1)], axis=1).astype(np.float64)
    counts[:, 0] /= 3
    shown = counts.argmax(axis=1)
    shapes = np.array([0, *(shape_of(thing) for thing in still.things)])
    centres = np.concatenate([np.zeros((1, 2)), still.centres]).astype(np.float32)
    y, x = np.divmod(np.arange(grid * grid), grid)
    middles = (np.stack([x, y], axis=1).astype(np.float32) + 0.5) / grid
    return {
        "visible": visible,
        "place": place,
        "shape": shape,
        "patch": names[shown],
        "patch_shape": shapes[shown],
        "patch_way": centres[shown] - middles,
    }


class TowerStage:
    """Train the tower. `batch_size` frames a step; `place_weight` is that of the mean's places in the loss."""

    def __init__(self, mora: Mora, seed: int, batch_size: int, place_weight: float, save: Any) -> None:
        self.name = "tower"
        self.module = TowerModule(mora, place_weight)
        clip = mora.config.clip
        sizes = (clip.image_size, clip.image_size // clip.patch_size)
        self.batch = partial(tower_batch, seed, batch_size, *sizes)
        self._check = tower_batch(_VALIDATION_SEED, 256, *sizes, 0)
        self._save = save

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Score on frames of another seed: mean error of places in frame sides, share of right shapes, of right patches."""
        self.module.eval()
        check = self._check
        frame, patches = self.module.predict(check["pixels"])
        seen = check["visible"] > _SEEN
        error = (frame[..., 1:3] - check["place"])[seen].norm(dim=1)
        shape = (frame[..., 3:].argmax(-1) == check["shape"])[seen].float().mean()
        visible = ((frame[..., 0] > 0.3) == (check["visible"] > 0.3)).float().mean()
        patch = (patches[..., : len(COLOURS) + 1].argmax(-1) == check["patch"]).float().mean()
        return {
            "score": float(shape) - float(error.mean()),
            "place_error": float(error.mean()),
            "place_error_p95": float(error.quantile(0.95)),
            "shape": float(shape),
            "visible": float(visible),
            "patch": float(patch),
        }

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Draw nothing: the figures say it."""
        return {}

    def save(self, folder: Path) -> None:
        """Write the whole model as a checkpoint."""
        self._save(folder)
