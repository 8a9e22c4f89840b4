"""Compile components with AOTInductor into one file, model.pt2: a library with the weights in it, for this processor or GPU.

Loading runs the library's code: a .pt2 may only come from a folder that nobody else can write to.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gmcli.backends.bucket import varies_in_batch_only
from gmcli.backends.component import Component, Run
from gmcli.backends.export import export, guarded, reason
from gmcli.backends.inductor import check_supported, compiling
from gmcli.backends.inductor import versions as versions
from gmcli.errors import EngineError

STORES = True

MODEL = "model.pt2"


def build(component: Component, folder: Path) -> None:
    """Export a component, compile it and write `model.pt2`."""
    from torch._inductor.utils import fresh_cache

    check_supported(component, "aot_inductor")
    # The number of threads is read when the code runs, not written into it.
    settings: dict[str, Any] = {"cpp.dynamic_threads": True}
    if component.device.type == "cpu":
        settings["freezing"] = True  # weights in the layout that oneDNN and MKL want
    else:
        settings["max_autotune"] = varies_in_batch_only(component)
    program = export(component)
    # Without a folder of its own, torch leaves sources, objects and a copy of the weights in /tmp for good.
    with compiling(component), TemporaryDirectory() as scratch, fresh_cache(dir=scratch), torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / MODEL), inductor_configs=settings)


def load(component: Component, folder: Path | None) -> Run:
    """Load `model.pt2` from a folder. Raises EngineError where it is missing or not a package of this torch."""
    assert folder is not None
    path = folder / MODEL
    device = component.device
    try:
        compiled = torch._inductor.aoti_load_package(
            str(path), device_index=device.index if device.type == "cuda" and device.index is not None else -1
        )
    except Exception as error:
        raise EngineError(
            f"{path}: cannot be loaded ({reason(error)})", "Remove it with `gmcli engines prune --all` and run again."
        ) from error

    def run(*inputs: torch.Tensor) -> Any:
        with torch.inference_mode():
            result = compiled(*inputs)
        return tuple(result) if isinstance(result, list) else result

    return guarded(run, component)
