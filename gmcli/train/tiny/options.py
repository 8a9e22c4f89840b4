"""Hold the settings of the small model's stages; configs/mora-tiny.yaml explains each."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TowerOptions:
    """Hold what kind `tower` trains on: `batch_size` single frames a step, and how much places count beside names."""

    batch_size: int = 32
    place_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class SamOptions:
    """Hold what kind `sam` trains on: `batch_size` single frames a step, three pairs of each."""

    batch_size: int = 16


@dataclass(frozen=True, slots=True)
class MotionOptions:
    """Hold what kind `motion` trains on.

    A step has `groups` batches of `videos` videos, drawn from `pool` batches at first, and one more every `fresh_every` steps.
    The lessons are read off the states that `lessons_after` layers leave.
    """

    videos: int = 16
    groups: int = 4
    pool: int = 400
    fresh_every: int = 8
    lessons_after: int = 3


@dataclass(frozen=True, slots=True)
class LanguageOptions:
    """Hold what kind `language` trains on.

    A step has one batch of `videos` videos, drawn from `pool` batches at first, and one more every `fresh_every` steps, with at
    most `questions` questions of each video, drawn evenly by type and kind, as far as the videos have them.
    `drills` is the share of the exercises ("When does the red circle move?") that is drawn. The lessons on the visual tokens
    are read off the states that `lessons_after` layers leave. `checks` batches of the validation split are scored.
    """

    videos: int = 16
    questions: int = 8
    pool: int = 900
    fresh_every: int = 2
    lessons_after: int = 3
    drills: float = 0.3
    checks: int = 6


TinyOptions = TowerOptions | SamOptions | MotionOptions | LanguageOptions
