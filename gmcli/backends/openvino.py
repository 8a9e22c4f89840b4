"""Convert components to OpenVINO's format, model.xml and model.bin, and run them on a CPU in float32 or bfloat16.

What is stored takes, gives and holds float32, which every bfloat16 value is; how it is computed is decided on loading.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch

from gmcli.backends.bucket import varies_in_batch_only
from gmcli.backends.component import Component, Run
from gmcli.backends.export import INSTEAD, export, guarded, reason
from gmcli.errors import EngineError, EnvironmentProblem
from gmcli.private import keep_openvino_silent

STORES = True

MODEL = "model.xml"
WEIGHTS = "model.bin"

_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def versions(device: torch.device) -> dict[str, str]:
    """Return the versions of OpenVINO and of torch, whose graph is converted; the files fit any CPU."""
    return {"openvino": str(_openvino().__version__), "torch": str(torch.__version__)}


def build(component: Component, folder: Path) -> None:
    """Export a component, convert it and write `model.xml` and `model.bin`, weights in float32."""
    _check_supported(component)
    openvino = _openvino()
    program = export(_in_float32(component))
    try:
        openvino.save_model(_convert(program), folder / MODEL, compress_to_fp16=False)
    except Exception as error:
        raise EngineError(f"OpenVINO cannot convert {component.name}: {reason(error)}", INSTEAD) from error


def load(component: Component, folder: Path | None) -> Run:
    """Compile `model.xml` for this CPU with as many threads as torch has, and return it ready to run.

    Raises EngineError where the files are missing or cannot be read, or the CPU cannot compute in bfloat16.
    """
    assert folder is not None
    _check_supported(component)
    openvino = _openvino()
    core, dtype = openvino.Core(), component.example[0].dtype
    if dtype == torch.bfloat16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EngineError("this CPU does not compute in bfloat16", "Use --dtype fp32.")
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[dtype],  # without it, float32 is computed in bfloat16 where the CPU can
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # every worker process would pin its threads to the same first cores
    }
    try:
        model = core.read_model(folder / MODEL, folder / WEIGHTS)
        if dtype == torch.float32 and varies_in_batch_only(component):
            # Told the batch, OpenVINO fuses sums into kernels of its own, which in float32 are slower and in bfloat16
            # faster (SAM's ViT-B: 6.5 s and 5.3 s; 2.9 s and 4.0 s). The batch is the one it was built for anyway.
            model.reshape({i: [-1, *each.shape[1:]] for i, each in enumerate(component.example)})
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:
        raise EngineError(
            f"{folder / MODEL}: cannot be loaded ({reason(error)})",
            "Remove it with `gmcli engines prune --all` and run again.",
        ) from error
    request = compiled.create_infer_request()

    def run(*inputs: torch.Tensor) -> Any:
        # Inputs are lent; outputs are copied, since the next call writes over the request's own.
        lent = [_float32(each).detach().numpy() for each in inputs]
        results = request.infer(lent, share_inputs=True, share_outputs=False)
        outputs = tuple(torch.from_numpy(results[port]).to(dtype) for port in compiled.outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    return guarded(run, component)


def _convert(program: torch.export.ExportedProgram) -> Any:
    """Convert an exported program, axes that vary included.

    openvino.convert_model does the same, but is made to report every call to its makers over the network.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose

    table = torch.export.default_decompositions()
    for operator in ops_to_not_decompose():
        table.pop(operator, None)  # type: ignore[no-untyped-call]
    decoder = TorchFXPythonDecoder(program.run_decompositions(table).module(check_guards=False), dynamic_shapes=False)
    frontend = FrontEndManager().load_by_framework("pytorch")
    return frontend.convert(frontend.load(decoder))


def _in_float32(component: Component) -> Component:
    """Return a component in float32; a bfloat16 one as a copy."""
    if component.example[0].dtype == torch.float32:
        return component
    module = copy.deepcopy(component.module).float()
    return dataclasses.replace(component, module=module, example=tuple(map(_float32, component.example)))


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _check_supported(component: Component) -> None:
    device, dtype = component.device, component.example[0].dtype
    if device.type != "cpu" or dtype not in _HINTS:
        raise EngineError(
            f"openvino runs on a CPU in float32 or bfloat16, not {component.name} in {dtype} on {device.type}", INSTEAD
        )


def _openvino() -> Any:
    keep_openvino_silent()
    try:
        import openvino
    except ImportError as error:
        raise EnvironmentProblem(
            "the openvino backend needs the package openvino", "pip install 'gmcli[openvino]'"
        ) from error
    return openvino
