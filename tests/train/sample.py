"""Make a small world to train on: moving squares with true masks, a manifest, the small model."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.clips import picture

SIZE = (48, 80)
FPS = 6


def write_dataset(folder: Path, videos: int = 2, frames: int = 12, window: tuple[float, float] = (0.5, 1.5)) -> Path:
    """Write frame folders with palette masks of object 3, and a manifest of two questions a video."""
    lines = ["version: 1", "videos:"]
    for video in range(videos):
        images, masks = folder / f"v{video}" / "images", folder / f"v{video}" / "masks"
        images.mkdir(parents=True)
        masks.mkdir()
        for number in range(frames):
            Image.fromarray(picture(number, video)).save(images / f"f{number:03}.png")
            indices = np.zeros(SIZE, np.uint8)
            left = (4 + 3 * number) % (SIZE[1] - 16)
            indices[16:32, left : left + 16] = 3
            indices[:4, :4] = 1  # another object
            mask = Image.frombytes("P", SIZE[::-1], indices.tobytes())
            mask.putpalette([0, 0, 0] * 256)
            mask.save(masks / f"f{number:03}.png")
        lines += [f"  - id: v{video}", f"    path: v{video}/images", f"    fps: {FPS}", "    questions:"]
        truth = f"{{masks: v{video}/masks, object_ids: [3], start: {window[0]}, end: {window[1]}}}"
        for n, text in enumerate(("Who moves to the right?", "What is the bright square?")):
            lines += [f"      - id: q{n}", f"        text: {text}", f"        ground_truth: {truth}"]
    manifest = folder / "manifest.yaml"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest
