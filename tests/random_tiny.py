"""Where the weights lie that the goldens were made with: random, and SAM at its full 1024 pixels."""

from pathlib import Path

RANDOM_TINY = str(Path(__file__).parent / "data" / "random-tiny")
