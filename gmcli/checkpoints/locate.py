"""Find a checkpoint's files and check all that can be checked without torch.

Two layouts load: gmcli's own (config.json with "format", model.safetensors, tokenizer.model, added_tokens.json) and the
original Hugging Face layout of LISA and MoRA (config.json of LlavaConfig, sharded weights, slow tokenizer files), whose
vision tower is a second folder or hub name.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gmcli.errors import CheckpointError, GmcliError, UsageError
from gmcli.model.tokenizer import Tokenizer
from gmcli.resources import share_dir

OWN_FORMAT = "gmcli-mora-1"
SHIPPED = "mora-tiny"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """Name the files of one checkpoint. `vision_tower` is set for the original layout only."""

    ref: str
    path: Path
    layout: Literal["gmcli", "original"]
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    tokenizer: Path
    vision_tower: "VisionTowerFiles | None" = None


@dataclass(frozen=True, slots=True)
class VisionTowerFiles:
    """Name the files of a CLIP vision tower."""

    path: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]


def locate_checkpoint(ref: str, *, revision: str | None = None, vision_tower: str | None = None) -> CheckpointFiles:
    """Find a checkpoint by folder, hub name or "mora-tiny" (the one that ships with gmcli).

    vision_tower: overrides the folder or hub name that an original checkpoint names.
    Names that are no folder are looked up on the hub; its cache and offline mode are respected.
    Raises CheckpointError where files are missing or [SEG] is not in the vocabulary, UsageError where an argument does not
    apply.
    """
    path = _folder(ref, revision)
    config = _read_json(path / "config.json")
    own = "format" in config
    if own and vision_tower is not None:
        raise UsageError(f"{ref}: holds its own vision tower", "Leave --vision-tower out.")
    if own and config["format"] != OWN_FORMAT:
        raise CheckpointError(
            f"{path / 'config.json'}: format {config['format']!r} is not {OWN_FORMAT!r}",
            "It was written by another version of gmcli; convert the original checkpoint again.",
        )
    if not own:
        _check_original_config(path, config)
    tokenizer = path / "tokenizer.model"
    if not tokenizer.is_file():
        raise CheckpointError(f"{path}: tokenizer.model is missing")
    files = CheckpointFiles(
        ref=ref,
        path=path,
        layout="gmcli" if own else "original",
        config=config,
        weights=_weight_files(path),
        tokenizer=tokenizer,
        vision_tower=None if own else _locate_tower(path, config, vision_tower),
    )
    read_tokenizer(files)
    return files


def read_tokenizer(files: CheckpointFiles) -> Tokenizer:
    """Build the tokenizer; raise CheckpointError unless it knows [SEG] and fits the embedding table."""
    added = _added_tokens(files.path)
    tokenizer = Tokenizer(files.tokenizer, added)
    own = files.layout == "gmcli"
    seg = files.config.get("seg_token", "[SEG]")
    if tokenizer.token_id(seg) is None:
        raise CheckpointError(
            f"{files.path}: the vocabulary has no {seg} token, so the model cannot point at anything",
            "Use a LISA or MoRA checkpoint; a plain LLaVA or LLaMA cannot answer with masks.",
        )
    vocabulary = files.config.get("llm", {}).get("vocab_size") if own else files.config.get("vocab_size")
    if isinstance(vocabulary, int) and len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"{files.path}: the tokenizer has {len(tokenizer)} ids, config.json says vocab_size {vocabulary}"
        )
    return tokenizer


def fingerprint(files: CheckpointFiles) -> str:
    """Hash the content of everything that decides the answers: configuration, vocabulary and weights (sha256, hex).

    Every byte is read, several files at a time. Files of the hub's cache carry their hash as their name and are not read.
    """
    listed = [files.path / "config.json", files.tokenizer, files.path / "added_tokens.json", *files.weights]
    if files.vision_tower:
        listed += [files.vision_tower.path / "config.json", *files.vision_tower.weights]
    present = [p for p in listed if p.is_file()]
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(_file_hash, present))
    total = hashlib.sha256()
    for path, digest in zip(present, hashes, strict=True):
        total.update(f"{path.name}\0{digest}\n".encode())
    return total.hexdigest()


def _file_hash(path: Path) -> str:
    # Large files of the hub's cache are links to blobs named by their sha256.
    blob = path.resolve().name
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(ref: str, revision: str | None) -> Path:
    path = share_dir("checkpoints") / SHIPPED if ref == SHIPPED else Path(ref)
    if revision is not None and path.is_dir():
        raise UsageError(f"{ref}: a folder has no revision", "Leave --revision out, or give a hub name.")
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise CheckpointError(f"{ref}: a checkpoint is a folder, this is a file", "Name the folder that holds it.")
    if _HUB_NAME.fullmatch(ref):
        return _from_hub(ref, revision)
    raise CheckpointError(
        f"{ref}: no such checkpoint", f'Give a folder, a hub name such as "xinlai/LISA-7B-v1", or "{SHIPPED}".'
    )


def _from_hub(name: str, revision: str | None) -> Path:
    """Download a repository, or find it in the hub's cache; safetensors where there are any, .bin files otherwise."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    def fetch(*patterns: str) -> Path:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))

    try:
        folder = fetch("*.json", "tokenizer.model", "model*.safetensors")
        if not any(folder.glob("model*.safetensors")):
            folder = fetch("pytorch_model*.bin")
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name}: no folder of that name here, and the hub did not give it ({reason})",
            "Check the name and the revision, log in with `hf auth login`, or download it once and name the folder.",
        ) from None
    return folder


def _locate_tower(checkpoint: Path, config: Mapping[str, Any], override: str | None) -> VisionTowerFiles:
    named = override or config.get("mm_vision_tower") or config.get("vision_tower")
    if not isinstance(named, str):
        raise CheckpointError(
            f"{checkpoint / 'config.json'}: names no mm_vision_tower", "Give one with --vision-tower FOLDER."
        )
    # The published scripts run from the folder that holds both, so a relative name may mean any of these.
    candidates = [Path(named), checkpoint / named, checkpoint.parent / named]
    folder = next((c for c in candidates if c.is_dir()), None)
    if folder is None:
        try:
            folder = _folder(named, None)
        except GmcliError as error:
            raise CheckpointError(
                f"{checkpoint}: its vision tower was not found. {error.message}",
                "Give a folder with --vision-tower, or download openai/clip-vit-large-patch14 once.",
            ) from None
    return VisionTowerFiles(folder.resolve(), _read_json(folder / "config.json"), _weight_files(folder))


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """Return one weight file or all shards that an index lists; safetensors first, as pickles need more trust."""
    for name in _WEIGHT_NAMES:
        if (folder / name).is_file():
            return (folder / name,)
        index = folder / f"{name}.index.json"
        if index.is_file():
            mapping = _read_json(index).get("weight_map")
            if not isinstance(mapping, dict) or not all(isinstance(v, str) for v in mapping.values()):
                raise CheckpointError(f"{index}: has no weight_map")
            names = sorted(set(mapping.values()))
            bad = [n for n in names if Path(n).name != n]
            if bad:
                raise CheckpointError(f"{index}: {bad[0]!r} is not a plain file name")
            missing = [n for n in names if not (folder / n).is_file()]
            if missing:
                raise CheckpointError(f"{folder}: shards are missing: {', '.join(missing)}", "Download them again.")
            return tuple(folder / n for n in names)
    raise CheckpointError(f"{folder}: no weights", f"Expected {' or '.join(_WEIGHT_NAMES)}, or an index of shards.")


def _added_tokens(folder: Path) -> dict[str, int]:
    """Read the added tokens of either kind of tokenizer file."""
    path = folder / "added_tokens.json"
    if path.is_file():
        added: Any = _read_json(path)
    else:
        path = folder / "tokenizer_config.json"
        decoder = _read_json(path).get("added_tokens_decoder", {}) if path.is_file() else {}
        sp_special = {"<s>", "</s>", "<unk>"}
        added = {
            entry["content"]: int(i)
            for i, entry in decoder.items()
            if isinstance(entry, dict) and entry.get("content") not in sp_special
        }
    if not all(isinstance(k, str) and k and type(v) is int and v >= 0 for k, v in added.items()):
        raise CheckpointError(f"{path}: expected an object of token names and ids")
    return dict(added)


def _check_original_config(path: Path, config: Mapping[str, Any]) -> None:
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
            + ", ".join(missing)
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: {path.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return value
