"""Run components as TensorRT-RTX plans, which can be built on a machine without a GPU for one that has it."""

from pathlib import Path

import torch

from gmcli.backends import rtx_plan
from gmcli.backends.component import Component, Run
from gmcli.errors import EnvironmentProblem

STORES = True


def versions(device: torch.device) -> dict[str, str]:
    """Return the versions of what builds a plan, and the compute capability of the GPU that it is for.

    Raises EnvironmentProblem where a library or a GPU is missing.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        raise EnvironmentProblem(
            "the tensorrt_rtx backend needs an NVIDIA GPU",
            "Use another --backend; `gmcli export-trt --ahead 8.9` builds for a GPU that is elsewhere.",
        )
    return versions_for("{}.{}".format(*torch.cuda.get_device_capability(device)))


def versions_for(capability: str) -> dict[str, str]:
    """Return the same for a GPU that is elsewhere, by its compute capability, such as "8.9"."""
    return rtx_plan.versions() | {"capability": capability}


def build(component: Component, folder: Path) -> None:
    """Build a plan for the GPU that is here. Raises EngineError as rtx_plan.build_plan."""
    rtx_plan.build_plan(component, folder, versions(component.device)["capability"])


def load(component: Component, folder: Path | None) -> Run:
    """Hand a plan to the GPU. Raises EngineError where it is damaged or was built for another one."""
    assert folder is not None
    return rtx_plan.load_plan(component, folder)
