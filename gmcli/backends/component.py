"""Describe one piece of a model that backends compile: a module, tensors in, tensors out, and which axes may vary."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

# A component that runs: the module's own inputs and outputs, on the device and in the dtype it was prepared for.
Run = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Axis:
    """Say how long an axis may be; `usual` is the length to optimise for. Axes of one name are equally long."""

    name: str
    least: int
    most: int
    usual: int


@dataclass(frozen=True, slots=True)
class Component:
    """Hold one compilable piece.

    `module` has no branches on values; its parameters are on the device and in the dtype to run in. `example` holds the
    inputs of one call with every axis at its `usual` length; `axes[i]` maps an axis of the i-th input to how it may vary.
    A component without axes has the shapes of its example only.
    """

    name: str
    module: nn.Module
    example: tuple[torch.Tensor, ...]
    axes: tuple[Mapping[int, Axis], ...]

    @property
    def device(self) -> torch.device:
        """Return the device that the component's inputs are on."""
        return self.example[0].device


class Backend(Protocol):
    """Turn a component into something that runs. Each backend is a module of this package with these names."""

    # Whether `build` writes files that `load` needs; without files there is nothing to store.
    STORES: bool

    def versions(self, device: torch.device) -> dict[str, str]:
        """Return what, beside weights and shapes, decides whether a built component can be used: libraries, hardware.

        Raises EnvironmentProblem with the install command where the backend's library is missing.
        """

    def build(self, component: Component, folder: Path) -> None:
        """Compile a component and write its files into an empty folder. Raises EngineError where it cannot be built."""

    def load(self, component: Component, folder: Path | None) -> Run:
        """Return the component ready to run, from the files in `folder` where the backend stores any."""
