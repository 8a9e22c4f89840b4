"""Make the language model's lower layers tell the motion: dense lessons on the visual tokens, beside the answers' few words.

A token knows the frames up to its own, so it is asked only for what has happened since the frame before; the last one is asked for
the whole clip. What the questions then need lies in the states that the upper layers look at.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from gmcli.synth.facts import Facts, moving, overlap
from gmcli.synth.scene import COLOURS, FPS, SECONDS, SHAPES
from gmcli.train.tiny.stills import colour_of, shape_of

EVENTS = ("sets off", "comes to rest", "is pushed", "pushes", "passes in front", "is passed behind")
_EVENT = {name: number for number, name in enumerate(EVENTS, start=3)}
_STEPS = 3 + len(EVENTS)
_WHOLE = 8 + len(SHAPES)
_WEIGHTS = {"motion": 10.0, "moving": 2.0, "events": 10.0, "whole": 2.0}


def lesson_truth(facts: Facts, sampled: Sequence[int]) -> dict[str, NDArray[np.float32]]:
    """Say what each colour does at each sampled frame, and over the whole clip; zeros for colours that are not there.

    steps: [T, colours, 3 + events] since the frame before: displacement (in tenths of a side), in which share of the time it moves,
    which of EVENTS there was. Hardly ever is there more than one push at a time, so these tell who pushed whom.
    whole: [colours, 8 + shapes] there, path length, displacement x and y, top speed (thrice), first start and last end in shares of
    the clip, whether pushed, shape (one-hot).
    """
    tracks = facts.scene.tracks()
    colours = [colour_of(thing) for thing in facts.scene.things]
    steps = np.zeros((len(sampled), len(COLOURS), _STEPS), np.float32)
    whole = np.zeros((len(COLOURS), _WHOLE), np.float32)
    for number, colour in enumerate(colours):
        active = moving(tracks, number)
        steps[1:, colour, :2] = np.diff(tracks[number, sampled], axis=0) * 10
        # Of a clip with fewer frames than samples a frame is looked at twice.
        steps[1:, colour, 2] = [active[a:b].mean() if a < b else 0 for a, b in pairwise(sampled)]
        whole[colour, 0] = 1
        whole[colour, 8 + shape_of(facts.scene.things[number])] = 1
        moves = facts.of(number)
        if moves:
            whole[colour, 1] = sum(move.length for move in moves)
            whole[colour, 2:4] = sum(move.dx for move in moves), sum(move.dy for move in moves)
            whole[colour, 4] = 3 * max(move.speed for move in moves)
            whole[colour, 5:7] = moves[0].start / SECONDS, moves[-1].end / SECONDS
            whole[colour, 7] = any(move.cause is not None for move in moves)
    for move in facts.moves:
        start, stop = (np.searchsorted(sampled, second * FPS, side="right") for second in (move.start, move.end))
        steps[start : start + 1, colours[move.thing], _EVENT["sets off"]] = 1
        steps[stop : stop + 1, colours[move.thing], _EVENT["comes to rest"]] = 1
        if move.cause is not None:
            steps[start : start + 1, colours[move.thing], _EVENT["is pushed"]] = 1
            steps[start : start + 1, colours[move.cause], _EVENT["pushes"]] = 1
    for move, other in facts.passes:
        over = overlap(facts.scene, tracks, move, other)[sampled]
        front, back = (move.thing, other) if move.thing > other else (other, move.thing)
        steps[over, colours[front], _EVENT["passes in front"]] = 1
        steps[over, colours[back], _EVENT["is passed behind"]] = 1
    return {"steps": steps, "whole": whole}


class Lessons(nn.Module):
    """Read the motion off the visual tokens' states with linear heads, which only training has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.step_head = nn.Linear(width, len(COLOURS) * _STEPS)
        self.whole_head = nn.Linear(width, len(COLOURS) * _WHOLE)
        for head in (self.step_head, self.whole_head):
            nn.init.zeros_(head.weight)
        # Events are rare.
        nn.init.constant_(self.step_head.bias.data.view(len(COLOURS), _STEPS)[:, 3:], -4.0)

    def read(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the states tell, in the order and shapes of `lesson_truth`; whether it moves, and events, as logits."""
        states = self.norm(states)
        steps = self.step_head(states).unflatten(-1, (len(COLOURS), _STEPS))
        return steps, self.whole_head(states[:, -1]).unflatten(-1, (len(COLOURS), _WHOLE))

    def forward(
        self, states: torch.Tensor, truth: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the weighted loss and its parts. states: [V, T, H], of the visual tokens; truth: of `lesson_truth`, stacked."""
        steps, whole = self.read(states)
        entropy = functional.binary_cross_entropy_with_logits
        losses = {
            "motion": functional.smooth_l1_loss(steps[..., :2], truth["steps"][..., :2], beta=0.1),
            "moving": entropy(steps[..., 2], truth["steps"][..., 2]),
            "events": entropy(steps[..., 3:], truth["steps"][..., 3:]),
            "whole": functional.smooth_l1_loss(whole, truth["whole"], beta=0.1),
        }
        return torch.stack([_WEIGHTS[name] * loss for name, loss in losses.items()]).sum(), losses
