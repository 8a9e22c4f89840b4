"""Write masks as the PNGs that the MeViS and Ref-YouTube-VOS servers accept; read true masks, which are indexed PNGs."""

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gmcli.distrust import open_file
from gmcli.masks.rle import MAX_PIXELS

Bits = Literal[1, 8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY = 0


def encode_png(mask: NDArray[np.bool_], bits: Bits = 8) -> bytes:
    """Encode a mask [H, W] bool as a grey PNG of `bits` bits a pixel: 0 and 255, or 0 and 1.

    Both are white on black to a viewer. Readers of 1-bit PNGs differ in whether foreground is True, 1 or 255, so 8 bits
    are what servers and scorers expect. The bytes depend on nothing but the mask and the installed zlib. Raises ValueError
    for another shape or dtype and for an empty axis.

    Source: Portable Network Graphics (PNG) Specification, W3C.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_ or mask.size == 0:
        raise ValueError(f"a mask is [H, W] bool, not {list(mask.shape)} {mask.dtype}")
    height, width = mask.shape
    # Before each row stands its filter, 0: as they are, masks are long runs already.
    rows = np.zeros((height, 1 + (width * bits + 7) // 8), np.uint8)
    if bits == 1:
        rows[:, 1:] = np.packbits(mask, axis=1)
    else:
        np.multiply(mask, 255, out=rows[:, 1:], dtype=np.uint8)
    # Runs are all there is to find: at this level, looking for anything else takes as long and leaves more.
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    data = deflate.compress(rows.data) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, _GREY, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


def read_indices(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.integer[Any]]:
    """Read a PNG of one channel, [H, W]: the palette's indices, or the grey values.

    Raises OSError, and ValueError for several channels, for another size than `size`, for a huge image and for what is
    damaged otherwise.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # By content, not by name: Pillow would hand PostScript to Ghostscript.
            with open_file(path) as file, Image.open(file, formats=("PNG",)) as image:
                # Colours say nothing of objects, and turning them into a palette invents some.
                if image.mode not in ("P", "L", "1", "I;16", "I"):
                    raise ValueError(f"its pixels are {image.mode}, not indices")
                found = image.height, image.width
                if size is not None and found != size:
                    raise ValueError(f"it is {found}, the frame {size} (H, W)")
                if found[0] * found[1] > MAX_PIXELS:
                    raise ValueError(f"{found[0]} x {found[1]} pixels are too many")
                pixels = np.asarray(image)
    except (OSError, ValueError):
        raise
    except Exception as error:  # Pillow's parsers raise whatever their input leads them to
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    return pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels
