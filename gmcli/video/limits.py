"""Say how much one video may ask of us: pixels, frames, seconds of video, memory, CPU time, waiting."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Hold the caps on one video and its decoder; each is a setting of `gmcli infer` under the same name.

    `max_pixels` of a frame (8K video has half of the default), `max_frames` and `max_duration_s` of a video. The other
    three hold in a sandbox only: `decode_memory_mb` of address space, `decode_cpu_s` of CPU time, and `decode_timeout_s`,
    the longest silence while a video is opened or a frame is waited for.
    """

    max_pixels: int = 8192 * 8192
    max_frames: int = 500_000
    max_duration_s: int = 6 * 3600
    decode_memory_mb: int = 4096
    decode_cpu_s: int = 6 * 3600
    decode_timeout_s: float = 300


DEFAULT_LIMITS = DecodeLimits()


def limits_from(settings: Mapping[str, Any]) -> DecodeLimits:
    """Take the limits from settings by name; what is missing there, or is no number, has its default."""
    known = {name: value for name, value in settings.items() if name in DecodeLimits.__slots__}
    return DecodeLimits(**{name: value for name, value in known.items() if type(value) is int and value > 0})


def do_nothing() -> None:
    """Watch nobody: what readers call while they work, where no watchdog waits."""
