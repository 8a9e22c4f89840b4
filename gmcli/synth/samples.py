"""Draw samples of the three splits, each from a stream of random numbers of its own."""

from typing import Literal

import numpy as np

from gmcli.synth.facts import Facts, observe
from gmcli.synth.questions import Asked, ask
from gmcli.synth.scene import generate_scene

Split = Literal["train", "val", "test"]
_STREAM = {"train": 1, "val": 2, "test": 3}


def stream(split: Split, seed: int, index: int) -> np.random.Generator:
    """Return the generator of one video; two splits never share one, whatever their seeds."""
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(_STREAM[split], index)))


def scene_with_questions(rng: np.random.Generator) -> tuple[Facts, list[Asked]]:
    """Make up scenes until one raises a question; return it with all questions that it answers."""
    while True:
        facts = observe(generate_scene(rng))
        asked = ask(facts, rng)
        if asked:
            return facts, asked
