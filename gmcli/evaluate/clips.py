"""Read what the protocol needs of a clip: its frames' names, and the numbers of the objects in its true masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmcli.data import VideoTask
from gmcli.errors import ConfigError, VideoError
from gmcli.evaluate.protocol import FPS, SAMPLES
from gmcli.masks.png import read_indices
from gmcli.masks.rle import MAX_PIXELS
from gmcli.metrics import Mask
from gmcli.video import OpenVideo, VideoReader, sample_indices
from gmcli.video.frame_folder import natural_key

# Frame rates are whole, or whole by 1001 (29.97). Times in a container are rounded to its clock's ticks.
_LARGEST_DENOMINATOR = 1001


@dataclass(frozen=True, slots=True)
class Clip:
    """Hold what the protocol needs of a clip.

    `names` are those that a run gives to the masks of all frames, in order; `size` is (H, W); `fps` counts frames a
    second; `sampled` are the numbers of the 20 frames. `from_file` tells a video file from a folder of frames.
    """

    video: str
    names: tuple[str, ...]
    size: tuple[int, int]
    fps: float
    sampled: tuple[int, ...]
    from_file: bool


@dataclass(frozen=True, slots=True)
class Objects:
    """Hold the true masks of a clip: `planes`, the object's number of each pixel, [H, W] integers for each sampled frame.

    `numbers` are those of all objects in all frames, ascending, without the background's 0.
    """

    planes: tuple[NDArray[np.integer[Any]], ...]
    numbers: tuple[int, ...]

    def masks(self, numbers: Sequence[int]) -> tuple[Mask, ...]:
        """Draw the union of some objects in each sampled frame, [H, W] bool."""
        return tuple(_union(plane, numbers) for plane in self.planes)


def images_beside(masks: str) -> Path:
    """Name the folder that holds the frames to which the masks of a folder belong: `images`, beside it."""
    return Path(masks).parent / "images"


def read_clip(task: VideoTask, open_video: OpenVideo) -> Clip:
    """Read names, size and frame rate of a task's clip. Raises ConfigError for a clip that cannot be read."""
    from_file = not Path(task.video).is_dir()
    with _open_clip(task.video, open_video) as reader:
        names, size = tuple(reader.names), reader.size
        fps = _file_fps(reader) if from_file else task.fps or FPS
    if size[0] * size[1] > MAX_PIXELS:
        raise ConfigError(f"{task.video}: frames of more than {MAX_PIXELS} pixels")
    return Clip(task.video, names, size, fps, tuple(sample_indices(0, len(names), SAMPLES)), from_file)


def read_objects(folder: Path, clip: Clip, open_video: OpenVideo) -> Objects:
    """Read the indexed PNGs of a clip's true masks; a frame without a PNG has no object in it.

    Raises ConfigError for masks that cannot be read, do not fit the frames, or belong to none of them.
    """
    names = _truth_names(folder, clip, open_video)
    present = {path.stem for path in folder.glob("*.png")}
    if present and present.isdisjoint(names):
        raise ConfigError(f"{folder}: no mask is named after a frame ({min(present)}.png is none of the clip's)")
    wanted = {names[frame] for frame in clip.sampled}
    numbers: set[int] = set()
    planes: dict[str, NDArray[np.integer[Any]]] = {}
    for name in names:
        if name in present:
            path = folder / f"{name}.png"
            try:
                # Of the other frames only the objects' numbers are of interest.
                plane = read_indices(path, clip.size if name in wanted else None)
            except (OSError, ValueError) as error:
                raise ConfigError(f"{path}: cannot be read as a mask ({error})") from None
            numbers |= _numbers(plane)
            if name in wanted:
                planes[name] = plane
    nothing = np.zeros(clip.size, dtype=np.uint8)
    return Objects(
        tuple(planes.get(names[frame], nothing) for frame in clip.sampled),
        tuple(sorted(numbers - {0})),
    )


def _union(plane: NDArray[np.integer[Any]], numbers: Sequence[int]) -> Mask:
    # np.isin takes ten times as long for the one number that there mostly is.
    if len(numbers) == 1:
        return np.asarray(plane == numbers[0])
    union = np.zeros(plane.shape, dtype=np.bool_)
    for number in numbers:
        union |= plane == number
    return union


def _numbers(plane: NDArray[np.integer[Any]]) -> set[int]:
    # Objects are long runs: only where one begins can there be a new number. np.unique alone sorts every pixel.
    pixels = plane.reshape(-1)
    begins = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    return {int(pixels[0]), *np.unique(pixels[begins]).tolist()}


def _truth_names(folder: Path, clip: Clip, open_video: OpenVideo) -> Sequence[str]:
    """Name each frame as the true masks do: as a folder's frames are called, or those of the folder beside the masks.

    A video file's n-th frame is the n-th image of `images`, if there are as many; without that folder, that of the n-th mask,
    if every frame has one. Nothing else tells which is which.
    """
    if not clip.from_file:
        return clip.names
    images = images_beside(str(folder))
    if not images.is_dir():
        stems = sorted((path.stem for path in folder.glob("*.png")), key=natural_key)
        if len(stems) == len(clip.names):
            return stems
        raise ConfigError(
            f"{clip.video}: has {len(clip.names)} frames, but {folder} {len(stems)} masks, and no folder {images}: "
            "which frame a mask belongs to cannot be told"
        )
    with _open_clip(str(images), open_video) as reader:
        names = tuple(reader.names)
    if len(names) != len(clip.names):
        raise ConfigError(
            f"{clip.video}: has {len(clip.names)} frames, but {images} {len(names)}: "
            "which frame a true mask belongs to cannot be told",
            "Run on the folder of frames instead.",
        )
    return names


def _open_clip(path: str, open_video: OpenVideo) -> VideoReader:
    try:
        return open_video(path)
    except VideoError as error:
        raise ConfigError(error.message, error.hint) from None


def _file_fps(reader: VideoReader) -> float:
    """Find a file's mean frame rate."""
    if len(reader.times) < 2 or not reader.times[-1] > 0:
        return FPS
    rate = (len(reader.times) - 1) / float(reader.times[-1])
    return float(Fraction(rate).limit_denominator(_LARGEST_DENOMINATOR))
