"""Export components as graphs, and stand between callers and compiled code, which believes whatever it is handed."""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as shape_config

from gmcli.backends.bucket import in_buckets, varies_in_batch_only
from gmcli.backends.component import Axis, Component, Run
from gmcli.errors import EngineError
from gmcli.text import printable, shorten

INSTEAD = "Run it uncompiled: --backend eager."


def export(component: Component, module: nn.Module | None = None, *, batch: bool = False) -> ExportedProgram:
    """Export a component: static where only the batch varies (see in_buckets), else with its axes as free as they say.

    module: an equal one to export in its place. batch: leave the batch free, too. Raises EngineError where torch cannot
    follow the module, or would fix an axis that is to vary.
    """
    shapes = None if varies_in_batch_only(component) and not batch else _dynamic_shapes(component)
    try:
        with torch.inference_mode(False), torch.no_grad(), free_lengths():
            return torch.export.export(module or component.module, component.example, dynamic_shapes=shapes)
    except Exception as error:  # torch raises a dozen kinds
        raise EngineError(f"{component.name} cannot be exported: {reason(error)}", INSTEAD) from error


def free_axes(axes: Mapping[int, Axis]) -> dict[int, Axis]:
    """Return the axes that may have more than one length."""
    return {place: axis for place, axis in axes.items() if axis.least < axis.most}


def free_lengths() -> AbstractContextManager[None]:
    """Make torch take a length of 1 for a length like any other, not for a constant that asks for a graph of its own."""
    patch: AbstractContextManager[None] = shape_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    return patch


def guarded(run: Run, component: Component) -> Run:
    """Return a compiled component as callers know it: any batch, any strides, and no input that it was not built for.

    Compiled code looks at addresses only: an input of another type or shape would be read beyond its end.
    Raises EngineError where an input's dtype, device, or shape is not among those of the component.
    """
    static = varies_in_batch_only(component)
    fixed: tuple[Mapping[int, Axis], ...] = tuple({} for _ in component.axes)

    def call(*inputs: torch.Tensor) -> object:
        _check(component, inputs, fixed if static else component.axes)
        return run(*(each.contiguous() for each in inputs))

    return in_buckets(call, component) if static else call


def reason(error: BaseException) -> str:
    """Say in one line what went wrong: the first line of an exception that tells something."""
    lines = (line.strip() for line in str(error).splitlines())
    # torch._dynamo introduces what it passes on.
    telling = (line for line in lines if line and not (line.startswith("backend=") and line.endswith("raised:")))
    return shorten(printable(f"{type(error).__name__}: {next(telling, '')}").removesuffix(": "), 300)


def _dynamic_shapes(component: Component) -> tuple[dict[int, Dim], ...]:
    # Axes of one name must share one Dim: that is how torch learns that they are equally long.
    dims: dict[str, Dim] = {}
    return tuple(
        {
            place: dims.setdefault(axis.name, Dim(axis.name, min=axis.least, max=axis.most))
            for place, axis in free_axes(axes).items()
        }
        for axes in component.axes
    )


def _check(component: Component, inputs: tuple[torch.Tensor, ...], axes: tuple[Mapping[int, Axis], ...]) -> None:
    if len(inputs) != len(component.example):
        raise EngineError(f"{component.name} takes {len(component.example)} inputs, not {len(inputs)}")
    lengths: dict[str, int] = {}
    for number, (given, example, vary) in enumerate(zip(inputs, component.example, axes, strict=True)):
        fits = given.dtype == example.dtype and given.device == example.device and given.dim() == example.dim()
        for place, length in enumerate(given.shape) if fits else ():
            if place in vary:
                axis = vary[place]
                fits &= axis.least <= length <= axis.most and lengths.setdefault(axis.name, length) == length
            else:
                fits &= length == example.shape[place]
        if not fits:
            raise EngineError(
                f"{component.name} was not built for {given.dtype} {list(given.shape)} on {given.device} as input {number}"
            )
