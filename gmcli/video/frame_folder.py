"""Read videos that are stored as a folder of images, one a frame."""

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from gmcli.errors import VideoError
from gmcli.video.checks import check_count, check_indices, check_names, check_pixels, check_times
from gmcli.video.limits import DEFAULT_LIMITS, DecodeLimits, do_nothing

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


class FrameFolderReader:
    """Read a folder of images as a video of `fps` frames a second.

    Frames are the files ending in .jpg, .jpeg, .png, .bmp or .webp (in any case), in natural order: frame_2 before
    frame_10. Hidden files, other files and subfolders are ignored. `names` are the files' stems. All images must have
    one size, which is checked on opening by reading their headers. Any mode is converted to RGB; alpha is dropped, 16
    bits become the upper 8. An EXIF orientation is ignored: masks lie over the pixels as stored, and the datasets' own
    loaders read them so. `watch` is called for every header. Raises VideoError, also for what is beyond `limits`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float,
        limits: DecodeLimits = DEFAULT_LIMITS,
        watch: Callable[[], None] = do_nothing,
    ) -> None:
        self.path = str(path)
        if not 0 < fps < math.inf:
            raise VideoError(f"{self.path}: {fps} is not a frame rate", "set fps to a positive number")
        self._files = _list_images(self.path)
        check_count(self.path, len(self._files), limits)
        self.names: Sequence[str] = [file.stem for file in self._files]
        check_names(self.path, self.names)
        self.times: NDArray[np.float64] = np.arange(len(self._files)) / fps
        check_times(self.path, self.times, limits)
        self.size = _common_size(self._files, limits, watch)

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames with these numbers, one at a time, each [H,W,3] uint8 RGB in memory of its own.

        `indices` must ascend strictly, else ValueError. Raises VideoError for a frame that is not there or is damaged.
        """
        check_indices(self.path, indices, len(self._files))
        return (_decode(self._files[index]) for index in indices)

    def close(self) -> None:
        """Do nothing: no file stays open between two frames."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def natural_key(name: str) -> tuple[tuple[int | str, ...], str]:
    """Return a sort key that compares runs of digits as numbers, and falls back on the name itself for "1" and "01"."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(int(part) if part.isdecimal() and part.isascii() else part for part in parts), name


def _list_images(path: str) -> list[Path]:
    try:
        names = [
            entry.name
            for entry in Path(path).iterdir()
            if entry.suffix.lower() in EXTENSIONS and not entry.name.startswith(".") and entry.is_file()
        ]
    except OSError as error:
        raise VideoError(f"{path}: cannot be listed ({error.strerror})") from error
    if not names:
        raise VideoError(f"{path}: a folder without images", f"frames are files ending in {', '.join(EXTENSIONS)}")
    files = [Path(path, name) for name in sorted(names, key=natural_key)]
    seen: dict[str, Path] = {}
    for file in files:
        if file.stem in seen:
            raise VideoError(f"{file}: same frame name as {seen[file.stem].name}", "keep one of the two")
        seen[file.stem] = file
    return files


def _common_size(files: Sequence[Path], limits: DecodeLimits, watch: Callable[[], None]) -> tuple[int, int]:
    """Return the (H, W) of all the images, read from their headers."""
    first: tuple[int, int] | None = None
    for file in files:
        watch()
        with _open(file) as image:
            size = (image.height, image.width)
        check_pixels(str(file), *size, limits)
        first = first or size
        if size != first:
            raise VideoError(
                f"{file}: is {size[1]}x{size[0]}, the frames before it are {first[1]}x{first[0]}",
                "all frames of a folder must have one size",
            )
    if first is None:
        raise ValueError("no files")
    return first


def _open(file: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # By content: among the formats that Pillow finds out itself is PostScript, which it hands to Ghostscript.
            return Image.open(file, formats=_FORMATS)
    except Exception as error:  # PIL's parsers raise whatever their input leads them to
        raise _unreadable(file, error) from error


def _decode(file: Path) -> NDArray[np.uint8]:
    with _open(file) as image:
        try:
            return _to_rgb(image)
        except Exception as error:  # as above
            raise _unreadable(file, error) from error


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits; PIL would clip them at 255
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P":  # straight to RGB, PIL warns about transparent palette entries
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _unreadable(file: Path, error: Exception) -> VideoError:
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
    return VideoError(f"{file}: the image cannot be read ({reason})")
