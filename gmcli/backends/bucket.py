"""Run a component that was compiled for one batch size at any batch size."""

from itertools import chain

import torch

from gmcli.backends.component import Component, Run


def varies_in_batch_only(component: Component) -> bool:
    """Say whether the first axis of every input is the batch and nothing else varies: then one static graph will do."""
    places = {place for axes in component.axes for place in axes}
    names = {axis.name for axis in chain.from_iterable(axes.values() for axes in component.axes)}
    return places == {0} and len(names) == 1 and all(component.axes)


def in_buckets(run: Run, component: Component) -> Run:
    """Call `run` with exactly the usual batch of a component, as often as it takes.

    Inputs and outputs are batch-first. The last call is filled up with its last row again, which is as cheap as any and
    cannot turn into NaN, and what comes of it is cut off. Raises ValueError where inputs differ in rows or have none.
    """
    bucket = component.example[0].shape[0]

    def call(*inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        rows = inputs[0].shape[0]
        if not rows or any(each.shape[0] != rows for each in inputs):
            raise ValueError(f"{component.name}: inputs of {[each.shape[0] for each in inputs]} rows")
        if rows == bucket:
            whole: torch.Tensor | tuple[torch.Tensor, ...] = run(*inputs)
            return whole
        parts = [run(*(_fill(each[i : i + bucket], bucket) for each in inputs)) for i in range(0, rows, bucket)]
        if isinstance(parts[0], torch.Tensor):
            return torch.cat(parts)[:rows]
        return tuple(torch.cat(each)[:rows] for each in zip(*parts, strict=True))

    return call


def _fill(rows: torch.Tensor, bucket: int) -> torch.Tensor:
    missing = bucket - rows.shape[0]
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows
