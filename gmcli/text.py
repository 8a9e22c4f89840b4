"""Make text of strangers fit to be shown and stored: file names, ids and questions come from anybody."""

import json
import re

# Characters that are invisible, end lines or turn the direction of what follows, and halves of surrogate pairs. A fixed
# list, not `str.isprintable`, which changes with Python's Unicode tables: files must not.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """Escape control characters, but leave line ends."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """Escape control characters and line ends: what comes out is one line and cannot pass for two."""
    return printable(text).replace("\n", "\\n")


def shorten(text: str, limit: int = 60) -> str:
    """Return `text`, or its beginning and an ellipsis, in at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clock_face(seconds: float) -> str:
    """Return a time as hours, minutes and seconds: "1:02:03"."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}"


def json_text(value: object, separators: tuple[str, str] | None = None, indent: int | None = None) -> str:
    """Return `value` as JSON that may be shown: letters as they are, what nobody would see as escapes.

    Equal values give equal text, and it can be encoded whatever strings the value holds, as file names that are no UTF-8.
    """
    text = json.dumps(value, ensure_ascii=False, separators=separators, indent=indent)
    # Nearly always, and masks are long. Of ASCII json itself escapes all but one.
    if text.isascii() and "\x7f" not in text:
        return text
    return _UNSEEN.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    # As JSON has it: beyond U+FFFF two halves. In strings json has escaped line ends already; these are between them.
    char = found[0]
    return char if char == "\n" else "\\u007f" if char == "\x7f" else json.dumps(char)[1:-1]
