"""Make the language model's lower layers tell the motion: dense lessons on the visual tokens, beside the answers' few words.

A token knows the frames up to its own, so it is asked only for what has happened since the frame before; the last one is asked for
the whole clip. What the questions then need lies in the states that the upper layers look at.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from gmcli.synth.facts import Facts, moving
from gmcli.synth.scene import COLOURS, FRAMES, SECONDS, SHAPES
from gmcli.train.tiny.stills import colour_of, shape_of

_WHOLE = 8 + len(SHAPES)
_PAIRS = 3
_WEIGHTS = {"motion": 10.0, "moving": 2.0, "whole": 2.0, "bins": 2.0, "pairs": 1 / 3}


def lesson_truth(facts: Facts, sampled: Sequence[int], bins: int) -> dict[str, NDArray[np.float32]]:
    """Say what each colour does, at each sampled frame and over the whole clip; zeros for colours that are not there.

    steps: [T, colours, 3] displacement since the frame before (in tenths of a side), and in which share of that time it moves.
    whole: [colours, 8 + shapes] there, path length, displacement x and y, top speed (thrice), first start and last end in shares
    of the clip, whether pushed, shape (one-hot). bins: [colours, bins] in which share of the k-th of `bins` equal parts of the clip
    it moves. pairs: [colours, colours, 3] whether the first pushes, passes in front of, passes behind the second.
    """
    tracks = facts.scene.tracks()
    colours = [colour_of(thing) for thing in facts.scene.things]
    steps = np.zeros((len(sampled), len(COLOURS), 3), np.float32)
    whole = np.zeros((len(COLOURS), _WHOLE), np.float32)
    parts = np.zeros((len(COLOURS), bins), np.float32)
    pairs = np.zeros((len(COLOURS), len(COLOURS), _PAIRS), np.float32)
    edges = np.arange(bins + 1) * FRAMES // bins
    for number, colour in enumerate(colours):
        active = moving(tracks, number).astype(np.float32)
        steps[1:, colour, :2] = np.diff(tracks[number, sampled], axis=0) * 10
        steps[1:, colour, 2] = [_share(active[a:b]) for a, b in pairwise(sampled)]
        parts[colour] = [_share(active[a:b]) for a, b in pairwise(edges)]
        whole[colour, 0] = 1
        whole[colour, 8 + shape_of(facts.scene.things[number])] = 1
        moves = facts.of(number)
        if moves:
            whole[colour, 1] = sum(move.length for move in moves)
            whole[colour, 2:4] = sum(move.dx for move in moves), sum(move.dy for move in moves)
            whole[colour, 4] = 3 * max(move.speed for move in moves)
            whole[colour, 5:7] = moves[0].start / SECONDS, moves[-1].end / SECONDS
            whole[colour, 7] = any(move.cause is not None for move in moves)
        for move in moves:
            if move.cause is not None:
                pairs[colours[move.cause], colour, 0] = 1
    for move, other in facts.passes:
        pairs[colours[move.thing], colours[other], 1 if move.thing > other else 2] = 1
    return {"steps": steps, "whole": whole, "parts": parts, "pairs": pairs}


def _share(active: NDArray[np.float32]) -> float:
    # Of a clip with fewer frames than samples a frame is looked at twice.
    return float(active.mean()) if len(active) else 0.0


class Lessons(nn.Module):
    """Read the motion off the visual tokens' states with linear heads, which only training has."""

    def __init__(self, width: int, bins: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.step_head = nn.Linear(width, len(COLOURS) * 3)
        self.whole_head = nn.Linear(width, len(COLOURS) * _WHOLE)
        self.part_head = nn.Linear(width, len(COLOURS) * bins)
        self.pair_head = nn.Linear(width, len(COLOURS) ** 2 * _PAIRS)
        for head in (self.step_head, self.whole_head, self.part_head, self.pair_head):
            nn.init.zeros_(head.weight)
        # One pair in a hundred does something.
        nn.init.constant_(self.pair_head.bias, -4.5)

    def forward(self, states: torch.Tensor, truth: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the weighted loss and its parts. states: [V, T, H], of the visual tokens; truth: of `lesson_truth`, stacked."""
        states = self.norm(states)
        last = states[:, -1]
        steps = self.step_head(states).view(truth["steps"].shape)
        whole = self.whole_head(last).view(truth["whole"].shape)
        parts = self.part_head(last).view(truth["parts"].shape)
        pairs = self.pair_head(last).view(truth["pairs"].shape)
        entropy = functional.binary_cross_entropy_with_logits
        losses = {
            "motion": functional.smooth_l1_loss(steps[..., :2], truth["steps"][..., :2], beta=0.1),
            "moving": entropy(steps[..., 2], truth["steps"][..., 2]),
            "whole": functional.smooth_l1_loss(whole, truth["whole"], beta=0.1),
            "bins": entropy(parts, truth["parts"]),
            # Nearly all pairs do nothing to each other: what counts is how many a clip gets wrong.
            "pairs": entropy(pairs, truth["pairs"], reduction="sum") / len(pairs),
        }
        return torch.stack([_WEIGHTS[name] * loss for name, loss in losses.items()]).sum(), losses
