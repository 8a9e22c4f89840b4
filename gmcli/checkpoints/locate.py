"""Find a checkpoint's files and check all that can be checked without torch.

Two layouts load: gmcli's own (config.json with "format", model.safetensors, tokenizer.model, added_tokens.json) and the
original Hugging Face layout of LISA and MoRA (config.json of LlavaConfig, sharded weights, slow tokenizer files), whose
vision tower is a second folder or hub name.
"""

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gmcli.checkpoints.folder import TOKENIZER_BYTES, added_tokens, check_original_config, read_json, weight_files
from gmcli.checkpoints.hub import HUB_NAME, commit_of, from_hub
from gmcli.errors import CheckpointError, GmcliError, UsageError
from gmcli.model.tokenizer import Tokenizer
from gmcli.resources import share_dir

OWN_FORMAT = "gmcli-mora-1"
SHIPPED = "mora-tiny"
_LONGEST_NAME = 1024


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """Name the files of one checkpoint. `vision_tower` is set for the original layout only.

    `commit` is the hub's, where the files come from its cache. `stamps` say which files these were when they were found:
    inode, size, times.
    """

    ref: str
    path: Path
    layout: Literal["gmcli", "original"]
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    tokenizer: Path
    vision_tower: "VisionTowerFiles | None" = None
    commit: str | None = None
    stamps: tuple[tuple[int, ...], ...] = ()

    @property
    def decisive(self) -> list[Path]:
        """Return the files that decide the answers: configuration, vocabulary and weights."""
        listed = [self.path / "config.json", self.tokenizer, self.path / "added_tokens.json", *self.weights]
        if not listed[2].is_file():
            listed[2] = self.path / "tokenizer_config.json"
        if self.vision_tower:
            listed += [self.vision_tower.path / "config.json", *self.vision_tower.weights]
        return [path for path in listed if path.is_file()]

    @property
    def commits(self) -> dict[str, str]:
        """Return the hub's commits that the files are of, by name, for the record; empty where no hub was asked."""
        tower = self.vision_tower.commit if self.vision_tower else None
        named = {"checkpoint_commit": self.commit, "vision_tower_commit": tower}
        return {name: commit for name, commit in named.items() if commit}


@dataclass(frozen=True, slots=True)
class VisionTowerFiles:
    """Name the files of a CLIP vision tower."""

    path: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    commit: str | None = None


def locate_checkpoint(
    ref: str, *, revision: str | None = None, vision_tower: str | None = None, require_sha256: str | None = None
) -> CheckpointFiles:
    """Find a checkpoint by folder, hub name or "mora-tiny" (the one that ships with gmcli).

    vision_tower: overrides the folder or hub name that an original checkpoint names.
    require_sha256: the fingerprint that the checkpoint must have; nothing but its JSON files is read before it is known.
    Names that are no folder are looked up on the hub; its cache and offline mode are respected.
    Raises CheckpointError where files are missing, the content is not the required one or [SEG] is not in the vocabulary,
    UsageError where an argument does not apply.
    """
    path = _folder(ref, revision)
    config = read_json(path / "config.json")
    own = "format" in config
    if own and vision_tower is not None:
        raise UsageError(f"{ref}: holds its own vision tower", "Leave --vision-tower out.")
    if own and config["format"] != OWN_FORMAT:
        raise CheckpointError(
            f"{path / 'config.json'}: format {config['format']!r} is not {OWN_FORMAT!r}",
            "It was written by another version of gmcli; convert the original checkpoint again.",
        )
    if own and not isinstance(config.get("llm"), Mapping):
        raise CheckpointError(
            f"{path / 'config.json'}: llm: expected an object", "Convert the original checkpoint again."
        )
    if not own:
        check_original_config(path, config)
    tokenizer = path / "tokenizer.model"
    if not tokenizer.is_file():
        raise CheckpointError(f"{path}: tokenizer.model is missing", "Take it from where the checkpoint comes from.")
    if tokenizer.stat().st_size > TOKENIZER_BYTES:
        raise CheckpointError(f"{tokenizer}: has more than {TOKENIZER_BYTES} bytes", "This is no vocabulary.")
    files = CheckpointFiles(
        ref=ref,
        path=path,
        layout="gmcli" if own else "original",
        config=config,
        weights=weight_files(path),
        tokenizer=tokenizer,
        vision_tower=None if own else _locate_tower(path, config, vision_tower),
        commit=commit_of(path),
    )
    files = replace(files, stamps=_stamps(files))
    if require_sha256 is not None:
        _require(files, require_sha256)
    read_tokenizer(files)
    return files


def read_tokenizer(files: CheckpointFiles) -> Tokenizer:
    """Build the tokenizer; raise CheckpointError unless it knows [SEG] and fits the embedding table."""
    added = added_tokens(files.path)
    tokenizer = Tokenizer(files.tokenizer, added)
    own = files.layout == "gmcli"
    seg = files.config.get("seg_token", "[SEG]")
    if not isinstance(seg, str) or tokenizer.token_id(seg) is None:
        raise CheckpointError(
            f"{files.path}: the vocabulary has no {seg} token, so the model cannot point at anything",
            "Use a LISA or MoRA checkpoint; a plain LLaVA or LLaMA cannot answer with masks.",
        )
    vocabulary = files.config["llm"].get("vocab_size") if own else files.config.get("vocab_size")
    if isinstance(vocabulary, int) and len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"{files.path}: the tokenizer has {len(tokenizer)} ids, config.json says vocab_size {vocabulary}",
            "Take both from the same checkpoint.",
        )
    return tokenizer


def fingerprint(files: CheckpointFiles, *, read_all: bool = False) -> str:
    """Hash the content of everything that decides the answers: configuration, vocabulary and weights (sha256, hex).

    Every byte is read, several files at a time; but files of the hub's cache carry their hash as their name, which is
    believed unless `read_all`: whoever can write there can name a file as he likes.
    """
    listed = files.decisive
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(_read_hash if read_all else _file_hash, listed))
    total = hashlib.sha256()
    for path, digest in zip(listed, hashes, strict=True):
        total.update(f"{path.name}\0{digest}\n".encode())
    return total.hexdigest()


def _require(files: CheckpointFiles, wanted: str) -> None:
    found = fingerprint(files, read_all=True)
    if found != wanted:
        raise CheckpointError(
            f"{files.ref}: its content is not the required one\n  required {wanted}\n  found    {found}",
            "Nothing was loaded. Get the checkpoint again, or ask for the hash of whoever gave it to you.",
        )


def unpinned(files: CheckpointFiles, revision: str | None) -> list[str]:
    """Say which hub names may mean other files tomorrow: those that no commit was given for."""
    found = []
    if files.commit and revision != files.commit:
        found.append(f"{files.ref}: its newest commit was taken; --revision {files.commit} pins it")
    if files.vision_tower and files.vision_tower.commit:
        found.append(
            f"the vision tower comes from the hub, at its newest commit {files.vision_tower.commit}; --require-sha256 pins "
            "its content, a folder as --vision-tower its place"
        )
    return found


def check_unchanged(files: CheckpointFiles) -> None:
    """Raise CheckpointError where a file is not the one that was found: what was hashed is to be what is loaded."""
    if files.stamps and files.stamps != _stamps(files):
        raise CheckpointError(
            f"{files.path}: its files have changed since they were checked",
            "Run the same command again, when nobody writes there.",
        )


def _stamps(files: CheckpointFiles) -> tuple[tuple[int, ...], ...]:
    found = (path.stat() for path in files.decisive)
    return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found)


def _file_hash(path: Path) -> str:
    # Large files of the hub's cache are links to blobs named by their sha256.
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", path.resolve().name):
        from huggingface_hub import constants

        if path.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve()):
            return path.resolve().name
    return _read_hash(path)


def _read_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(ref: str, revision: str | None) -> Path:
    if len(ref) > _LONGEST_NAME:
        raise CheckpointError(f"{ref[:80]}…: no such checkpoint", "Give a folder or a hub name.")
    path = share_dir("checkpoints") / SHIPPED if ref == SHIPPED else Path(ref)
    if revision is not None and path.is_dir():
        raise UsageError(f"{ref}: a folder has no revision", "Leave --revision out, or give a hub name.")
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise CheckpointError(f"{ref}: a checkpoint is a folder, this is a file", "Name the folder that holds it.")
    if HUB_NAME.fullmatch(ref):
        return from_hub(ref, revision)
    raise CheckpointError(
        f"{ref}: no such checkpoint", f'Give a folder, a hub name such as "xinlai/LISA-7B-v1", or "{SHIPPED}".'
    )


def _locate_tower(checkpoint: Path, config: Mapping[str, Any], override: str | None) -> VisionTowerFiles:
    named = override or config.get("mm_vision_tower") or config.get("vision_tower")
    if not isinstance(named, str) or len(named) > _LONGEST_NAME:
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
    folder = folder.resolve()
    return VisionTowerFiles(folder, read_json(folder / "config.json"), weight_files(folder), commit_of(folder))
