"""Draw masks, question, answer and window onto videos. No torch."""

from gmcli.render.paint import outline, overlay
from gmcli.render.words import caption

__all__ = ["caption", "outline", "overlay"]
