"""Compute the losses of LISA and MoRA: next token, masks, time bins. All of them in float32."""

import torch
from torch.nn import functional

IGNORED = -100

_SCALE = 1000.0
_EPS = 1e-6
_NO_MASKS = 1e-8


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of each label, predicted by the position before it.

    logits: [B,N,V]. labels: int64 [B,N]; IGNORED (-100) marks positions that are not learnt. Without a label it is 0.
    Source: transformers 4.31, LlamaForCausalLM.forward.
    """
    wanted = labels[:, 1:].reshape(-1)
    predicted = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
    total = functional.cross_entropy(predicted, wanted, ignore_index=IGNORED, reduction="sum")
    return total / (wanted != IGNORED).sum().clamp(min=1)


def mask_bce_loss(logits: torch.Tensor, targets: torch.Tensor, num_masks: float) -> torch.Tensor:
    """Return the binary cross entropy, mean over pixels, summed over masks, divided by `num_masks`.

    logits, targets: [M,H,W], targets 0 or 1.
    Source: LISA model/LISA.py, sigmoid_ce_loss.
    """
    loss = functional.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return loss.flatten(1, 2).mean(1).sum() / (num_masks + _NO_MASKS)


def mask_dice_loss(logits: torch.Tensor, targets: torch.Tensor, num_masks: float) -> torch.Tensor:
    """Return 1 - DICE of each mask, summed over masks, divided by `num_masks`.

    logits, targets: [M,H,W], targets 0 or 1. Sums are scaled down by 1000, against which eps counts: an empty target
    costs nearly 1 unless the prediction is empty too.
    Source: LISA model/LISA.py, dice_loss.
    """
    inputs = logits.float().sigmoid().flatten(1, 2)
    wanted = targets.float().flatten(1, 2)
    numerator = 2 * (inputs / _SCALE * wanted).sum(-1)
    denominator = (inputs / _SCALE).sum(-1) + (wanted / _SCALE).sum(-1)
    loss = 1 - (numerator + _EPS) / (denominator + _EPS)
    return loss.sum() / (num_masks + _NO_MASKS)


def window_bce_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the binary cross entropy of time bins, mean over bins and answers.

    logits, targets: [L,K], targets 0 or 1.
    Source: paper section 4.1 (temporal BCE); no released code has it.
    """
    return functional.binary_cross_entropy_with_logits(logits.float(), targets.float())
