"""Build the optimizers over named parameters, and say their learning rate at each step."""

import math
import re
from typing import Any

import torch
from torch import nn

from gmcli.errors import ConfigError
from gmcli.train.config import StageSettings

# Matrices of transformer blocks are named so in transformers and in segment-anything.
_BLOCKS = re.compile(r"\.(layers|blocks)\.\d+\.")


def build_optimizers(module: nn.Module, settings: StageSettings) -> list[torch.optim.Optimizer]:
    """Build AdamW over the trainable parameters, and Muon over those that are its own where the settings say so.

    Parameters are grouped by learning-rate factor and decay; each group carries its "factor". Biases, norms and other vectors
    do not decay.
    Raises ConfigError where nothing is trainable, or where a prefix of `lr_scale` names no trainable parameter.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise ConfigError("nothing is trainable")
    unused = [prefix for prefix in settings.lr_scale if not any(name.startswith(prefix) for name, _ in named)]
    if unused:
        raise ConfigError(f"lr_scale: no trainable parameter begins with {', '.join(map(repr, unused))}")
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        prefix = max((p for p in settings.lr_scale if name.startswith(p)), key=len, default=None)
        factor = 1.0 if prefix is None else settings.lr_scale[prefix]
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        muon = settings.optimizer == "muon" and parameter.ndim == 2 and _BLOCKS.search(name) is not None
        groups.setdefault((muon, factor, decay), []).append(parameter)

    def listed(muon: bool) -> list[dict[str, Any]]:
        return [
            {"params": p, "factor": factor, "weight_decay": decay}
            for (own, factor, decay), p in groups.items()
            if own is muon
        ]

    optimizers: list[torch.optim.Optimizer] = []
    if listed(False):
        optimizers.append(torch.optim.AdamW(listed(False), lr=settings.lr, betas=settings.betas))
    if listed(True):
        optimizers.append(torch.optim.Muon(listed(True), lr=settings.lr, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def learning_rate(step: int, settings: StageSettings) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0: a function of the step alone.

    Linear warm-up reaches `lr` at its last step; then linear or cosine decay would reach 0 at `steps`, or it stays.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    left = (settings.steps - step) / max(settings.steps - settings.warmup_steps, 1)
    match settings.schedule:
        case "linear":
            return settings.lr * left
        case "cosine":
            return settings.lr * (1 - math.cos(math.pi * left)) / 2
        case "constant":
            return settings.lr
