"""Read what a training of kind `mora` keeps, and lay it over the checkpoint that it started from, without peft.

A stage's folder holds adapter.json (how to read the weights) and last/model.safetensors (trained weights and LoRA).
Source: LISA merge_lora_weights_and_save_hf_model.py; peft, lora/layer.py (get_delta_weight).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from gmcli.checkpoints.load import Source, read_headers
from gmcli.errors import CheckpointError
from gmcli.model.config import MoraConfig

ADAPTER = "adapter.json"
ADAPTER_FORMAT = "gmcli-lora-1"

_WEIGHTS = "last/model.safetensors"
_PREFIX = "mora."
_LORA = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])\.default\.weight")


@dataclass(frozen=True, slots=True)
class Delta:
    """Name the two halves of a weight's LoRA: the weight becomes W + scale · B A."""

    file: Path
    a: str
    b: str
    scale: float

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the merged weight, added up in float32, in the weight's type."""
        with safe_open(self.file, framework="pt") as opened:
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
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})", "Name the folder of a stage of kind mora.") from None
    if value.get("format") != ADAPTER_FORMAT:
        raise CheckpointError(f"{path}: format {value.get('format')!r} is not {ADAPTER_FORMAT!r}")
    if not weights.is_file():
        raise CheckpointError(f"{weights}: is missing", "The training has saved nothing yet.")
    scale = value["lora"]["alpha"] / value["lora"]["r"]
    sources: dict[str, Source] = {}
    halves: dict[str, dict[str, str]] = {}
    for key, shape, dtype in read_headers(weights):
        name = key.removeprefix(_PREFIX)
        if match := _LORA.fullmatch(name):
            halves.setdefault(f"{match['layer']}.weight", {})[match["half"]] = key
        elif isinstance(dtype, torch.dtype):
            sources[name] = Source(weights, key, shape, dtype)
    return Adapter(
        base=value["base"],
        config=MoraConfig.from_json(value["config"], str(path)),
        added=value["added_tokens"],
        sources=sources,
        deltas={name: Delta(weights, half["A"], half["B"], scale) for name, half in halves.items()},
    )


def adapter_record(config: MoraConfig, added: Mapping[str, int], *, base: str, r: int, alpha: int) -> dict[str, Any]:
    """Return the content of adapter.json."""
    return {
        "format": ADAPTER_FORMAT,
        "base": base,
        "lora": {"r": r, "alpha": alpha},
        "added_tokens": dict(added),
        "config": config.to_json(),
    }
