"""Train projector and lower layers of the language model on the visual tokens alone: what moves when, who pushes whom.

A clip costs a tenth of what it costs with questions, so many more can be seen. The questions then find the motion told already.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import LlamaModel

from gmcli.errors import ConfigError
from gmcli.model.mora import Mora
from gmcli.model.prompt import build_prompt, tokenize_prompt
from gmcli.model.tokenizer import Tokenizer
from gmcli.model.visual_tokens import with_changes
from gmcli.synth.samples import stream
from gmcli.train.tiny.lessons import EVENTS, Lessons
from gmcli.train.tiny.options import MotionOptions
from gmcli.train.tiny.strips import strips
from gmcli.train.tiny.videos import VideoCache, Videos

_CHECKS = 8
_FLOOR = 0.1
_LOOK_AT = 8
_SHOWN = 4
_TOKEN_SCALE = 0.5
_WHISPER = 0.05


class MotionModule(nn.Module):
    """Hold the parts that learn, and the lessons. `before`: ids of the prompt before the visual tokens."""

    before: torch.Tensor

    def __init__(self, mora: Mora, before: list[int], lessons_after: int) -> None:
        super().__init__()
        self.mora = mora.requires_grad_(False)
        self._lower = check_layers(mora, lessons_after)
        for part in (mora.mm_projector, *mora.language_model.model.layers[:lessons_after]):
            part.requires_grad_(True)
        self.register_buffer("before", torch.tensor(before))
        self.lessons = Lessons(mora.config.llm.hidden_size)

    def states(self, temporal: torch.Tensor) -> torch.Tensor:
        """Return the visual tokens' states behind the lower layers, [V, T, H]. temporal: the frames' mean features, [V, T, C]."""
        prefix = embed_prefix(self.mora, self.before, temporal)
        return lower_states(self.mora.language_model.model, prefix, self._lower)[:, len(self.before) :]

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the losses of a batch of `MotionBatches`."""
        loss, parts = self.lessons(self.states(batch["temporal"]), batch)
        return {"loss": loss, **parts}


def check_layers(mora: Mora, lessons_after: int) -> int:
    """Return `lessons_after`; raise ConfigError where the language model has fewer layers."""
    layers = mora.config.llm.num_hidden_layers
    if lessons_after > layers:
        raise ConfigError(f"lessons_after is {lessons_after}; the language model has {layers} layers")
    return lessons_after


def lower_states(llama: LlamaModel, embedded: torch.Tensor, layers: int) -> torch.Tensor:
    """Return the states [V, L, H] behind the first layers: `hidden_states[layers]`, without computing those after."""
    turns = llama.rotary_emb(embedded, position_ids=torch.arange(embedded.shape[1])[None])
    states = embedded
    for layer in llama.layers[:layers]:
        states = layer(states, attention_mask=None, position_embeddings=turns)
    return states


def embed_prefix(mora: Mora, before: torch.Tensor, temporal: torch.Tensor) -> torch.Tensor:
    """Embed what all questions of a video share, [V, P, H]: the ids before the visual tokens, then these."""
    visual = mora.mm_projector(lay_out(mora, temporal))
    start = mora.language_model.model.embed_tokens(before).expand(len(visual), -1, -1)
    return torch.cat([start, visual], dim=1)


def lay_out(mora: Mora, temporal: torch.Tensor) -> torch.Tensor:
    """Lay out the frames' mean features [V, T, C] as the model does."""
    match mora.config.visual_tokens:
        case "temporal":
            return temporal
        case "changes":
            return with_changes(temporal)
        case layout:
            raise ConfigError(f"kinds motion and language train with visual_tokens temporal or changes, not {layout}")


@torch.no_grad()
def start_language(mora: Mora, tokens: torch.Tensor) -> None:
    """Start projector and language model where they learn fast at this size. tokens: some visual tokens, [N, C].

    The projector whitens: what changes from frame to frame is a small part of a token, and would be learnt late. The
    usual deviation of 0.02 is made for wide models; here it leaves attention without a preference for long.
    """
    width = mora.mm_projector.out_features
    mean = tokens.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov((tokens - mean).T))
    values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
    scale = (values + _FLOOR * values.median()).rsqrt()
    turn = torch.linalg.qr(torch.randn(width, len(values)))[0]
    weight = turn @ (scale[:, None] * vectors.T) * _TOKEN_SCALE
    mora.mm_projector.weight.copy_(weight)
    mora.mm_projector.bias.copy_(-(weight @ mean))
    for layer in mora.language_model.model.layers:
        for name, linear in layer.named_modules():
            if isinstance(linear, nn.Linear):
                deviation = linear.in_features**-0.5
                # These two write into the stream that all layers share: loud from the start, they drown what tokens say.
                shared = name.endswith(("o_proj", "down_proj"))
                nn.init.normal_(linear.weight, std=_WHISPER * deviation if shared else deviation)
    nn.init.normal_(mora.language_model.model.embed_tokens.weight, std=_TOKEN_SCALE)


def ids_before(mora: Mora, tokenizer: Tokenizer) -> list[int]:
    """Return the ids before the visual tokens."""
    return tokenize_prompt(build_prompt("?", mora.config), tokenizer)[0]


class MotionBatches:
    """Make micro-batches of `groups` batches of videos, drawn from `pool` ones and one more every `fresh_every` times."""

    def __init__(self, videos: Videos, options: MotionOptions, seed: int) -> None:
        self._videos, self._options, self._seed = videos, options, seed

    def __call__(self, index: int) -> dict[str, torch.Tensor]:
        """Return the tensors of a micro-batch."""
        options = self._options
        rng = stream("train", self._seed + 2, index)
        drawn = rng.integers(options.pool + index // options.fresh_every, size=options.groups)
        groups = [self._videos.tensors(int(i)) for i in drawn]
        return {name: torch.cat([group[name] for group in groups]) for name in groups[0]}


class MotionStage:
    """Train what tells the motion."""

    def __init__(
        self, mora: Mora, tokenizer: Tokenizer, cache: VideoCache, options: MotionOptions, seed: int, save: Any
    ) -> None:
        self.name = "motion"
        self.batch = MotionBatches(cache.training, options, seed)
        checks = [cache.validation.tensors(i) for i in range(_CHECKS)]
        self._check = {name: torch.cat([check[name] for check in checks]) for name in checks[0]}
        torch.manual_seed(seed)
        some = torch.cat([cache.training.tensors(index)["temporal"] for index in range(_LOOK_AT)])
        start_language(mora, lay_out(mora, some).flatten(0, 1))
        self.module = MotionModule(mora, ids_before(mora, tokenizer), options.lessons_after)
        self._save = save

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Score on videos of the validation split: IoU of the times at which a thing moves, F1 of events, losses."""
        self.module.eval()
        check = self._check
        states = self.module.states(check["temporal"])
        _, losses = self.module.lessons(states, check)
        steps, _ = self.module.lessons.read(states)
        found, true = steps[..., 2:] > 0, check["steps"][..., 2:] > 0.5
        both, all_of = (found & true)[..., 0].sum(dim=1), (found | true)[..., 0].sum(dim=1)
        moving = float((both / all_of.clamp(min=1))[true[..., 0].any(dim=1)].mean())
        hits, sizes = (found & true).sum(dim=(0, 1, 2)), (found.sum(dim=(0, 1, 2)) + true.sum(dim=(0, 1, 2)))
        f1 = (2 * hits / sizes.clamp(min=1))[1:].tolist()
        return {
            "score": moving + sum(f1) / len(f1),
            "moving_iou": moving,
            **{f"f1_{name.replace(' ', '_')}": value for name, value in zip(EVENTS, f1, strict=True)},
            **{name: float(loss) for name, loss in losses.items()},
        }

    @torch.no_grad()
    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Draw when each colour moves in the first videos: true over found."""
        self.module.eval()
        steps, _ = self.module.lessons.read(self.module.states(self._check["temporal"][:_SHOWN]))
        true = self._check["steps"][:_SHOWN, :, :, 2].transpose(1, 2).flatten(0, 1)
        return {"moving": strips(true, steps[..., 2].sigmoid().transpose(1, 2).flatten(0, 1))}

    def save(self, folder: Path) -> None:
        """Write the whole model as a checkpoint."""
        self._save(folder)
