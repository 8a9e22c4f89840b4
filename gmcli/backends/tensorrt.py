"""Compile components with TensorRT through torch-tensorrt: one engine a component, stored as TensorRT's own plan.

model.engine    the plan: kernels and weights, for GPUs like the one that it was built on
bindings.json   what the plan calls the component's inputs and outputs, in their order

torch-tensorrt's own file formats are not used. Both carry its engine object, and in it pickled compiler settings; its
exported program is unpickled by torch on loading, and its .pt2 holds generated host code and needs a C++ compiler. A plan is
bytes for TensorRT alone, which runs them on the GPU: as with any compiled code, only from a folder that nobody else can
write to.

torch-tensorrt asks the CUDA driver about the GPU as soon as it is imported, so nothing here imports it before it is needed.
"""

import copy
import ctypes
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from operator import getitem
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.export import ExportedProgram

from gmcli.backends.component import Axis, Component, Run
from gmcli.backends.export import INSTEAD, free_axes, free_lengths, reason
from gmcli.backends.export import export as export_component
from gmcli.backends.trt_plan import Bindings, in_parts, read_plan, run_plan, write_plan
from gmcli.errors import EngineError, EnvironmentProblem

STORES = True

PLAN = "model.engine"

_INSTALL = "pip install 'gmcli[trt]'"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# How torch-tensorrt names the submodules that become engines.
_ENGINE = "_run_on_acc"


@dataclass(frozen=True, slots=True)
class Coverage:
    """Say what TensorRT would take of a component: of `operators`, `supported` in `engines`; the rest by name and count."""

    operators: int
    supported: int
    engines: int
    left_out: Mapping[str, int]

    @property
    def whole(self) -> bool:
        """Say whether the component becomes a single engine, nothing left out."""
        return self.engines == 1 and self.supported == self.operators


def versions(device: torch.device) -> dict[str, str]:
    """Return the versions of torch, torch-tensorrt, TensorRT and the CUDA driver, and which GPU it is.

    Raises EnvironmentProblem where torch-tensorrt is missing or cannot be used, or there is no CUDA device.
    """
    _check_installed()
    if device.type != "cuda" or not torch.cuda.is_available():
        raise EnvironmentProblem("the tensorrt backend needs an NVIDIA GPU", "Use another --backend.")
    torch_tensorrt, library = _torch_tensorrt(), _tensorrt()
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "torch": torch.__version__,
        "torch_tensorrt": torch_tensorrt.__version__,
        # Two products, which have the same module in torch-tensorrt's eyes: tensorrt, and tensorrt_rtx behind a proxy.
        getattr(library, "_package_name", "tensorrt"): library.__version__,
        "cuda": str(torch.version.cuda),
        "driver": _driver_version(),
        "gpu": torch.cuda.get_device_name(device),
        "capability": f"{major}.{minor}",
    }


def export(component: Component) -> ExportedProgram:
    """Export a component with its axes as free as they say, the batch included: a plan runs any length of its profile.

    Raises EngineError where torch cannot follow the module, or would fix an axis that is to vary.
    """
    return export_component(component, without_deconvolutions(component.module), batch=True)


def without_deconvolutions(module: nn.Module) -> nn.Module:
    """Replace deconvolutions whose stride is their kernel, of which SAM's upscaling has two, in a copy of a module.

    Such a one is a convolution of single pixels whose channels are spread over squares: equal within rounding. TensorRT has
    no deconvolution in bfloat16, neither 11.0 (NVIDIA/TensorRT#4829) nor RTX 1.6. The copy shares all other tensors.
    """
    if not any(_is_spread(each) for each in module.modules()):
        return module
    tensors = [*module.parameters(), *module.buffers()]
    own = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    for parent in list(own.modules()):
        for name, child in parent.named_children():
            if _is_spread(child):
                setattr(parent, name, _spread(child))
    return own


def input_specs(component: Component) -> list[Any]:
    """Return a torch_tensorrt.Input for each input: dtype, and the least, usual and greatest shape of the profile."""
    torch_tensorrt = _torch_tensorrt()
    specs = []
    for example, axes in zip(component.example, component.axes, strict=True):
        if free_axes(axes):
            shapes = dict(zip(("min_shape", "opt_shape", "max_shape"), profile(example, axes), strict=True))
        else:
            shapes = {"shape": tuple(example.shape)}
        specs.append(torch_tensorrt.Input(**shapes, dtype=example.dtype))
    return specs


def profile(example: torch.Tensor, axes: Mapping[int, Axis]) -> tuple[tuple[int, ...], ...]:
    """Return the least, the usual and the greatest shape of an input."""

    def shape(which: str) -> tuple[int, ...]:
        return tuple(getattr(axes[i], which) if i in axes else length for i, length in enumerate(example.shape))

    return shape("least"), shape("usual"), shape("most")


def bindings_of(program: ExportedProgram) -> Bindings:
    """Return the names that torch-tensorrt gives to inputs, the module's own, and to outputs."""
    signature = program.graph_signature
    outputs = tuple(f"output{number}" for number in range(len(signature.user_outputs)))
    return Bindings(tuple(str(name) for name in signature.user_inputs), outputs)


def dry_run(component: Component) -> Coverage:
    """Let torch-tensorrt partition a component as for a build, and say what it would take; no engine is built.

    Raises EngineError where the component cannot be exported or partitioned, EnvironmentProblem without torch-tensorrt.
    """
    return _partition(component, export(component))


def build(component: Component, folder: Path) -> None:
    """Compile a component into one engine and write `model.engine` and `bindings.json`.

    Raises EngineError, naming the operators, where TensorRT does not take all of it as a single engine.
    """
    dtype = component.example[0].dtype
    if dtype not in _DTYPES:
        raise EngineError(f"tensorrt does not run {component.name} in {dtype} on {component.device.type}", INSTEAD)
    program = export(component)
    coverage = _partition(component, program)
    if not coverage.whole:
        names = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in coverage.left_out.items())
        raise EngineError(
            f"{component.name} does not become one TensorRT engine: {coverage.supported} of {coverage.operators} operators "
            f"in {coverage.engines} engines; left out: {names or 'none'}",
            INSTEAD,
        )
    _check_card(component)
    write_plan(folder, PLAN, _compile_on_card(component, program), bindings_of(program))


def load(component: Component, folder: Path | None) -> Run:
    """Read `model.engine` and hand it to TensorRT. Raises EngineError where files are missing, damaged or do not fit.

    What comes back takes any batch: one that is greater than the plan's greatest goes in parts.
    """
    assert folder is not None
    plan, bindings = read_plan(folder, PLAN)
    _check_installed()
    _check_card(component)
    _torch_tensorrt()  # it decides which TensorRT is behind the name
    return in_parts(run_plan(_tensorrt(), plan, bindings, component), component)


def _compile_on_card(component: Component, program: ExportedProgram) -> bytes:
    """Build the plan, on the component's GPU. The module's own types are kept, and float32 is not computed in TF32."""
    torch_tensorrt = _torch_tensorrt()
    # Kernel timings would go to a fixed file in the shared temporary folder, for whoever builds next.
    with TemporaryDirectory() as scratch:
        settings = {
            "device": _gpu(component),
            "disable_tf32": True,
            "use_explicit_typing": True,  # earlier versions choose types themselves unless told; for later ones it is the only way
            "immutable_weights": True,
            "cache_built_engines": False,
            "reuse_cached_engines": False,
            "timing_cache_path": str(Path(scratch) / "timing_cache.bin"),
        }
        try:
            with torch.no_grad(), free_lengths():
                plan = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                    program, arg_inputs=input_specs(component), **settings
                )
        except Exception as error:
            raise EngineError(f"TensorRT cannot build {component.name}: {reason(error)}", INSTEAD) from error
    return bytes(plan)


def _partition(component: Component, program: ExportedProgram) -> Coverage:
    torch_tensorrt = _torch_tensorrt()
    specs = input_specs(component)
    try:
        # The report that it prints is meant for people; the graph that it returns says the same.
        with torch.no_grad(), free_lengths(), redirect_stdout(StringIO()), _quiet():
            graph = torch_tensorrt.dynamo.compile(
                program,
                arg_inputs=specs,
                dryrun=True,
                min_block_size=1,
                use_fast_partitioner=False,  # it would move what is left out to the GPU
                cache_built_engines=False,
                reuse_cached_engines=False,
                device=_gpu(component),
            )
    except Exception as error:
        raise EngineError(f"TensorRT cannot take {component.name} apart: {reason(error)}", INSTEAD) from error
    return _coverage(graph)


def _coverage(graph: torch.fx.GraphModule) -> Coverage:
    """Count a partitioned graph: engines are submodules, what is left out has stayed beside them."""
    engines = [each for name, each in graph.named_children() if _ENGINE in name]
    taken = sum(_is_operator(node) for each in engines for node in each.graph.nodes)  # type: ignore[union-attr]
    left = Counter(str(node.target) for node in graph.graph.nodes if _is_operator(node))
    return Coverage(taken + left.total(), taken, len(engines), dict(sorted(left.items())))


def _is_operator(node: torch.fx.Node) -> bool:
    """Say whether a node computes; taking one of several results is none."""
    return node.op == "call_function" and node.target is not getitem


def _gpu(component: Component) -> Any:
    """Return the GPU to compile for; a component on a CPU is taken apart for the first one."""
    return _torch_tensorrt().Device(gpu_id=component.device.index or 0)


def _is_spread(layer: nn.Module) -> TypeGuard[nn.ConvTranspose2d]:
    return (
        isinstance(layer, nn.ConvTranspose2d)
        and layer.kernel_size[0] == layer.kernel_size[1]
        and layer.stride == layer.kernel_size
        and layer.padding == layer.output_padding == (0, 0)
        and layer.dilation == (1, 1)
        and layer.groups == 1
    )


def _spread(layer: nn.ConvTranspose2d) -> nn.Module:
    side = layer.kernel_size[0]
    with torch.no_grad():
        weight = layer.weight.detach().flatten(1).t().contiguous()  # [C,O,k,k] -> [O*k*k,C]: PixelShuffle's order
        pixels = nn.Conv2d(layer.in_channels, len(weight), 1, bias=layer.bias is not None, device="meta")
        pixels.weight = nn.Parameter(weight[:, :, None, None], requires_grad=False)
        if layer.bias is not None:
            pixels.bias = nn.Parameter(layer.bias.detach().repeat_interleave(side * side), requires_grad=False)
    return nn.Sequential(pixels, nn.PixelShuffle(side)).train(layer.training)


def _check_card(component: Component) -> None:
    if component.device.type != "cuda":
        raise EngineError(
            f"tensorrt does not run {component.name} in {component.example[0].dtype} on {component.device.type}",
            INSTEAD,
        )


def _check_installed() -> None:
    if find_spec("torch_tensorrt") is None:
        raise EnvironmentProblem("the tensorrt backend needs the package torch-tensorrt", _INSTALL)


def _driver_version() -> str:
    version = ctypes.c_int(0)
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _torch_tensorrt() -> Any:
    _check_installed()
    try:
        with _quiet():
            import torch_tensorrt
    except Exception as error:  # RuntimeError without a driver, a bare Exception where TensorRT's libraries are missing
        raise EnvironmentProblem(
            f"torch-tensorrt cannot be used here: {reason(error)}", "Run `gmcli doctor`."
        ) from error
    return torch_tensorrt


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from people what torch-tensorrt warns of: packages that could be installed, and a least batch of 2.

    The latter is true of what it partitions, not of a plan, which has the profile of its inputs.
    """
    logger = logging.getLogger("torch_tensorrt")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _tensorrt() -> Any:
    """Return TensorRT's Python module; torch-tensorrt-rtx puts its own one in its place, so torch_tensorrt comes first."""
    import tensorrt

    return tensorrt
