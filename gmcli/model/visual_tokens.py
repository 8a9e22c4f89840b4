"""Lay out a clip's CLIP features as visual tokens.

Source: Video-ChatGPT (get_spatio_temporal_features), LISA (one frame), paper section 4.1.
"""

import torch

from gmcli.model.config import PADDED_TEMPORAL_TOKENS


def pool(features: torch.Tensor, *, padded: bool = False) -> torch.Tensor:
    """Pool a clip: one temporal token a frame (mean over patches) first, then one spatial token a patch (mean over frames).

    features: [T,N,C]. Returns [T+N,C], or [100+N,C] with zero rows after the T temporal tokens where `padded`.
    Raises ValueError where `padded` and T > 100.
    """
    frames = features.shape[0]
    temporal = features.mean(dim=1)
    spatial = features.mean(dim=0)
    if not padded:
        return torch.cat([temporal, spatial])
    if frames > PADDED_TEMPORAL_TOKENS:
        raise ValueError(f"{frames} frames do not fit {PADDED_TEMPORAL_TOKENS} temporal tokens")
    filler = temporal.new_zeros(PADDED_TEMPORAL_TOKENS - frames, features.shape[2])
    return torch.cat([temporal, filler, spatial])


def with_changes(temporal: torch.Tensor) -> torch.Tensor:
    """Put beside each frame's mean what has changed since the frame before; nothing has for the first one.

    temporal: [..., T, C]. Returns [..., T, 2C].
    """
    before = torch.cat([temporal[..., :1, :], temporal[..., :-1, :]], dim=-2)
    return torch.cat([temporal, temporal - before], dim=-1)
