"""Read what lies in a checkpoint's folder beside the weights; none of it is believed before it is checked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmcli.errors import CheckpointError

# Configurations, indices and vocabularies take some kilobytes; LLaMA's tokenizer half a megabyte.
JSON_BYTES = 8 << 20
TOKENIZER_BYTES = 64 << 20
MOST_ADDED_TOKENS = 10_000
_MOST_ID = 1 << 24

_WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
_AGAIN = "Download it again, or write it as the checkpoint's makers did."


def read_json(path: Path) -> dict[str, Any]:
    """Read a small file that holds a JSON object. Raises CheckpointError."""
    if not path.is_file():  # a named pipe would wait for its other end
        raise CheckpointError(
            f"{path.parent}: {path.name} is missing", "A checkpoint's folder holds it; name that folder."
        )
    try:
        with path.open("rb") as file:
            content = file.read(JSON_BYTES + 1)
        if len(content) > JSON_BYTES:
            raise ValueError(f"more than {JSON_BYTES} bytes")
        value = json.loads(content.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})", _AGAIN) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object", _AGAIN)
    return value


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return one weight file or all shards that an index lists; safetensors first, as pickles need more trust."""
    for name in _WEIGHT_NAMES:
        if (folder / name).is_file():
            return (folder / name,)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(folder, index)
    raise CheckpointError(f"{folder}: no weights", f"Expected {' or '.join(_WEIGHT_NAMES)}, or an index of shards.")


def _shards(folder: Path, index: Path) -> tuple[Path, ...]:
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(v, str) for v in mapping.values()):
        raise CheckpointError(f"{index}: has no weight_map", _AGAIN)
    names = sorted(set(mapping.values()))
    bad = [n for n in names if Path(n).name != n or n in ("", "..") or len(n) > 200 or not n.isprintable()]
    if bad:
        raise CheckpointError(f"{index}: {bad[0][:200]!r} is not a plain file name", _AGAIN)
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        raise CheckpointError(f"{folder}: shards are missing: {', '.join(missing)}", "Download them again.")
    return tuple(folder / n for n in names)


def added_tokens(folder: Path) -> dict[str, int]:
    """Read the added tokens of either kind of tokenizer file. Raises CheckpointError."""
    path = folder / "added_tokens.json"
    if path.is_file():
        added: Any = read_json(path)
    else:
        path = folder / "tokenizer_config.json"
        decoder = read_json(path).get("added_tokens_decoder", {}) if path.is_file() else {}
        added = _from_decoder(decoder)
    good = isinstance(added, dict) and all(k and type(v) is int and 0 <= v < _MOST_ID for k, v in added.items())
    if not good or len(added) > MOST_ADDED_TOKENS:
        raise CheckpointError(
            f"{path}: expected an object of token names and ids, {MOST_ADDED_TOKENS} of them at most", _AGAIN
        )
    return dict(added)


def _from_decoder(decoder: Any) -> dict[str, int] | None:
    """Return the tokens of a tokenizer_config.json but those that sentencepiece knows; None where they make no sense."""
    sp_special = ("<s>", "</s>", "<unk>")
    try:
        named = [(entry["content"], int(i)) for i, entry in decoder.items()]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return {k: i for k, i in named if k not in sp_special} if all(isinstance(k, str) for k, _ in named) else None


def check_original_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless a config.json is that of a LISA or MoRA model as published."""
    needed = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
        "max_position_embeddings",
    )
    # What would change the forward pass and is not built here; None stands for a field that is not there.
    built = {
        "hidden_act": (None, "silu"),
        "rope_scaling": (None,),
        "mm_vision_select_feature": (None, "patch"),
        "mm_projector_type": (None, "linear"),
        "attention_bias": (None, False),
    }
    for name, values in built.items():
        if config.get(name) not in values:
            raise CheckpointError(
                f"{path / 'config.json'}: {name} is {config[name]!r}; only {values[-1]!r} is known here",
                "This is not a LISA or MoRA model as published.",
            )
    missing = [n for n in needed if type(config.get(n)) is not int]
    if missing:
        raise CheckpointError(
            f"{path / 'config.json'}: not a LISA or MoRA configuration; missing or not a whole number: "
            + ", ".join(missing),
            "Name the folder of a LISA or MoRA checkpoint.",
        )
