"""Set the words of strangers in PIL's own font: wrapped, shortened, escaped."""

from bisect import bisect_right
from functools import lru_cache
from unicodedata import combining, normalize

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gmcli.render.paint import MASK_COLOUR, TRUTH_COLOUR, Colour, Picture
from gmcli.text import printable, shorten

BACKGROUND: Colour = (24, 26, 30)
WHITE: Colour = (240, 240, 240)
DIM: Colour = (150, 154, 160)

QUESTION_LINES = 4
ANSWER_LINES = 3

# More than the lines above hold at any size; it bounds what wrapping costs.
_MAX_CHARS = 600
# What Pillow's font has besides ASCII, and how letters are written that cannot be taken apart.
_BEYOND_ASCII = "©«°±´·»‘’“”…‹›⁄™"
_SPELLED = {"–": "-", "—": "-", "−": "-", "ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L"}
# Parts of the size of the letters.
_LEADING = 1.3
_PADDING = 0.7


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that comes with Pillow, `size` pixels high."""
    # Without FreeType Pillow has a bitmap font of one size, which it gives out for any.
    loaded = ImageFont.load_default(size=size)
    if not isinstance(loaded, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType")
    return loaded


def one_line(text: str) -> str:
    """Make text fit to be drawn: no line ends, no control characters, not endless."""
    clean = printable(" ".join(shorten(text, _MAX_CHARS).split()))
    # Escapes are longer than what they stand for.
    return shorten("".join(map(_spell, clean)), _MAX_CHARS)


def _spell(letter: str) -> str:
    """Write a letter that Pillow's font lacks with those it has: é as e. It shows a box for one that has no such form."""
    if letter.isascii() or letter in _BEYOND_ASCII:
        return letter
    if letter in _SPELLED:
        return _SPELLED[letter]
    base = "".join(part for part in normalize("NFKD", letter) if not combining(part))
    return base if base.isascii() else letter


def wrap(text: str, size: int, width: float, lines: int) -> list[str]:
    """Break one line of text into at most `lines` lines of at most `width` pixels; what is left out leaves an ellipsis.

    Lines end between words; a word that is wider than a line is broken anywhere.
    """
    letters = font(size)
    found = [""]
    for word in text.split(" "):
        if len(found) > lines:
            break
        joined = f"{found[-1]} {word}" if found[-1] else word
        if letters.getlength(joined) <= width:
            found[-1] = joined
            continue
        found += [word] if found[-1] else []
        found[-1] = word
        while letters.getlength(found[-1]) > width and len(found[-1]) > 1:
            cut = _cut(found[-1], size, width)
            found[-1:] = [found[-1][:cut], found[-1][cut:]]
    if len(found) > lines:
        last = found[lines - 1]
        while last and letters.getlength(last + "…") > width:
            last = last[:-1]
        found[lines - 1 :] = [last.rstrip() + "…"]
    return found


def _cut(word: str, size: int, width: float) -> int:
    """Count the letters of a word that fit into `width` pixels, at least one."""
    letters = font(size)
    return max(1, bisect_right(range(1, len(word)), width, key=lambda count: letters.getlength(word[:count])))


def caption(width: int, question: str, answer: str, *, truth: str = "", size: int = 16) -> Picture:
    """Draw a band of `width` pixels with a question and, below it, its answer and the true one: [H, width, 3] uint8.

    H is even. Any text will do: it is escaped, wrapped, and shortened to a few lines; an empty one takes no line.
    """
    margin = round(_PADDING * size)
    inner = width - 2 * margin
    parts = (
        (question, WHITE, QUESTION_LINES),
        (answer, MASK_COLOUR, ANSWER_LINES),
        (truth, TRUTH_COLOUR, ANSWER_LINES),
    )
    rows = [(line, ink) for text, ink, most in parts for line in wrap(one_line(text), size, inner, most) if line]
    step = round(_LEADING * size)
    height = 2 * margin + step * len(rows)
    band = Image.new("RGB", (width, height + height % 2), BACKGROUND)
    draw = ImageDraw.Draw(band)
    for number, (line, ink) in enumerate(rows):
        draw.text((margin, margin + number * step), line, font=font(size), fill=ink)
    return np.asarray(band)
