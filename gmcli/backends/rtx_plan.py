"""Build a TensorRT-RTX plan of a component ahead of time, on a machine without a GPU.

TensorRT-RTX generates code for a compute capability that it is told, where stock TensorRT times kernels on the GPU that it
finds. It knows consumer and workstation GPUs: no H100. The way is torch.export, ONNX, TensorRT-RTX; torch-tensorrt is not
needed, which does not even import without a driver.

plan.engine     the plan
bindings.json   what the plan calls the component's inputs and outputs, in their order
"""

from pathlib import Path
from typing import Any

import torch

from gmcli.backends.component import Component, Run
from gmcli.backends.export import INSTEAD, free_lengths, reason
from gmcli.backends.tensorrt import bindings_of, export, profile
from gmcli.backends.trt_plan import Bindings, in_parts, read_plan, run_plan, write_plan
from gmcli.errors import EngineError, EnvironmentProblem
from gmcli.text import printable, shorten

PLAN = "plan.engine"

_INSTALL = "pip install tensorrt-rtx onnxscript"


def versions() -> dict[str, str]:
    """Return the versions of torch, of the ONNX exporter and of TensorRT-RTX: what a plan depends on beside its capability.

    Raises EnvironmentProblem where one is missing.
    """
    return {
        "torch": torch.__version__,
        "onnxscript": str(_onnxscript().__version__),
        "tensorrt_rtx": str(_tensorrt_rtx().__version__),
    }


def compute_capabilities() -> dict[str, Any]:
    """Return what TensorRT-RTX builds for: its own constants by compute capability, such as "8.9"."""
    members = _tensorrt_rtx().ComputeCapability.__members__
    digits = {name.removeprefix("SM"): member for name, member in members.items() if name.startswith("SM")}
    return {f"{number[:-1]}.{number[-1]}": member for number, member in sorted(digits.items(), key=lambda x: int(x[0]))}


def build_plan(component: Component, folder: Path, compute_capability: str) -> dict[str, Any]:
    """Build a component for a compute capability, write `plan.engine` and `bindings.json`, and return what was built.

    compute_capability: such as "8.9". Raises EngineError where TensorRT-RTX does not know it or cannot build the component,
    EnvironmentProblem where a library is missing.
    """
    known = compute_capabilities()
    if compute_capability not in known:
        raise EngineError(
            f"TensorRT-RTX does not build for compute capability {compute_capability!r}, only for {', '.join(known)}",
            "A data centre GPU such as an H100 (9.0) needs stock TensorRT: pip install 'gmcli[trt]' and --backend tensorrt.",
        )
    model, bindings = export_onnx(component)
    plan, layers = _build(component, model, bindings, known[compute_capability])
    write_plan(folder, PLAN, plan, bindings)
    return {
        "compute_capability": compute_capability,
        "dtype": str(component.example[0].dtype).removeprefix("torch."),
        "profile": {name: [list(shape) for shape in shapes] for name, shapes in _profiles(component, bindings).items()},
        "onnx_bytes": len(model),
        "layers": layers,
        "plan_bytes": len(plan),
    }


def load_plan(component: Component, folder: Path) -> Run:
    """Hand `plan.engine` to TensorRT-RTX on the component's GPU, which compiles its kernels now. Needs a driver.

    Raises EngineError where files are missing, or the plan was built for another compute capability.
    """
    plan, bindings = read_plan(folder, PLAN)
    if component.device.type != "cuda":
        raise EngineError(f"TensorRT-RTX does not run {component.name} on {component.device.type}", INSTEAD)
    return in_parts(run_plan(_tensorrt_rtx(), plan, bindings, component), component)


def export_onnx(component: Component) -> tuple[bytes, Bindings]:
    """Return a component as an ONNX model with its weights, axes that vary left open, and its inputs' and outputs' names.

    Raises EngineError where torch cannot express it in ONNX.
    """
    _onnxscript()
    program = export(component)
    bindings = bindings_of(program)
    try:
        with torch.no_grad(), free_lengths():
            model = torch.onnx.export(
                program,
                (),
                input_names=list(bindings.inputs),
                output_names=list(bindings.outputs),
                dynamo=True,
                verbose=False,
            )
        assert model is not None
        return bytes(model.model_proto.SerializeToString()), bindings
    except Exception as error:
        raise EngineError(f"{component.name} cannot be written as ONNX: {reason(error)}", INSTEAD) from error


def _build(component: Component, model: bytes, bindings: Bindings, capability: Any) -> tuple[bytes, int]:
    """Return the plan and how many layers TensorRT-RTX has read from the ONNX model."""
    library = _tensorrt_rtx()
    said: list[str] = []
    logger: Any = library.ILogger

    class Log(logger):  # type: ignore[misc]
        def __init__(self) -> None:
            logger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (logger.INTERNAL_ERROR, logger.ERROR):
                said.append(message)

    def refused(what: str) -> EngineError:
        why = shorten(printable(said[0]), 300) if said else "it does not say why"
        return EngineError(f"TensorRT-RTX cannot {what} {component.name}: {why}", INSTEAD)

    log = Log()
    builder = library.Builder(log)
    network = builder.create_network(0)  # always strongly typed: in the model's own types
    if not library.OnnxParser(network, log).parse(model):
        raise refused("read")
    settings = builder.create_builder_config()
    settings.num_compute_capabilities = 1
    if not settings.set_compute_capability(capability, 0):
        raise refused("choose a compute capability for")
    settings.clear_flag(library.BuilderFlag.TF32)  # float32 is meant
    shapes = builder.create_optimization_profile()
    for name, least_usual_most in _profiles(component, bindings).items():
        shapes.set_shape(name, *least_usual_most)
    settings.add_optimization_profile(shapes)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise refused("build")
    return bytes(plan), network.num_layers


def _profiles(component: Component, bindings: Bindings) -> dict[str, tuple[tuple[int, ...], ...]]:
    shapes = map(profile, component.example, component.axes)
    return dict(zip(bindings.inputs, shapes, strict=True))


def _onnxscript() -> Any:
    try:
        import onnxscript
    except ImportError as error:
        raise EnvironmentProblem("writing ONNX needs the package onnxscript", _INSTALL) from error
    return onnxscript


def _tensorrt_rtx() -> Any:
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise EnvironmentProblem("a plan ahead of time needs the package tensorrt-rtx", _INSTALL) from error
    return tensorrt_rtx
