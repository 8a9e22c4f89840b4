"""Answer questions about motion in videos with masks, in batch."""

__version__ = "0.1.0"
