"""Build AdamW over named parameters, and say its learning rate at each step."""

import math

import torch
from torch import nn

from gmcli.errors import ConfigError
from gmcli.train.config import StageSettings


def build_optimizer(module: nn.Module, settings: StageSettings) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters, grouped by learning-rate factor and decay.

    Each group carries its "factor". Biases, norms and other vectors do not decay.
    Raises ConfigError where nothing is trainable, or where a prefix of `lr_scale` names no trainable parameter.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise ConfigError("nothing is trainable")
    unused = [prefix for prefix in settings.lr_scale if not any(name.startswith(prefix) for name, _ in named)]
    if unused:
        raise ConfigError(f"lr_scale: no trainable parameter begins with {', '.join(map(repr, unused))}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        prefix = max((p for p in settings.lr_scale if name.startswith(p)), key=len, default=None)
        factor = 1.0 if prefix is None else settings.lr_scale[prefix]
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "factor": factor, "weight_decay": decay} for (factor, decay), p in groups.items()],
        lr=settings.lr,
        betas=settings.betas,
    )


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
