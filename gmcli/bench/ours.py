"""Run gmcli on a bench's video, with every window forced to the whole clip, as the published schedule has none."""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from gmcli.bench.stopwatch import wait_for
from gmcli.checkpoints.load import Checkpoint
from gmcli.config import RunConfig
from gmcli.data import Rle, VideoTask
from gmcli.engines import prepare_engines
from gmcli.errors import GmcliError
from gmcli.masks.rle import decode_rle
from gmcli.segmenter import Segmenter


@dataclass(frozen=True, slots=True)
class Ours:
    """Hold what gmcli found, and what it cost: seconds in all, wall seconds by stage, counts of calls.

    `cpu_s` are seconds of the whole process on all cores.
    """

    answers: tuple[str, ...]
    rles: tuple[dict[int, Rle], ...]
    cpu_s: float
    wall_s: float
    stages: Mapping[str, float]
    counts: Mapping[str, int]

    def masks(self) -> tuple[dict[int, NDArray[np.bool_]], ...]:
        """Decode each question's masks [H,W] by their frames' numbers. Only who compares them wants them in memory."""
        return tuple({number: decode_rle(rle) for number, rle in frames.items()} for frames in self.rles)

    def cpu_by_stage(self) -> dict[str, float]:
        """Share the CPU seconds out by the stages' wall seconds; `other` is what no stage claims.

        Exact on one thread; on several, a stage that uses fewer cores than the others looks dearer than it is.
        """
        stages = dict(self.stages) | {"other": max(self.wall_s - sum(self.stages.values()), 0.0)}
        total = sum(stages.values())
        return {name: self.cpu_s * wall / total for name, wall in stages.items()}


def without_localizer(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint over the same modules, but deaf to [LOC]: every frame is inside the window."""
    model = copy.copy(checkpoint.model)
    model.config = replace(model.config, localizer_bins=0)
    return replace(checkpoint, model=model)


def build_segmenter(checkpoint: Checkpoint, config: RunConfig, device: torch.device) -> Segmenter:
    """Prepare the model's parts as `gmcli infer` does; see prepare_engines for what it raises."""
    engines = prepare_engines(checkpoint, config.backend, questions=config.questions_per_batch)
    return Segmenter(checkpoint, config, device, engines)


def run_ours(segmenter: Segmenter, task: VideoTask) -> Ours:
    """Answer a video's questions with masks. Raises GmcliError where one of them fails: then there is nothing to compare."""
    wait_for(segmenter.device)
    cpu, wall = time.process_time(), time.perf_counter()
    found = segmenter.segment(task)
    wait_for(segmenter.device)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    for result in found.results:
        if result.status == "failed":
            raise GmcliError(f"{result.question_id} failed: {result.error}")
    work = found.work
    return Ours(
        answers=tuple(result.answer or "" for result in found.results),
        rles=tuple(dict(zip(result.frames, result.masks, strict=True)) for result in found.results),
        cpu_s=cpu,
        wall_s=wall,
        stages=dict(work.seconds),
        counts=work.counts(),
    )
