"""Turn frames into the inputs of CLIP and SAM, bit-equal to the original's PIL resizing."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Frame = NDArray[np.uint8]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)


def clip_pixels(frames: Iterable[Frame], image_size: int = 224) -> torch.Tensor:
    """Resize the shortest side (bicubic), crop the centre, normalise.

    frames: uint8 RGB [H,W,3] each. Returns float32 [T,3,image_size,image_size] on the CPU.
    Source: transformers 4.31, CLIPImageProcessor.
    """
    out = [_clip_one(frame, image_size) for frame in frames]
    return torch.stack(out) if out else torch.empty(0, 3, image_size, image_size)


def _clip_one(frame: Frame, size: int) -> torch.Tensor:
    h, w = frame.shape[:2]
    short = min(h, w)
    new_h, new_w = (size, int(size * w / short)) if h <= w else (int(size * h / short), size)
    resized = np.asarray(Image.fromarray(frame).resize((new_w, new_h), Image.Resampling.BICUBIC))
    top, left = (new_h - size) // 2, (new_w - size) // 2
    crop = resized[top : top + size, left : left + size]
    scaled = (crop * (1 / 255)).astype(np.float32)
    normalised = (scaled - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))


def resized_size(size: tuple[int, int], image_size: int = 1024) -> tuple[int, int]:
    """Return the (H, W) that a frame of `size` has once its longest side is `image_size`.

    Source: segment_anything/utils/transforms.py, ResizeLongestSide.get_preprocess_shape.
    """
    scale = image_size / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def sam_pixels(frames: Iterable[Frame], image_size: int = 1024) -> torch.Tensor:
    """Resize the longest side (bilinear), normalise, then pad right and bottom with zeros.

    frames: uint8 RGB [H,W,3] each. Returns float32 [T,3,image_size,image_size] on the CPU.
    Source: LISA utils (ResizeLongestSide, preprocess); segment_anything/modeling/sam.py, preprocess.
    """
    mean = torch.tensor(SAM_MEAN).view(3, 1, 1)
    std = torch.tensor(SAM_STD).view(3, 1, 1)
    out = []
    for frame in frames:
        h, w = resized_size(frame.shape[:2], image_size)
        # A frame so long and thin that a side rounds to nothing still has one row.
        h, w = max(h, 1), max(w, 1)
        resized = np.array(Image.fromarray(frame).resize((w, h), Image.Resampling.BILINEAR))
        pixels = (torch.from_numpy(resized).permute(2, 0, 1).float() - mean) / std
        out.append(torch.nn.functional.pad(pixels, (0, image_size - w, 0, image_size - h)))
    return torch.stack(out) if out else torch.empty(0, 3, image_size, image_size)


def sam_batches(frames: Iterator[Frame], count: int, image_size: int) -> Iterator[torch.Tensor]:
    """Yield `sam_pixels` of the frames, so many at a time."""
    while batch := list(islice(frames, count)):
        yield sam_pixels(batch, image_size)
