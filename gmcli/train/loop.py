"""Train a stage, resumably to the step: the one loop for all that is trained.

Everything random is a function of (seed, step): a micro-batch of its index, dropout of the step. So a run that was killed
goes on as an undisturbed one would have: same batches, same losses, same weights (exactly so on a CPU).
"""

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from gmcli.errors import ConfigError, GmcliError
from gmcli.files import make_directories
from gmcli.progress import INTERVAL_S
from gmcli.train.config import StageSettings
from gmcli.train.optimizer import build_optimizers, learning_rate
from gmcli.train.stage import Stage
from gmcli.train.state import (
    BEST,
    FINAL,
    LAST,
    LOSSES,
    SCORES,
    TENSORBOARD,
    Progress,
    keep_lines,
    load_last,
    read_progress,
    replace_folder,
    save_last,
)

log = logging.getLogger("gmcli.train")


def train_stage(stage: Stage, settings: StageSettings, out: Path, *, seed: int) -> None:
    """Train `stage` into the folder `out`, from where an earlier run of the same settings left it.

    Writes losses.jsonl (a line an optimizer step), scores.jsonl (one a validation), tensorboard/, best/ (the checkpoint
    with the best score), last/ (what to resume from) and, behind the last step, final/ (a checkpoint, too). A finished stage
    is left as it is.
    SIGINT and SIGTERM end it after the step at hand, saved; then KeyboardInterrupt is raised.
    Raises ConfigError where `out` belongs to other settings or a loss is not finite.
    """
    progress = read_progress(out, settings, seed)
    if progress.step >= settings.steps:
        log.info("%s: finished before (%d steps)", stage.name, progress.step)
        return
    make_directories(out)
    with _Trainer(stage, settings, out, seed, progress) as trainer, _signals() as stopped:
        trainer.run(stopped)


class _Trainer:
    """Hold what one run of a stage needs open: accelerator, optimizer, logs."""

    def __init__(self, stage: Stage, settings: StageSettings, out: Path, seed: int, progress: Progress) -> None:
        self.stage, self.settings, self.out, self.seed, self.progress = stage, settings, out, seed, progress
        # Both are singletons that remember the stage before.
        AcceleratorState._reset_state()
        GradientState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision="bf16" if settings.precision == "bf16" else "no",
            gradient_accumulation_steps=settings.accumulation,
            # A step's answers may all lack [LOC], and then its head gets no gradient.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        optimizers = build_optimizers(stage.module, settings)
        if progress.step:
            for optimizer, state in zip(optimizers, load_last(out, stage.module), strict=True):
                optimizer.load_state_dict(state)
        self.module, *self.optimizers = self.accelerator.prepare(stage.module, *optimizers)
        self.main = self.accelerator.is_main_process
        if self.main:
            for name in (LOSSES, SCORES):
                keep_lines(out, name, progress.step)
        self._files: dict[str, TextIO] = {}
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> "_Trainer":
        if self.main:
            self._files = {name: (self.out / name).open("a", encoding="utf-8") for name in (LOSSES, SCORES)}
            self._writer = SummaryWriter(str(self.out / TENSORBOARD), purge_step=self.progress.step + 1)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        if self._writer is not None:
            self._writer.close()

    def run(self, stopped: Callable[[], bool]) -> None:
        """Do the steps that are left."""
        settings, first = self.settings, self.progress.step
        if first and first % settings.validate_every == 0 and self.progress.validated < first:
            self._validate()  # the run before was stopped in front of it
        with self._batches(first) as batches, _Bar(self.stage.name, first, settings.steps, drawn=self.main) as bar:
            for step in range(first, settings.steps):
                figures = self._step(step, batches)
                done = step + 1
                self.progress = replace(self.progress, step=done)
                self._log(done, figures)
                bar.update(figures["loss"])
                last = done == settings.steps
                stop = self._agreed(stopped()) and not last
                # Who presses Ctrl-C waits for the save only; the next run validates.
                if last or (done % settings.validate_every == 0 and not stop):
                    self._validate()
                if last and self.main:
                    replace_folder(self.out, FINAL, self.stage.save)
                if last or stop or done % settings.save_every == 0:
                    self._save()
                if stop:
                    raise KeyboardInterrupt

    @contextmanager
    def _batches(self, first: int) -> Iterator[Iterator[Any]]:
        """Give this process's micro-batches from optimizer step `first` on, prefetched by loader processes."""
        world, rank, each = self.accelerator.num_processes, self.accelerator.process_index, self.settings.accumulation
        indices = range(first * each * world + rank, self.settings.steps * each * world, world)
        workers = min(self.settings.loader_workers, len(os.sched_getaffinity(0)))
        loader: DataLoader[Any] = DataLoader(
            _Batches(self.stage.batch),
            batch_size=None,
            sampler=indices,
            num_workers=workers,
            # A forked child would inherit the threads' locks, and CUDA.
            multiprocessing_context="spawn" if workers else None,
            worker_init_fn=_ignore_signals if workers else None,
        )
        batches = iter(loader)
        try:
            yield batches
        finally:
            if workers:
                # Loader processes heed no signal and so must be told to end; left to itself the iterator would do it
                # when it is freed, and the trace of an error keeps it.
                batches._shutdown_workers()  # type: ignore[attr-defined]

    def _step(self, step: int, batches: Iterator[Any]) -> dict[str, float]:
        """Do one optimizer step; return the means of its micro-batches' figures."""
        accelerator, settings = self.accelerator, self.settings
        torch.manual_seed(_step_seed(self.seed, step, accelerator.process_index))
        rate = learning_rate(step, settings)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
        self.module.train()
        sums: dict[str, torch.Tensor] = {}
        for _ in range(settings.accumulation):
            made = next(batches)
            if isinstance(made, GmcliError):
                raise made
            batch = send_to_device(made, accelerator.device)
            with accelerator.accumulate(self.module):
                losses = self.module(batch)
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self._trained(), settings.clip_grad)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float()
        means = {name: value / settings.accumulation for name, value in sums.items()}
        if accelerator.num_processes > 1:
            means = accelerator.reduce(means, "mean")
        figures = {name: float(value) for name, value in means.items()}
        if not np.isfinite(figures["loss"]):
            raise ConfigError(f"{self.stage.name}: the loss of step {step + 1} is {figures['loss']}", "Lower lr.")
        return figures | {"grad_norm": float(norm), "lr": rate}

    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for p in self.module.parameters() if p.requires_grad]

    def _validate(self) -> None:
        """Score the module and show its pictures; keep it where it is the best so far."""
        done, best = self.progress.step, self.progress.best
        if self.main:
            with torch.no_grad():
                scores = self.stage.validate()
                pictures = self.stage.pictures()
            _append(self._files[SCORES], {"step": done, **scores})
            log.info("%s: step %d: %s", self.stage.name, done, _shown(scores))
            if self._writer is not None:
                for name, value in scores.items():
                    self._writer.add_scalar(f"validation/{name}", value, done)
                for name, picture in pictures.items():
                    self._writer.add_image(name, picture, done, dataformats="HWC")
                self._writer.flush()
            if best is None or scores["score"] > best:
                best = scores["score"]
                replace_folder(self.out, BEST, self.stage.save)
        self.progress = replace(self.progress, best=best, validated=done)
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        if self.main:
            for file in self._files.values():
                # A state that is ahead of its log would leave a gap in the curve.
                file.flush()
                os.fsync(file.fileno())
            states = [optimizer.state_dict() for optimizer in self.optimizers]
            save_last(self.out, self.progress, self.stage.module, states, self.settings, self.seed)
        self.accelerator.wait_for_everyone()

    def _log(self, done: int, figures: Mapping[str, float]) -> None:
        if not self.main or self._writer is None:
            return
        _append(self._files[LOSSES], {"step": done, **figures})
        if done % self.settings.log_every == 0 or done == self.settings.steps:
            for name, value in figures.items():
                self._writer.add_scalar(f"train/{name}", value, done)

    def _agreed(self, stop: bool) -> bool:
        """Let all processes stop behind the same step, as soon as one was told to."""
        if self.accelerator.num_processes == 1:
            return stop
        flag = torch.tensor(float(stop), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)


class _Batches(Dataset[Any]):
    """Make micro-batches by index, in a loader process or here."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make

    def __getitem__(self, index: int) -> Any:
        try:
            return self._make(index)
        except GmcliError as error:
            return error  # raised there, a loader process would dress it in its own trace


class _Bar:
    """Show loss and rate: a bar on a terminal, a line every 30 seconds without one."""

    def __init__(self, name: str, first: int, steps: int, *, drawn: bool) -> None:
        self._name, self._first, self._done, self._steps, self._drawn = name, first, first, steps, drawn
        self._bar = tqdm(total=steps, initial=first, unit="step", desc=name, disable=None if drawn else True)
        self._start = self._last = time.monotonic()

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, loss: float) -> None:
        """Note a step."""
        self._done += 1
        self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self._bar.update()
        now = time.monotonic()
        if self._bar.disable and self._drawn and now - self._last >= INTERVAL_S:
            self._last = now
            rate = (self._done - self._first) / (now - self._start)
            log.info("%s: step %d/%d, loss %.4f, %.2f steps/s", self._name, self._done, self._steps, loss, rate)


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Note SIGINT and SIGTERM instead of dying of them; a second one interrupts at once."""
    seen: list[int] = []

    def note(number: int, _: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals(_: int) -> None:
    # Ctrl-C goes to all processes of a terminal; the trainer still wants the batches of its last step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _append(file: TextIO, record: Mapping[str, Any]) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()


def _shown(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


__all__ = ["BEST", "LAST", "train_stage"]
