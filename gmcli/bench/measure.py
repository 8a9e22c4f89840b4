"""Do a whole bench: make what is measured, warm up, measure, compare. What comes out is JSON values."""

import gc
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gmcli.bench import compare, light
from gmcli.bench.clips import FPS, make_task
from gmcli.bench.machine import describe
from gmcli.bench.models import check_answer, write_random_checkpoint
from gmcli.bench.options import ANSWERS, Options
from gmcli.bench.ours import Ours, build_segmenter, run_ours, without_localizer
from gmcli.bench.published import Published, run_published
from gmcli.bench.scaling import Subject, scale
from gmcli.bench.stopwatch import Stopwatch
from gmcli.checkpoints.load import DTYPES, Checkpoint, load_checkpoint
from gmcli.config import RunConfig, load_config
from gmcli.data import VideoTask
from gmcli.errors import GmcliError
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.resources import cache_dir
from gmcli.segmenter import Segmenter

Say = Callable[[str], None]


def run_bench(options: Options, say: Say) -> dict[str, Any]:
    """Measure what `options` ask for. say: gets a line for each step.

    Raises GmcliError for a random model whose masks are all empty: they would agree with anything.
    """
    load = os.getloadavg()[0]
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    config = load_config(None, options.run_settings())
    taught = ANSWERS[options.answer]
    cache = cache_dir() / "bench"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="model-", dir=cache) as work:
        ref = options.checkpoint
        if ref is None:
            say(f"drawing random weights: {options.size}")
            ref = str(Path(work) / options.size)
            write_random_checkpoint(options.size, Path(ref), taught, dtype=options.dtype, device=device)
        start = time.perf_counter()
        checkpoint = load_checkpoint(ref, device=device, dtype=options.dtype, attention=config.attention)
        load_s = time.perf_counter() - start
        if options.checkpoint is None:
            say("checking that it answers as taught")
            check_answer(checkpoint, taught, device)
        task = make_task(
            cache / "clips",
            frames=max(options.frames, 10 * FPS),
            questions=options.questions,
            size=options.frame_size,
        )
        report = _measure(options, config, checkpoint, task, device, say)
        # Neighbours cost time: how many processes ran before the bench did.
        report["machine"]["load_before"] = load
        report["seconds"]["load_s"] = load_s
        subject = Subject(ref, options, cache / "clips")
        # The child processes shall have the memory for themselves.
        del checkpoint
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        report["scaling"] = {name: scale(subject, name, points, say) for name, points in options.scaling.items()}
    return report


def _measure(
    options: Options, config: RunConfig, checkpoint: Checkpoint, task: VideoTask, device: torch.device, say: Say
) -> dict[str, Any]:
    start = time.perf_counter()
    segmenter = build_segmenter(without_localizer(checkpoint), config, device)
    build_s = time.perf_counter() - start
    layout = segmenter.layout
    say("warming up on one question and one frame")
    tiny = replace(task, questions=task.questions[:1])
    short = replace(config, frames=1)
    run_ours(_fresh(segmenter, short), tiny)
    published: list[tuple[Published, Stopwatch]] = []
    if options.against_published:
        run_published(checkpoint, tiny, replace(short, max_new_tokens=1), layout, Stopwatch(device))
        for number in range(options.repeat):
            say(f"published schedule, {number + 1} of {options.repeat}")
            clock = Stopwatch(device)
            published.append((run_published(checkpoint, task, config, layout, clock), clock))
    ours: list[Ours] = []
    for number in range(options.repeat):
        say(f"gmcli, {number + 1} of {options.repeat}")
        ours.append(run_ours(_fresh(segmenter, config), task))
    say("measuring the peak of matrix products")
    peak = light.measure_peak(device, DTYPES[options.dtype])
    shown = compare.foreground(ours[0].masks())
    if options.checkpoint is None and shown["empty"] + shown["full"] == shown["masks"]:
        raise GmcliError("the random model's masks are all empty or full: they would agree with anything")
    if options.checkpoint is None and set(ours[0].answers) != {ANSWERS[options.answer]}:
        raise GmcliError(f"the random model answered {ours[0].answers}, not {ANSWERS[options.answer]!r}")
    clocks = [clock for _, clock in published]
    best = min(ours, key=lambda run: run.cpu_s)
    work = light.count_work(checkpoint.model.config, _workload(checkpoint, task, layout, config.frames, ours[0]))
    spent = best.cpu_by_stage() if device.type == "cpu" else dict(best.stages)
    return {
        "ratio_cpu_seconds": None,
        "ratio_wall_seconds": None,
        "stages": {
            name: {"ours_cpu_s": cpu, "share": cpu / best.cpu_s, "ours_wall_s": best.stages.get(name, 0.0)}
            for name, cpu in best.cpu_by_stage().items()
        },
        "mask_iou": None,
        "answers_equal": None,
        **(compare.side_by_side(clocks, ours) if published else {}),
        **(compare.agreement(published[0][0], ours[0]) if published else {}),
        "seconds": {**compare.repeats(clocks, ours), "build_s": build_s},
        "foreground_share": shown["share"],
        "foreground": shown,
        "answers": list(ours[0].answers),
        "counts": {"ours": dict(ours[0].counts), "published": dict(clocks[0].counts) if clocks else None},
        "speed_of_light": {
            "stages": light.speed_of_light(work, spent, peak),
            "seconds_are": "CPU seconds" if device.type == "cpu" else "wall seconds",
            "gflop": work,
        },
        "localizer": _localizer(checkpoint, config, task, best, device, say),
        "machine": describe(device, peak),
        "settings": _settings(options, config, checkpoint, task, layout),
    }


def _fresh(segmenter: Segmenter, config: RunConfig) -> Segmenter:
    """Return a segmenter over the same prepared parts that has not learnt any answers yet."""
    return Segmenter(segmenter.checkpoint, config, segmenter.device, segmenter.engines)


def _workload(checkpoint: Checkpoint, task: VideoTask, layout: Any, frames: int, ours: Ours) -> light.Workload:
    """Size the work from what was asked and answered. An answer's tokens are those that its text has, and </s>."""
    tokenizer, config = checkpoint.tokenizer, checkpoint.model.config
    prompts = [tokenize_prompt(build_prompt(q.text, config), tokenizer) for q in task.questions]
    return light.Workload(
        layout=layout,
        clips=frames if layout == "frame" else 1,
        clip_frames=1 if layout == "frame" else frames,
        before=len(prompts[0][0]),
        after=[len(after) for _, after in prompts],
        answers=[len(tokenizer.encode(answer)) for answer in ours.answers],  # <s> stands in for </s>
    )


def _localizer(
    checkpoint: Checkpoint, config: RunConfig, task: VideoTask, whole: Ours, device: torch.device, say: Say
) -> dict[str, Any] | None:
    """Measure what [LOC] saves: frames outside of every question's window are neither encoded nor decoded."""
    if not checkpoint.model.config.localizer_bins:
        return None
    say("gmcli with [LOC]")
    windowed = run_ours(build_segmenter(checkpoint, config, device), task)
    return {
        "cpu_s": {"whole": whole.cpu_s, "windowed": windowed.cpu_s},
        "ratio_cpu_seconds": whole.cpu_s / windowed.cpu_s,
        "counts": {"whole": dict(whole.counts), "windowed": dict(windowed.counts)},
    }


def _settings(
    options: Options, config: RunConfig, checkpoint: Checkpoint, task: VideoTask, layout: str
) -> dict[str, Any]:
    model = checkpoint.model.config
    return {
        "model": options.checkpoint or f"random weights, {options.size}",
        "taught_answer": options.answer if options.checkpoint is None else None,
        "parameters": sum(p.numel() for p in checkpoint.model.parameters()),
        "sam": {"embed_dim": model.sam.embed_dim, "depth": model.sam.depth, "image_size": model.sam.image_size},
        "clip": {"hidden_size": model.clip.hidden_size, "layers": model.clip.num_hidden_layers},
        "llm": {"hidden_size": model.llm.hidden_size, "layers": model.llm.num_hidden_layers},
        "questions": len(task.questions),
        "frames": options.frames,
        "frame_size": list(options.frame_size),
        "visual_tokens": layout,
        "against": "published" if options.against_published else None,
        "device": options.device,
        "dtype": options.dtype,
        "repeat": options.repeat,
        "state": "warm: both sides ran once on one question and one frame before",
        "ours_cpu_s_by_stage": "the CPU seconds of the whole, shared out by the stages' wall seconds",
        "run": config.to_json(),
    }
