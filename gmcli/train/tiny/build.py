"""Build the small model's stages: from nothing, or from the checkpoint that the stage before left."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gmcli.checkpoints.load import load_checkpoint
from gmcli.errors import ConfigError
from gmcli.model.config import MoraConfig
from gmcli.model.mora import Mora
from gmcli.model.tokenizer import Tokenizer
from gmcli.train.save import write_checkpoint
from gmcli.train.stage import Stage
from gmcli.train.tiny.language import LanguageStage
from gmcli.train.tiny.motion import MotionStage
from gmcli.train.tiny.options import LanguageOptions, MotionOptions, SamOptions, TinyOptions, TowerOptions
from gmcli.train.tiny.sam import SamStage
from gmcli.train.tiny.tower import TowerStage, start_positions
from gmcli.train.tiny.videos import VideoCache
from gmcli.train.tiny.vocabulary import write_tokenizer

PHRASES = "phrases.json"
_TOKENIZER = "tokenizer.model"
# No stage can have this name.
_VIDEOS = "videos.cache"


@dataclass(slots=True)
class _Start:
    """Hold what a stage starts from: the model, its tokenizer, and SAM's embeddings of the phrases once it has learnt them."""

    model: Mora
    tokenizer: Tokenizer
    tokenizer_file: Path
    phrases: torch.Tensor | None

    def save(self, folder: Path) -> None:
        """Write a checkpoint, and beside it the phrases' embeddings."""
        tokenizer = self.tokenizer
        write_checkpoint(folder, self.model.config, self.model.state_dict(), tokenizer.added, self.tokenizer_file)
        if self.phrases is not None:
            (folder / PHRASES).write_text(json.dumps(self.phrases.tolist()) + "\n", encoding="utf-8")


def build_tiny(
    options: TinyOptions, model: Mapping[str, Any] | None, init: str | None, folder: Path, seed: int, video_seed: int
) -> Stage:
    """Build a stage. model: the sizes of a model made from nothing. init: the checkpoint to start from instead.

    video_seed: of the videos of kinds `motion` and `language`, which share them: they are kept beside `folder`.

    Raises ConfigError where kind `language` has no checkpoint of kind `sam` to start from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    videos = partial(VideoCache, folder.parent / _VIDEOS, video_seed)
    start = _from_nothing(model, folder, seed) if init is None else _from_checkpoint(Path(init))
    match options:
        case TowerOptions():
            return TowerStage(start.model, seed, options.batch_size, options.place_weight, start.save)
        case SamOptions():
            stage = SamStage(start.model, seed, options.batch_size, start.save)
            start.phrases = stage.module.phrases.weight
            return stage
        case MotionOptions():
            return MotionStage(
                start.model, start.tokenizer, videos(start.model, options.videos), options, seed, start.save
            )
        case LanguageOptions():
            if start.phrases is None:
                raise ConfigError(
                    f"{init}: holds no {PHRASES}", "Train a stage of kind sam before that of kind language."
                )
            cache = videos(start.model, options.videos)
            return LanguageStage(start.model, start.phrases, start.tokenizer, cache, options, seed, start.save)


def _from_nothing(sizes: Mapping[str, Any] | None, folder: Path, seed: int) -> _Start:
    assert sizes is not None
    file = folder / _TOKENIZER
    added = write_tokenizer(file)
    torch.manual_seed(seed)
    model = Mora(MoraConfig.from_json(sizes, "model"))
    start_positions(model)
    return _Start(model, Tokenizer(file, added), file, None)


def _from_checkpoint(path: Path) -> _Start:
    checkpoint = load_checkpoint(str(path), attention="sdpa")
    phrases = path / PHRASES
    known = torch.tensor(json.loads(phrases.read_text("utf-8"))) if phrases.is_file() else None
    return _Start(checkpoint.model, checkpoint.tokenizer, checkpoint.files.tokenizer, known)
