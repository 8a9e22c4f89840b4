"""Draw what is true over time above what was found, as strips: a stage's pictures for TensorBoard."""

import numpy as np
import torch
from numpy.typing import NDArray

_CELL = 8


def strips(true: torch.Tensor, found: torch.Tensor) -> NDArray[np.uint8]:
    """Draw N pairs of strips, the true one bright green, the found one white, with a dark line under each pair.

    true, found: [N,K], 0..1. Returns uint8 RGB [N * 3 * cell, K * cell, 3].
    """
    shares = torch.stack([true, found, torch.zeros_like(true)], dim=1).clamp(0, 1).numpy()
    colours = np.array([(90, 220, 110), (255, 255, 255), (0, 0, 0)])
    rows = (shares[..., None] * colours[None, :, None]).round().astype(np.uint8).reshape(-1, true.shape[1], 3)
    drawn: NDArray[np.uint8] = rows.repeat(_CELL, axis=0).repeat(_CELL, axis=1)
    return drawn
