"""Describe a built engine: what it was built from, and the folder that holds it, checked before anything is loaded.

engine.json   what the engine is: its key in clear, its files with sizes and sha256, the results of its verification
…             the files the backend wrote, all in this one folder

An engine is code that will run here. So a folder counts only if it holds exactly the files that engine.json names, with
exactly those contents; and engine.json is JSON, checked field by field. engine.json carries a hash of itself, against
rotten disks and casual edits, not against an attacker: that is what the private folder around it is for (see store.py).
"""

import errno
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from gmcli.errors import EngineError
from gmcli.files import fsync_directory

ENGINE = "engine.json"
FORMAT = 1
MANIFEST_BYTES = 1 << 20  # a manifest has some kilobytes; more is none of ours and is not read

_WORD = re.compile(r"[a-z0-9_]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_FIELDS = {"format", "key", "key_sha256", "created", "files", "facts", "sha256"}
_REMEDY = "`gmcli engines prune` removes it; the next run that needs it builds it again."
# Reading fails so where a folder is damaged. Anything else (too many open files, say) tells nothing about the engine.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EIO}


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Say everything that a built engine depends on; engines of equal keys are interchangeable.

    `shapes` and `settings` (dtype, …) can be written as JSON. `versions` is what Backend.versions says: libraries and
    hardware. Raises EngineError where a name or a hash is none.
    """

    component: str
    backend: str
    weights_sha256: str
    recipe_sha256: str
    shapes: Any
    settings: Mapping[str, Any]
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        """Check what becomes part of file names and what the store compares."""
        for name, pattern in (
            ("component", _WORD),
            ("backend", _WORD),
            ("weights_sha256", _SHA256),
            ("recipe_sha256", _SHA256),
        ):
            value = getattr(self, name)
            if not (isinstance(value, str) and pattern.fullmatch(value)):
                raise EngineError(f"an engine's {name} must match {pattern.pattern}, not {value!r}")
        if not (_is_object(self.settings) and _is_object(self.versions)):
            raise EngineError("an engine's settings and versions must be mappings by name")
        if not all(isinstance(version, str) for version in self.versions.values()):
            raise EngineError("an engine's versions must be strings")

    @property
    def digest(self) -> str:
        """Hash the key (sha256, hex). The manifest's format counts: gmcli versions of two formats share a store."""
        return hashlib.sha256(canonical({"format": FORMAT, **self.values()})).hexdigest()

    @property
    def name(self) -> str:
        """Return the name of the engine's folder."""
        return f"{self.component}-{self.backend}-{self.digest[:16]}"

    def values(self) -> dict[str, Any]:
        """Return the fields as what JSON knows."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**plain, "settings": dict(self.settings), "versions": dict(self.versions)}


@dataclass(frozen=True, slots=True)
class EngineFile:
    """Say what a file of an engine holds."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Engine:
    """Hold what is known of the engine in a folder.

    `created` is UTC, ISO 8601; `facts` are what its build returned: the results of its verification.
    """

    key: EngineKey
    path: Path
    created: str
    files: Mapping[str, EngineFile]
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the name that the store knows the engine by."""
        return self.path.name

    @property
    def size_bytes(self) -> int:
        """Return what the files of the engine take."""
        return sum(file.bytes for file in self.files.values())


def canonical(value: Any) -> bytes:
    """Return the one JSON text that equal values have. Raises TypeError or ValueError where a value is not of JSON."""
    # The first pass turns tuples into lists and keys into strings, so that the sorting is that of a value read back.
    plain = json.loads(json.dumps(value, allow_nan=False))
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def plain_files(folder: Path, hint: str | None = None) -> dict[str, os.stat_result]:
    """Return the files of a folder by name; raise EngineError if it holds anything but plain files with plain names."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _PLAIN.fullmatch(entry.name):
                raise EngineError(f"{folder}: holds a file named {entry.name!r}", hint)
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                raise EngineError(f"{folder / entry.name}: not a plain file", hint)
            found[entry.name] = status
    return found


def seal(folder: Path, key: EngineKey, facts: Mapping[str, Any]) -> None:
    """Hash a folder's files, write its engine.json last, and make all of it durable.

    Raises EngineError where the folder is empty or holds what no engine may, or where `facts` cannot be written as
    JSON; OSError where the disk fails.
    """
    names = sorted(plain_files(folder))
    if not names or ENGINE in names:
        raise EngineError(f"{key.backend} wrote no files for {key.component}, or one named {ENGINE}")
    files = {name: asdict(_hash_file(folder / name, durably=True)) for name in names}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "key": key.values(),
        "key_sha256": key.digest,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "files": files,
        "facts": dict(facts),
    }
    try:
        manifest["sha256"] = hashlib.sha256(canonical(manifest)).hexdigest()
        text = json.dumps(manifest, indent=2).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise EngineError(f"the facts of {key.name} cannot be written as JSON ({error})") from None
    if len(text) > MANIFEST_BYTES:
        raise EngineError(f"the facts of {key.name} are too long: {len(text)} bytes")
    with (folder / ENGINE).open("xb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(folder)


def read_engine(folder: Path, *, hashes: bool) -> Engine:
    """Read an engine's manifest and compare its files with it: names, kinds and sizes, and contents where `hashes`.

    Raises EngineError, naming the file, where anything is not as it was when the engine was stored.
    """
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            _refuse(folder, "not a folder")
        engine = _parse(folder, _read_manifest(folder / ENGINE))
        found = plain_files(folder, _REMEDY)
        for name in sorted({*engine.files, ENGINE} | set(found)):
            if name not in found:
                _refuse(folder / name, "missing")
            if name != ENGINE and name not in engine.files:
                _refuse(folder / name, f"{ENGINE} does not know it")
            if name != ENGINE and found[name].st_size != engine.files[name].bytes:
                _refuse(folder / name, f"has {found[name].st_size} bytes, had {engine.files[name].bytes}")
        for name in sorted(engine.files) if hashes else ():
            if _hash_file(folder / name) != engine.files[name]:
                _refuse(folder / name, "its content has changed (sha256)")
    except OSError as error:
        if error.errno not in _DAMAGE:
            raise
        _refuse(Path(error.filename or folder), f"cannot be read ({error.strerror})")
    return engine


def _refuse(path: Path, why: str) -> NoReturn:
    raise EngineError(f"{path}: {why}", _REMEDY)


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read engine.json as far as to know that it is as it was written."""
    # Opening a named pipe would wait for its other end.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        content = file.read(MANIFEST_BYTES + 1)
    if len(content) > MANIFEST_BYTES:
        _refuse(path, "too long for an engine's manifest")
    try:
        value = json.loads(content)
        rest = canonical({k: v for k, v in value.items() if k != "sha256"})
    except (ValueError, AttributeError, RecursionError):
        _refuse(path, "not an engine's manifest")
    if type(value.get("format")) is not int or value["format"] != FORMAT:
        _refuse(path, f"format {value.get('format')!r}, which this gmcli does not know")
    if set(value) != _FIELDS:
        _refuse(path, "not an engine's manifest")
    if value["sha256"] != hashlib.sha256(rest).hexdigest():
        _refuse(path, "its content has changed (sha256)")
    return dict(value)


def _parse(folder: Path, value: Mapping[str, Any]) -> Engine:
    path = folder / ENGINE
    key, files = value["key"], value["files"]
    if not (_is_object(key) and set(key) == {field.name for field in fields(EngineKey)}):
        _refuse(path, "its key is not an engine's")
    try:
        known = EngineKey(**key)
    except EngineError as error:
        _refuse(path, error.message)
    if known.digest != value["key_sha256"] or known.name != folder.name:
        _refuse(path, "its key is that of another engine")
    if not (_is_object(files) and files and all(map(_is_file, files, files.values()))):
        _refuse(path, "its files are not an engine's")
    if not (isinstance(value["created"], str) and _TIME.fullmatch(value["created"]) and _is_object(value["facts"])):
        _refuse(path, "not an engine's manifest")
    return Engine(
        known, folder, value["created"], {name: EngineFile(**file) for name, file in files.items()}, value["facts"]
    )


def _is_file(name: str, value: object) -> bool:
    return (
        bool(_PLAIN.fullmatch(name))
        and name != ENGINE
        and isinstance(value, dict)
        and set(value) == {"sha256", "bytes"}
        and isinstance(value["sha256"], str)
        and bool(_SHA256.fullmatch(value["sha256"]))
        and type(value["bytes"]) is int
        and value["bytes"] >= 0
    )


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _hash_file(path: Path, *, durably: bool = False) -> EngineFile:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if durably:
            os.fsync(file.fileno())
        return EngineFile(digest, os.fstat(file.fileno()).st_size)
