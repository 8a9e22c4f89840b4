"""Keep TensorRT's plans in files, and run them on a GPU: what stock TensorRT and TensorRT-RTX have in common."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gmcli.backends.bucket import varies_in_batch_only
from gmcli.backends.component import Component, Run
from gmcli.backends.export import INSTEAD, reason
from gmcli.errors import EngineError

BINDINGS = "bindings.json"

_AGAIN = "Remove it with `gmcli engines prune --all` and run again."


@dataclass(frozen=True, slots=True)
class Bindings:
    """Hold what a plan calls the component's inputs and outputs, each in the component's own order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def write_plan(folder: Path, name: str, plan: bytes, bindings: Bindings) -> None:
    """Write a plan under a name, and `bindings.json` beside it."""
    (folder / name).write_bytes(plan)
    named = {"inputs": list(bindings.inputs), "outputs": list(bindings.outputs)}
    (folder / BINDINGS).write_text(json.dumps(named, indent=2) + "\n")


def read_plan(folder: Path, name: str) -> tuple[bytes, Bindings]:
    """Read what write_plan wrote. Raises EngineError where a file is missing or `bindings.json` is none."""
    try:
        plan = (folder / name).read_bytes()
        named = json.loads((folder / BINDINGS).read_text())
        found = Bindings(tuple(named["inputs"]), tuple(named["outputs"]))
        if not all(isinstance(each, str) for each in found.inputs + found.outputs):
            raise ValueError(f"{BINDINGS} holds other things than names")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EngineError(f"{folder / name}: cannot be loaded ({reason(error)})", _AGAIN) from error
    return plan, found


def in_parts(run: Run, component: Component) -> Run:
    """Split a batch that is greater than the component's greatest; where more than the batch varies, nothing is split."""
    if not varies_in_batch_only(component):
        return run
    most = component.axes[0][0].most

    def call(*inputs: torch.Tensor) -> Any:
        rows = inputs[0].shape[0] if inputs else 0
        if rows <= most:
            return run(*inputs)
        parts = [run(*(each[i : i + most] for each in inputs)) for i in range(0, rows, most)]
        if isinstance(parts[0], torch.Tensor):
            return torch.cat(parts)
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    return call


def run_plan(library: Any, plan: bytes, bindings: Bindings, component: Component) -> Run:
    """Return a plan ready to run on its component's GPU. library: the module tensorrt or tensorrt_rtx that built it.

    One call at a time: calls share one execution context and its memory. Raises EngineError where TensorRT refuses the
    plan; the result raises it for inputs of another dtype, device or shape than the plan was built for.
    Source: docs.nvidia.com/deeplearning/tensorrt, Python API, "Performing inference".
    """
    device = component.device
    with torch.cuda.device(device):
        runtime = library.Runtime(library.Logger(library.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(plan)
        context = engine.create_execution_context() if engine is not None else None
        if context is None:
            raise EngineError(f"TensorRT cannot load the plan of {component.name} on this GPU", _AGAIN)
        names = {engine.get_tensor_name(number) for number in range(engine.num_io_tensors)}
        if names != {*bindings.inputs, *bindings.outputs}:
            raise EngineError(f"the plan of {component.name} has other inputs and outputs than {BINDINGS} says", _AGAIN)
        # TensorRT waits for the host when it runs on the default stream.
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    dtypes = {
        library.DataType.FLOAT: torch.float32,
        library.DataType.HALF: torch.float16,
        library.DataType.BF16: torch.bfloat16,
        library.DataType.INT64: torch.int64,
        library.DataType.INT32: torch.int32,
        library.DataType.BOOL: torch.bool,
    }
    kinds = {name: dtypes[engine.get_tensor_dtype(name)] for name in names}

    def run(*inputs: torch.Tensor) -> Any:
        _check_lengths(component, inputs)
        for name, given in zip(bindings.inputs, inputs, strict=True):
            fits = given.dtype == kinds[name] and given.device == device
            if not (fits and context.set_input_shape(name, tuple(given.shape))):
                raise EngineError(
                    f"{component.name} was not built for {given.dtype} {list(given.shape)} on {given.device} as {name}"
                )
        current = torch.cuda.current_stream(device)
        # In a list of their own: what contiguous() has copied must live until the engine has read it.
        held = [each.contiguous() for each in inputs]
        outputs = [
            torch.empty(tuple(context.get_tensor_shape(name)), dtype=kinds[name], device=device)
            for name in bindings.outputs
        ]
        for name, tensor in zip(bindings.inputs + bindings.outputs, held + outputs, strict=True):
            context.set_tensor_address(name, tensor.data_ptr())
        # All tensors belong to the current stream, which waits at the end: none of their memory is given away too early.
        stream.wait_stream(current)
        with torch.cuda.device(device):
            done = context.execute_async_v3(stream.cuda_stream)
        current.wait_stream(stream)
        if not done:
            raise EngineError(f"TensorRT failed to run {component.name}", INSTEAD)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    return run


def _check_lengths(component: Component, inputs: tuple[torch.Tensor, ...]) -> None:
    """Raise EngineError where axes of one name differ in length: TensorRT looks at each input by itself."""
    if len(inputs) != len(component.example):
        raise EngineError(f"{component.name} takes {len(component.example)} inputs, not {len(inputs)}")
    lengths: dict[str, int] = {}
    for given, axes in zip(inputs, component.axes, strict=True):
        for place, axis in axes.items():
            if place >= given.dim() or lengths.setdefault(axis.name, given.shape[place]) != given.shape[place]:
                raise EngineError(
                    f"{component.name} was not built for inputs that differ in {axis.name}: "
                    f"{', '.join(str(list(each.shape)) for each in inputs)}"
                )
