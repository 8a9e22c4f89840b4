"""Choose a backend by its name."""

from gmcli.backends.component import Backend


def choose_backend(name: str) -> Backend:
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
    raise ValueError(f"no backend {name!r}")
