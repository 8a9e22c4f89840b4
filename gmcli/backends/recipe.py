"""Read engine recipes: which backend runs a component, and at which shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmcli.config import BACKENDS
from gmcli.errors import EngineError
from gmcli.resources import share_dir
from gmcli.yaml_fields import plain, read_fields
from gmcli.yaml_lines import Node

COMPONENTS = ("clip", "sam_image_encoder", "sam_mask_decoder", "llm")
DEVICES = ("cpu", "cuda")
PRECISIONS = ("full", "reduced")


@dataclass(frozen=True, slots=True)
class EngineRecipe:
    """Say how one component is built and how well it must do.

    `batch` maps a device type to the largest batch of one call. `backends` may compile the component; asked for another
    one, it runs uncompiled, as the run's record says. `tolerance` maps a precision, "full" (float32) or "reduced", to the
    least mask IoU against the uncompiled component.
    """

    component: str
    batch: Mapping[str, int]
    backends: tuple[str, ...]
    tolerance: Mapping[str, float]


def load_recipe(component: str, folder: Path | None = None) -> EngineRecipe:
    """Read the recipe of one component from engines/; raise EngineError with file and line where it is wrong."""
    path = (folder or share_dir("engines")) / f"{component}.yaml"
    checks = {"component": _one_of(component), "batch": _batch, "backends": _backends, "tolerance": _tolerance}
    fields = read_fields(path, checks, EngineError)
    missing = [name for name in checks if name not in fields]
    if missing:
        raise EngineError(f"{path}:1: missing: {', '.join(missing)}")
    return EngineRecipe(**fields)


def _one_of(*choices: str) -> Any:
    def read(node: Node) -> str:
        if node.value not in choices:
            raise ValueError(f"must be {' or '.join(choices)}, not {node}")
        return str(node.value)

    return read


def _batch(node: Node) -> dict[str, int]:
    value = plain(node)
    if (
        not isinstance(value, dict)
        or set(value) != set(DEVICES)
        or any(type(n) is not int or n < 1 for n in value.values())
    ):
        raise ValueError(f"must give a whole number above 0 for each of {', '.join(DEVICES)}")
    return value


def _backends(node: Node) -> tuple[str, ...]:
    value = plain(node)
    if not isinstance(value, list) or not value or any(name not in BACKENDS for name in value):
        raise ValueError(f"must list some of {', '.join(BACKENDS)}")
    return tuple(value)


def _tolerance(node: Node) -> dict[str, float]:
    value = plain(node)
    if (
        not isinstance(value, dict)
        or set(value) != set(PRECISIONS)
        or any(not isinstance(v, int | float) or not 0 < v <= 1 for v in value.values())
    ):
        raise ValueError(f"must give a number above 0, at most 1, for each of {', '.join(PRECISIONS)}")
    return {name: float(v) for name, v in value.items()}
