"""Add up seconds by stage, and how often each thing was done."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class Stopwatch:
    """Hold seconds by stage, of the whole process on all cores (`cpu`) and by the clock (`wall`), and counts of calls."""

    device: torch.device
    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what is done inside to a stage. A GPU is waited for before and after."""
        wait_for(self.device)
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        wait_for(self.device)
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what was asked of it; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
