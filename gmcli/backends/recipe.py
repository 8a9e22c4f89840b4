"""Read engine recipes: which backend runs a component, and at which shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmcli.errors import EngineError
from gmcli.resources import share_dir
from gmcli.yaml_fields import plain, read_fields
from gmcli.yaml_lines import Node

COMPONENTS = ("clip", "sam_image_encoder", "sam_mask_decoder")
BACKENDS = ("eager",)
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class EngineRecipe:
    """Say how one component runs. `batch` maps a device type to the largest batch of one call."""

    component: str
    backend: str
    batch: Mapping[str, int]


def load_recipe(component: str, folder: Path | None = None) -> EngineRecipe:
    """Read the recipe of one component from engines/; raise EngineError with file and line where it is wrong."""
    path = (folder or share_dir("engines")) / f"{component}.yaml"
    fields = read_fields(
        path, {"component": _one_of(component), "backend": _one_of(*BACKENDS), "batch": _batch}, EngineError
    )
    missing = [name for name in ("component", "backend", "batch") if name not in fields]
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
