"""Choose a backend by its name, and say early what it lacks."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from gmcli.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from gmcli.backends.component import Backend

# What a backend needs beside torch: the module, and the extra that brings it.
_LIBRARIES = {
    "openvino": ("openvino", "openvino"),
    "tensorrt": ("torch_tensorrt", "trt"),
    "tensorrt_rtx": ("tensorrt_rtx", "rtx"),
}


def choose_backend(name: str) -> "Backend":
    """Return the module of a backend that compiles. Raises ValueError for another name."""
    match name:
        case "inductor":
            from gmcli.backends import inductor

            return inductor
        case "aot_inductor":
            from gmcli.backends import aot_inductor

            return aot_inductor
        case "openvino":
            from gmcli.backends import openvino

            return openvino
        case "tensorrt":
            from gmcli.backends import tensorrt

            return tensorrt
        case "tensorrt_rtx":
            from gmcli.backends import tensorrt_rtx

            return tensorrt_rtx
    raise ValueError(f"no backend {name!r}")


def check_backend(name: str, device: str, dtype: str) -> None:
    """Refuse a backend that cannot run here, before anything is loaded; imports neither torch nor the backend.

    device: "cpu" or "cuda". dtype: "fp32", "bf16" or "fp16". Raises UsageError for a device or dtype that the backend does
    not do, EnvironmentProblem where its library is not installed.
    """
    if name == "openvino" and (device != "cpu" or dtype not in ("fp32", "bf16")):
        raise UsageError(
            f"the openvino backend runs on a CPU in fp32 or bf16, not on {device} in {dtype}",
            "Use --gpus cpu and --dtype fp32, or another --backend.",
        )
    if name in ("tensorrt", "tensorrt_rtx") and device != "cuda":
        raise UsageError(f"the {name} backend runs on an NVIDIA GPU, not on a CPU", "Use another --backend.")
    if name in _LIBRARIES:
        module, extra = _LIBRARIES[name]
        if find_spec(module) is None:
            raise EnvironmentProblem(f"the {name} backend needs {module}", f"pip install 'gmcli[{extra}]'")
