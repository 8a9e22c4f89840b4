"""Make text of strangers fit to be shown: file names, ids and questions come from anybody."""


def printable(text: str) -> str:
    """Escape control characters, but leave line ends."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def shorten(text: str, limit: int = 60) -> str:
    """Return `text`, or its beginning and an ellipsis, in at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
