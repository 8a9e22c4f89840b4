"""Compile components with torch.compile when they are loaded; nothing is stored but torch's own cache."""

import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gmcli.backends.bucket import varies_in_batch_only
from gmcli.backends.component import Component, Run
from gmcli.backends.export import INSTEAD, free_lengths, guarded, reason
from gmcli.errors import EngineError, EnvironmentProblem
from gmcli.private import keep_torch_private

STORES = False


def versions(device: torch.device) -> dict[str, str]:
    """Return torch's version, and the processor and the GPU that code is generated for."""
    found = {"torch": str(torch.__version__), "processor": _processor()}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found |= {
            "cuda": str(torch.version.cuda),
            "gpu": torch.cuda.get_device_name(device),
            "capability": f"{major}.{minor}",
        }
    return found


def build(component: Component, folder: Path) -> None:
    """Do nothing: torch.compile's result cannot be stored."""


def load(component: Component, folder: Path | None) -> Run:
    """Compile a component and run it, so that what goes wrong does so now.

    One static graph where only the batch varies, on a GPU with tuned kernels and as a CUDA graph. Else one graph for all
    lengths, and one more for each axis whose length of 1 inductor treats as a case of its own.
    """
    check_supported(component, "inductor")
    keep_torch_private()
    static = varies_in_batch_only(component)
    graphed = static and component.device.type == "cuda"
    compiled = torch.compile(component.module, fullgraph=True, dynamic=False, mode="max-autotune" if graphed else None)

    def run(*inputs: torch.Tensor) -> Any:
        # Without marks, a new shape would be compiled as a constant, and the eighth of them refused.
        for each, axes in zip(inputs, component.axes, strict=True):
            for place in () if static else axes:
                if each.shape[place] > 1:
                    torch._dynamo.maybe_mark_dynamic(each, place)
        with torch.inference_mode(), free_lengths():
            # A CUDA graph writes its next results over these.
            return _cloned(compiled(*inputs)) if graphed else compiled(*inputs)

    with compiling(component), torch.inference_mode():
        for inputs in _examples(component):
            # Callers' tensors are made in inference mode; for others torch would compile again.
            run(*(each.clone() for each in inputs))
    return guarded(run, component)


@contextmanager
def compiling(component: Component) -> Iterator[None]:
    """Turn what inductor raises into EngineError, or EnvironmentProblem where a compiler is missing."""
    try:
        yield
    except Exception as error:  # torch raises a dozen kinds, some of them wrapped
        text = f"{type(error).__name__} {error}"
        if "InvalidCxxCompiler" in text or "No working C++ compiler" in text:
            raise EnvironmentProblem(
                f"compiling {component.name} needs a C++ compiler", "apt install g++, or set CXX to one."
            ) from error
        if "TritonMissing" in text or "TritonUnavailable" in text:
            raise EnvironmentProblem(
                f"compiling {component.name} for a GPU needs Triton", "pip install triton"
            ) from error
        raise EngineError(f"{component.name} cannot be compiled: {reason(error)}", INSTEAD) from error


def check_supported(component: Component, backend: str) -> None:
    """Raise EngineError for a device or dtype that inductor generates no code for."""
    device, dtype = component.device, component.example[0].dtype
    if device.type not in ("cpu", "cuda") or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise EngineError(f"{backend} does not run {component.name} in {dtype} on {device.type}", INSTEAD)


def _processor() -> str:
    """Name the processor and hash its instruction sets: code is generated for the one that it is generated on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    said = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    said = {name.strip(): value.strip() for name, value in said.items()}
    flags = said.get("flags") or said.get("Features", "")  # x86, ARM
    name = said.get("model name") or said.get("CPU part", "")
    digest = hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:16]
    return f"{platform.machine()} {name} {digest}"


def _examples(component: Component) -> Iterator[tuple[torch.Tensor, ...]]:
    """Return inputs of every kind that may get a graph of its own: the example, and again with each axis of length 1."""
    yield component.example
    if varies_in_batch_only(component):
        return
    for name in sorted({axis.name for axes in component.axes for axis in axes.values() if axis.least == 1}):
        shorter = []
        for each, axes in zip(component.example, component.axes, strict=True):
            for place, axis in axes.items():
                each = each.narrow(place, 0, 1) if axis.name == name else each
            shorter.append(each.contiguous())
        yield tuple(shorter)


def _cloned(result: Any) -> Any:
    return result.clone() if isinstance(result, torch.Tensor) else tuple(each.clone() for each in result)
