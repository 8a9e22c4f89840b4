"""Write a checkpoint in gmcli's own layout: one safetensors file, configuration, tokenizer, model card."""

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from tqdm import tqdm

from gmcli import __version__
from gmcli.checkpoints.load import DTYPES, Source, check_checkpoint, key_problems
from gmcli.checkpoints.locate import OWN_FORMAT, CheckpointFiles, check_unchanged, fingerprint, read_tokenizer
from gmcli.checkpoints.lora import Delta, delta_problems, read_adapter
from gmcli.checkpoints.sizes import size_problems
from gmcli.checkpoints.weights import STORED_TYPES, open_safetensors, read_tensors
from gmcli.errors import CheckpointError, EnvironmentProblem, UsageError
from gmcli.files import fsync_directory
from gmcli.model.config import MoraConfig

_TYPE_NAMES = {dtype: name for name, dtype in STORED_TYPES.items()}


@dataclass(frozen=True, slots=True)
class _Merged:
    """Hold what is written: the configuration, where each weight lies, the vocabulary, and what LoRA adds to which weight."""

    config: MoraConfig
    sources: Mapping[str, Source]
    added: Mapping[str, int]
    deltas: Mapping[str, Delta]


def convert(source: CheckpointFiles, destination: Path, dtype: str = "keep", adapter: Path | None = None) -> int:
    """Convert a checkpoint of either layout; return the number of tensors written.

    adapter: the folder of a training stage of kind `mora` that started from `source`; what it trained is merged.

    dtype: "keep" stores every tensor as it is; "fp32", "bf16" or "fp16" casts all. One tensor at a time is in memory.
    The destination must not exist. It appears whole or not at all.
    Raises CheckpointError where the source does not fit the model, EnvironmentProblem where writing fails.
    """
    if destination.exists():
        raise UsageError(f"{destination}: exists already", "Name a folder that does not exist yet.")
    merged = _Merged(*check_checkpoint(source), read_tokenizer(source).added, {})
    if adapter is not None:
        merged = _merge(source, merged, adapter)
    config, sources = merged.config, merged.sources
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as work:
            folder = Path(work) / "checkpoint"
            folder.mkdir()
            with (folder / "model.safetensors").open("wb") as file:
                _write_safetensors(file, merged, DTYPES.get(dtype))
            write_config(folder, config)
            shutil.copyfile(source.tokenizer, folder / "tokenizer.model")
            added = {token: i for i, token in sorted((i, t) for t, i in merged.added.items())}
            _write_json(folder / "added_tokens.json", added)
            (folder / "README.md").write_text(_model_card(source, config, sources, dtype, adapter), encoding="utf-8")
            for path in folder.iterdir():
                with path.open("rb") as written:
                    os.fsync(written.fileno())
            fsync_directory(folder)
            check_unchanged(source)
            folder.rename(destination)
            fsync_directory(destination.parent)
    except OSError as error:
        raise EnvironmentProblem(f"{destination}: cannot be written ({error.strerror})") from None
    return len(sources)


def _merge(source: CheckpointFiles, base: _Merged, adapter: Path) -> _Merged:
    """Lay a training's weights over those that it started from; refuse any others."""
    trained = read_adapter(adapter)
    if trained.base != fingerprint(source):
        raise CheckpointError(
            f"{adapter}: was not trained from {source.ref}",
            "Name the checkpoint that the training's configuration has as 'init' (or the best/ of the stage before).",
        )
    # A localizer of another number of bins is not the base's any more.
    kept = {k: v for k, v in base.sources.items() if trained.config.localizer_bins or not k.startswith("localizer.")}
    sources = kept | dict(trained.sources)
    shapes = {k: s.shape for k, s in sources.items()}
    problems = size_problems(trained.config, len(sources)) or key_problems(trained.config, shapes)
    problems += delta_problems(trained.deltas, shapes)
    if problems:
        raise CheckpointError(
            f"{adapter}: does not fit the model:\n  " + "\n  ".join(problems[:1000]),
            "Name the folder of a stage that was trained from this checkpoint.",
        )
    return _Merged(trained.config, sources, trained.added, trained.deltas)


def write_config(folder: Path, config: MoraConfig) -> None:
    """Write config.json of our own layout."""
    _write_json(folder / "config.json", {"format": OWN_FORMAT, **config.to_json()})


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_safetensors(file: BinaryIO, merged: _Merged, dtype: torch.dtype | None) -> None:
    """Write tensors one after another; the library's own writer would hold all of a 28 GB checkpoint in memory.

    Source: safetensors README, "Format".
    """
    sources = merged.sources
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(sources):
        kind = dtype or sources[name].dtype
        size = torch.Size(sources[name].shape).numel() * kind.itemsize
        header[name] = {
            "dtype": _TYPE_NAMES[kind],
            "shape": list(sources[name].shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    # A bar on a terminal, nothing elsewhere.
    for name, tensor in tqdm(_in_order(sources), total=len(sources), unit="tensor", disable=None):
        if name in merged.deltas:
            tensor = merged.deltas[name].added_to(tensor)
        data = tensor.to(dtype or sources[name].dtype).reshape(-1).contiguous()
        file.write(data.view(torch.uint8).numpy().data)


def _in_order(sources: Mapping[str, Source]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors by our names, sorted; lazily, so that files larger than memory pass through."""
    opened: dict[Path, object] = {}
    for name in sorted(sources):
        file = sources[name].file
        if file not in opened:
            opened[file] = open_safetensors(file) if file.suffix == ".safetensors" else dict(read_tensors(file))
        yield name, _get(opened[file], sources[name].key)


def _get(opened: object, key: str) -> torch.Tensor:
    if isinstance(opened, dict):
        found: torch.Tensor = opened[key]
        return found
    return opened.get_tensor(key)  # type: ignore[attr-defined,no-any-return]


def _model_card(
    source: CheckpointFiles, config: MoraConfig, sources: Mapping[str, Source], dtype: str, adapter: Path | None
) -> str:
    tower = f", vision tower `{source.vision_tower.path.name}`" if source.vision_tower else ""
    window = f"{config.localizer_bins} time bins" if config.localizer_bins else "none: every frame is inside the window"
    kept = "as stored" if dtype == "keep" else dtype
    done = "conversion changes names and layout only, nothing was trained"
    if adapter is not None:
        done = f"the weights trained in `{adapter.name}` (`gmcli train`) are merged into it"
    return f"""# {source.path.name}, converted for gmcli

| | |
|---|---|
| converted from | `{source.ref}`{tower} |
| fingerprint of the source | `{fingerprint(source)}` |
| converted by | gmcli {__version__} |
| tensors | {len(sources)}, {kept} |
| language model | {config.llm.num_hidden_layers} layers, hidden size {config.llm.hidden_size}, vocabulary {config.llm.vocab_size} |
| SAM image encoder | {config.sam.depth} layers, width {config.sam.embed_dim}, {config.sam.image_size} px |
| visual tokens | {config.visual_tokens} |
| localizer | {window} |

The licence is that of the source; {done}.
"""
