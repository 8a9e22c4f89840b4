"""Run a training: check everything first, then stage after stage, each from the best of the one before."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState

from gmcli.checkpoints.load import check_checkpoint, load_checkpoint
from gmcli.checkpoints.locate import CheckpointFiles, fingerprint, locate_checkpoint
from gmcli.checkpoints.lora import ADAPTER, adapter_record
from gmcli.errors import CheckpointError, ConfigError
from gmcli.files import make_directories, write_file
from gmcli.lock import take_lock
from gmcli.manifest import read_manifest
from gmcli.train.config import MoraOptions, StageConfig, TrainConfig
from gmcli.train.data import MoraBatches, check_tasks, list_questions
from gmcli.train.loop import train_stage
from gmcli.train.mora import MoraModule, MoraStage
from gmcli.train.prepare import prepare
from gmcli.train.stage import Stage
from gmcli.train.state import BEST, read_progress
from gmcli.train.tiny.build import build_tiny

log = logging.getLogger("gmcli.train")

_CONFIG = "config.json"
_APART = 100


def train(config: TrainConfig, out: Path) -> Path:
    """Train all stages into `out`, a folder each; return the last one's best checkpoint. The same call goes on.

    Raises ConfigError, ManifestError or CheckpointError for what is wrong, before any weights are read; ConfigError where
    `out` holds another training; RunLocked where another process trains there.
    """
    check(config)
    with _held(out, config):
        init = config.init
        for number, stage in enumerate(config.stages):
            folder = out / stage.name
            if read_progress(folder, stage.settings, config.seed).step >= stage.settings.steps:
                log.info("%s: finished before", stage.name)
            else:
                train_stage(_build(stage, init, config, folder, number), stage.settings, folder, seed=config.seed)
            init = str(folder / BEST)
    return out / config.stages[-1].name / BEST


def check(config: TrainConfig) -> None:
    """Look at all that a training needs, without reading any weights. Raises as `train` does."""
    for stage in config.stages:
        if isinstance(stage.options, MoraOptions):
            _check_mora(stage.options)
    first = config.stages[0]
    if config.init is not None:
        check_checkpoint(locate_checkpoint(config.init, vision_tower=config.vision_tower))
    elif first.kind == "mora":
        raise ConfigError(f"stage {first.name!r} starts from a checkpoint", "Give one as 'init'.")
    elif config.model is None:
        raise ConfigError(f"stage {first.name!r} starts from nothing", "Give the sizes as 'model', or an 'init'.")


def _build(stage: StageConfig, init: str | None, config: TrainConfig, folder: Path, number: int) -> Stage:
    """Build a stage by its kind. init: the checkpoint to start from. number: the stage's place in the list."""
    options = stage.options
    match options:
        case MoraOptions():
            assert init is not None
            # The configuration's tower belongs to its own checkpoint; those of our stages hold theirs.
            tower = config.vision_tower if init == config.init else None
            files = locate_checkpoint(init, vision_tower=tower)
            return _build_mora(stage, options, files, folder, config.seed)
        case _:
            # Two stages of one kind are to see different frames.
            return build_tiny(options, config.model, init, folder, config.seed + _APART * number, config.seed)


def _check_mora(options: MoraOptions) -> None:
    for manifest in dict.fromkeys((options.manifest, options.validation)):
        check_tasks(read_manifest(manifest), manifest, options.answers)


def _build_mora(stage: StageConfig, options: MoraOptions, files: CheckpointFiles, folder: Path, seed: int) -> MoraStage:
    log.info("%s: reading %s", stage.name, files.path)
    # One kind of attention on every machine: flash-attn's gain is in sequences longer than these.
    checkpoint = load_checkpoint(files, dtype=stage.settings.precision, attention="sdpa")
    ready = prepare(checkpoint, options, seed)
    config, tokenizer = ready.model.config, ready.tokenizer
    record = adapter_record(
        config, tokenizer.added, base=fingerprint(files), r=options.lora_r, alpha=options.lora_alpha
    )
    _write_once(folder, ADAPTER, record, lambda: CheckpointError(f"{folder}: was trained from another checkpoint"))

    def batches(manifest: str, *, shuffled: bool) -> MoraBatches:
        tasks = read_manifest(manifest)
        return MoraBatches(tasks, list_questions(tasks), options, config, tokenizer, seed, shuffled)

    return MoraStage(
        stage.name,
        MoraModule(ready.model, options, ready.special),
        tokenizer,
        files.tokenizer,
        training=batches(options.manifest, shuffled=True),
        validation=batches(options.validation, shuffled=False),
    )


@contextmanager
def _held(out: Path, config: TrainConfig) -> Iterator[None]:
    """Hold the directory of a training; of several processes, the first one does."""
    state = PartialState()
    if not state.is_main_process:
        state.wait_for_everyone()
        yield
        return
    make_directories(out)
    with take_lock(out):
        _write_once(out, _CONFIG, config.to_json(), lambda: _other_training(out, config.to_json()))
        state.wait_for_everyone()
        yield


def _write_once(folder: Path, name: str, value: dict[str, Any], error: Callable[[], Exception]) -> None:
    """Write a JSON file, or raise the error where another one is there."""
    path = folder / name
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(value)):
            raise error()
    elif PartialState().is_main_process:
        make_directories(folder)
        write_file(folder, name, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def _other_training(out: Path, now: dict[str, Any]) -> ConfigError:
    there = json.loads((out / _CONFIG).read_text(encoding="utf-8"))
    differing = [
        f"{k}: {there.get(k)!r} there, {v!r} now" for k, v in now.items() if k != "stages" and there.get(k) != v
    ]
    for old, new in zip(there["stages"], now["stages"], strict=False):
        keys = [k for k in {**old, **new} if json.dumps(old.get(k)) != json.dumps(new.get(k))]
        differing += [f"{new['name']}: {k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in keys]
    if len(there["stages"]) != len(now["stages"]):
        differing.append(f"{len(there['stages'])} stages there, {len(now['stages'])} now")
    return ConfigError(
        f"{out}: holds another training:\n  " + "\n  ".join(differing), "Give the same settings, or another directory."
    )
