"""Keep what a stage needs to go on from: weights, optimizer, step. A kill at any moment leaves the old state or the new."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from gmcli.checkpoints.weights import load_pickled
from gmcli.errors import CheckpointError, ConfigError
from gmcli.files import fsync_directory, make_directories, write_file
from gmcli.train.config import StageSettings

BEST = "best"
FINAL = "final"
LAST = "last"
LOSSES = "losses.jsonl"
SCORES = "scores.jsonl"
TENSORBOARD = "tensorboard"

_STEP = "step.json"
_WEIGHTS = "model.safetensors"
_OPTIMIZERS = "optimizers.pt"


@dataclass(frozen=True, slots=True)
class Progress:
    """Say how far a stage is: optimizer steps done, the best validation score so far, the step validated last."""

    step: int = 0
    best: float | None = None
    validated: int = 0


def read_progress(out: Path, settings: StageSettings, seed: int) -> Progress:
    """Read how far the stage in `out` is; step 0 where nothing is saved.

    Raises ConfigError where the folder belongs to another seed or to settings that give other weights.
    """
    recover(out, LAST)
    recover(out, BEST)
    recover(out, FINAL)
    path = out / LAST / _STEP
    if not path.is_file():
        return Progress()
    saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    now = {"seed": seed, **settings.decisive()}
    differing = [
        f"{k}: {saved['settings'].get(k)!r} there, {v!r} now" for k, v in now.items() if saved["settings"].get(k) != v
    ]
    if differing:
        raise ConfigError(
            f"{out}: was trained with other settings:\n  " + "\n  ".join(differing),
            "Give the same settings, or another directory.",
        )
    return Progress(saved["step"], saved["best"], saved["validated"])


def save_last(
    out: Path,
    progress: Progress,
    module: nn.Module,
    optimizers: Sequence[Mapping[str, Any]],
    settings: StageSettings,
    seed: int,
) -> None:
    """Save all that `load_last` needs, durably, in place of what was there."""

    def fill(folder: Path) -> None:
        save_file(_kept(module), folder / _WEIGHTS)
        torch.save(list(optimizers), folder / _OPTIMIZERS)
        record = {
            **asdict(progress),
            "settings": {"seed": seed, **settings.decisive()},
        }
        (folder / _STEP).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    replace_folder(out, LAST, fill)


def load_last(out: Path, module: nn.Module) -> list[dict[str, Any]]:
    """Put the saved weights into `module`; return the optimizers' saved states.

    Raises ConfigError where the folder holds another module's weights or is damaged.
    """
    folder = out / LAST
    try:
        weights = load_file(folder / _WEIGHTS)
        optimizers: list[dict[str, Any]] = load_pickled(folder / _OPTIMIZERS, mmap=False)
    except (OSError, SafetensorError, CheckpointError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{folder}: cannot be read ({reason})", "Remove it to start the stage anew.") from None
    own = _kept(module)
    wrong = sorted(own.keys() ^ weights.keys()) + [
        k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape
    ]
    if wrong:
        raise ConfigError(
            f"{folder}: is not of this model; differing: {', '.join(wrong[:5])}", "Remove it to start the stage anew."
        )
    module.load_state_dict(weights, strict=False)
    return optimizers


def keep_lines(out: Path, name: str, step: int) -> None:
    """Cut a log of JSON lines back to those of steps up to `step`; a half-written line goes too."""
    path = out / name
    if not path.is_file():
        return
    kept = [
        line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n") and _step_of(line) <= step
    ]
    write_file(out, name, b"".join(kept))


def replace_folder(root: Path, name: str, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a folder and put it durably at root/name.

    The old one stays until the new one is whole; `recover` mends what a crash between the two renames leaves.
    """
    make_directories(root)
    target, new, old = root / name, root / f".{name}.new", root / f".{name}.old"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    fill(new)
    for path in (*new.rglob("*"), new):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    new.rename(target)
    fsync_directory(root)
    shutil.rmtree(old, ignore_errors=True)


def recover(root: Path, name: str) -> None:
    """Bring back the folder that a crash caught between its two names, and remove what is half-written."""
    target, old = root / name, root / f".{name}.old"
    if old.is_dir() and not target.exists():
        with suppress(FileNotFoundError):  # another process of the same training was first
            old.rename(target)
        fsync_directory(root)
    for leftover in (old, root / f".{name}.new"):
        shutil.rmtree(leftover, ignore_errors=True)


def _kept(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return what training changes: trainable parameters, and buffers such as running means."""
    buffers = dict(module.named_buffers())
    state = module.state_dict(keep_vars=True)
    return {k: v.detach().contiguous() for k, v in state.items() if v.requires_grad or k in buffers}


def _step_of(line: bytes) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62  # not one of our lines
