"""Read what a training of kind `mora` keeps, and lay it over the checkpoint that it started from, without peft.

A stage's folder holds adapter.json (how to read the weights) and last/model.safetensors (trained weights and LoRA).
Source: LISA merge_lora_weights_and_save_hf_model.py; peft, lora/layer.py (get_delta_weight).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gmcli.checkpoints.folder import read_json
from gmcli.checkpoints.load import Source
from gmcli.checkpoints.weights import open_safetensors, read_headers
from gmcli.errors import CheckpointError
from gmcli.model.config import MoraConfig
from gmcli.text import one_line

ADAPTER = "adapter.json"
ADAPTER_FORMAT = "gmcli-lora-1"

_WEIGHTS = "last/model.safetensors"
_PREFIX = "mora."
_LORA = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])\.default\.weight")


@dataclass(frozen=True, slots=True)
class Delta:
    """Name the two halves of a weight's LoRA: the weight becomes W + scale · B A. A: [r, in], B: [out, r]."""

    file: Path
    a: str
    b: str
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    scale: float

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the merged weight, added up in float32, in the weight's type."""
        with open_safetensors(self.file) as opened:
            product: torch.Tensor = opened.get_tensor(self.b).float() @ opened.get_tensor(self.a).float()
        return (weight.float() + product * self.scale).to(weight.dtype)


@dataclass(frozen=True, slots=True)
class Adapter:
    """Hold what training changed: the configuration, the vocabulary, weights in full, weights by LoRA (our names).

    `base` is the fingerprint of the checkpoint that training started from.
    """

    base: str
    config: MoraConfig
    added: Mapping[str, int]
    sources: Mapping[str, Source]
    deltas: Mapping[str, Delta]


def read_adapter(folder: Path) -> Adapter:
    """Read a stage's folder. Raises CheckpointError where it is none, or its training has saved nothing yet."""
    path, weights = folder / ADAPTER, folder / _WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing", "Name the folder of a stage of kind mora.")
    value = read_json(path)
    if value.get("format") != ADAPTER_FORMAT:
        raise CheckpointError(
            f"{path}: format {value.get('format')!r} is not {ADAPTER_FORMAT!r}",
            "Name the folder of a stage of kind mora.",
        )
    _check_record(path, value)
    if not weights.is_file():
        raise CheckpointError(f"{weights}: is missing", "The training has saved nothing yet.")
    scale = value["lora"]["alpha"] / value["lora"]["r"]
    sources: dict[str, Source] = {}
    halves: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for key, shape, dtype in read_headers(weights):
        name = key.removeprefix(_PREFIX)
        if match := _LORA.fullmatch(name):
            halves.setdefault(f"{match['layer']}.weight", {})[match["half"]] = key, shape
        elif isinstance(dtype, torch.dtype):
            sources[name] = Source(weights, key, shape, dtype)
    if alone := [name for name, half in halves.items() if len(half) < 2]:
        raise CheckpointError(
            f"{weights}: half of the LoRA of {one_line(alone[0])} is missing", "Train the stage again."
        )
    return Adapter(
        base=value["base"],
        config=MoraConfig.from_json(value["config"], str(path)),
        added=value["added_tokens"],
        sources=sources,
        deltas={
            name: Delta(weights, half["A"][0], half["B"][0], half["A"][1], half["B"][1], scale)
            for name, half in halves.items()
        },
    )


def _check_record(path: Path, value: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless an adapter.json has the fields and types that adapter_record writes."""
    lora, added = value.get("lora"), value.get("added_tokens")
    good = (
        isinstance(value.get("base"), str)
        and isinstance(value.get("config"), Mapping)
        and isinstance(lora, Mapping)
        and all(type(lora.get(name)) is int and 0 < lora[name] < 1 << 20 for name in ("r", "alpha"))
        and isinstance(added, Mapping)
        and all(type(i) is int and i >= 0 for i in added.values())
    )
    if not good:
        raise CheckpointError(f"{path}: not what a training of kind mora writes", "Train the stage again.")


def delta_problems(deltas: Mapping[str, Delta], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """List the LoRAs that do not fit their weights: two small halves can multiply to any size."""
    problems = [f"LoRA of an unknown weight: {one_line(name)}" for name in deltas if name not in shapes]
    for name, delta in deltas.items():
        a, b = delta.a_shape, delta.b_shape
        fits = len(a) == len(b) == 2 and a[0] == b[1] and (b[0], a[1]) == shapes.get(name)
        if name in shapes and not fits:
            problems.append(
                f"LoRA of another shape: {name} is {list(shapes[name])}, its halves {list(b)} and {list(a)}"
            )
    return problems


def adapter_record(config: MoraConfig, added: Mapping[str, int], *, base: str, r: int, alpha: int) -> dict[str, Any]:
    """Return the content of adapter.json."""
    return {
        "format": ADAPTER_FORMAT,
        "base": base,
        "lora": {"r": r, "alpha": alpha},
        "added_tokens": dict(added),
        "config": config.to_json(),
    }
