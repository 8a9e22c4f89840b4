"""Write masks as the PNGs that the MeViS and Ref-YouTube-VOS servers accept; read true masks, which are indexed PNGs."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encode_png(mask: NDArray[np.bool_]) -> bytes:
    """Encode a mask [H, W] bool as an 8-bit grey PNG, 0 and 255.

    The bytes depend on nothing but the mask and the installed Pillow. Raises ValueError for another shape or dtype and
    for an empty axis.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_ or mask.size == 0:
        raise ValueError(f"a mask is [H, W] bool, not {list(mask.shape)} {mask.dtype}")
    # 8 bits, not 1: readers of 1-bit PNGs differ in whether foreground is 1 or 255.
    image = Image.fromarray(np.multiply(mask, 255, dtype=np.uint8))
    buffer = io.BytesIO()
    # Masks are long runs: level 1 is many times faster than the default and a little larger.
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def read_indices(path: Path) -> NDArray[np.integer[Any]]:
    """Read a PNG of one channel, [H, W]: the palette's indices, or the grey values.

    Raises OSError, and ValueError for several channels and for a huge image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                # Colours say nothing of objects, and turning them into a palette invents some.
                if image.mode not in ("P", "L", "1", "I;16", "I"):
                    raise ValueError(f"its pixels are {image.mode}, not indices")
                pixels = np.asarray(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(str(error)) from None
    return pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels
