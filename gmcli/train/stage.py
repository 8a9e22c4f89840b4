"""Say what the loop needs to know of a stage."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn


class Stage(Protocol):
    """Train one module on one kind of data.

    `name`: of the stage, for messages. `module`: what is trained; `module(batch)` returns a dict of scalar tensors with
    "loss" among them, and its parameters with requires_grad are what is saved to resume from.
    """

    name: str

    @property
    def module(self) -> nn.Module: ...

    def batch(self, index: int) -> Any:
        """Make micro-batch `index`: nested dicts and lists of CPU tensors, a pure function of the stage's seed and the index.

        Loader processes unpickle it: a method takes its whole stage, module included, along. A stage with a large
        module sets an instance attribute to a small callable instead.
        """
        ...

    def validate(self) -> dict[str, float]:
        """Score the module as it is, "score" among the figures: higher is better."""
        ...

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Draw what shows how far the module is: uint8 RGB [H,W,3] each."""
        ...

    def save(self, folder: Path) -> None:
        """Write a checkpoint in gmcli's own layout into `folder`, which exists and is empty."""
        ...
