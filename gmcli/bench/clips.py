"""Draw a video of any length and size, and hold questions to ask about it."""

import os
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from gmcli.data import Question, VideoTask
from gmcli.files import TEMPORARY
from gmcli.synth.questions import wordings
from gmcli.synth.scene import COLOURS, SHAPES

FPS = 6
# All wordings with one shape first, then with the next: as many questions as anyone asks, and no two alike.
QUESTIONS = tuple(
    dict.fromkeys(
        text.format(f"the {colour} {shape}") for colour, shape in product(COLOURS, SHAPES) for text in wordings()
    )
)

# One thread and no look-ahead: equal frames give equal bytes.
_H264 = {"preset": "veryfast", "crf": "20", "x264-params": "threads=1:lookahead-threads=1:sync-lookahead=0"}
_RADIUS = 0.09  # of the frame's height


def make_task(folder: Path, *, frames: int, questions: int, size: tuple[int, int], seed: int = 0) -> VideoTask:
    """Return a task with so many questions about a video of so many frames; the video is drawn unless `folder` has it.

    size: (H, W), even. Equal arguments give equal frames. Raises ValueError for more questions than there are.
    """
    if questions > len(QUESTIONS):
        raise ValueError(f"there are {len(QUESTIONS)} questions, not {questions}")
    name = f"shapes-{size[0]}x{size[1]}-{frames}-{seed}"
    path = folder / f"{name}.mp4"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{name}{TEMPORARY}{os.getpid()}.mp4"
        _write(unfinished, frames, size, seed)
        unfinished.replace(path)
    asked = tuple(Question(f"q{i}", text) for i, text in enumerate(QUESTIONS[:questions]))
    return VideoTask(name, str(path), asked, size_bytes=path.stat().st_size)


def _write(path: Path, frames: int, size: tuple[int, int], seed: int) -> None:
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options=_H264)
        video.height, video.width = size
        video.pix_fmt = "yuv420p"
        video.time_base = Fraction(1, FPS)
        scene = _Scene(size, seed)
        for number in range(frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(scene.draw(number), format="rgb24")))
        container.mux(video.encode())


class _Scene:
    """Hold a graded backdrop with noise, and discs and squares that run from edge to edge and back."""

    def __init__(self, size: tuple[int, int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        height, width = size
        self.size = size
        ramp = np.linspace(40, 140, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
        self.backdrop = (ramp + rng.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8)
        self.colours = rng.integers(0, 256, (4, 3), np.uint8)
        self.starts = rng.uniform(0, 1, (4, 2))
        self.speeds = rng.uniform(-0.03, 0.03, (4, 2))

    def draw(self, number: int) -> NDArray[np.uint8]:
        """Draw one frame, [H,W,3] uint8 RGB."""
        height, width = self.size
        frame = self.backdrop.copy()
        radius = max(int(_RADIUS * height), 2)
        grid = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        disc = (grid**2).sum(axis=0) <= radius**2
        for k, (start, speed) in enumerate(zip(self.starts, self.speeds, strict=True)):
            share = 1 - abs(1 - (start + speed * number) % 2)  # there and back
            y, x = (share * (height - 2 * radius - 1, width - 2 * radius - 1)).astype(int)
            part = frame[y : y + 2 * radius + 1, x : x + 2 * radius + 1]
            part[disc if k % 2 else np.ones_like(disc)] = self.colours[k]
        return frame
