"""Make short clips for tests: a bright square that moves over noise."""

from pathlib import Path

import av
import numpy as np
from PIL import Image


def picture(number: int, seed: int, size: tuple[int, int] = (48, 80)) -> np.ndarray:
    noise = np.random.RandomState(seed).randint(0, 60, (*size, 3), np.uint8)
    left = (4 + 3 * number) % (size[1] - 16)
    noise[16:32, left : left + 16] = (220, 60 + 10 * seed, 40)
    return noise


def write_clip(path: Path, frames: int, seed: int, fps: int = 10, size: tuple[int, int] = (48, 80)) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture(number, seed, size), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_frame_folder(path: Path, frames: int, seed: int = 5) -> None:
    path.mkdir()
    for number in range(frames):
        Image.fromarray(picture(number, seed)).save(path / f"frame_{number:06}.jpg")
