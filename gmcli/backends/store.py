"""Keep built engines: one folder an engine, in a folder that nobody else can enter, built once a machine.

<component>-<backend>-<16 hex>/   an engine: its files and engine.json (see engine_folder.py)
locks/<engine>.lock               shared while the engine is read, taken whole to remove it
locks/build.lock                  held while an engine is built: several at once have crashed each other
.tmp/                             what is being built or removed; belongs to whoever holds build.lock

A lock goes with its process, however that ends; lock files stay, since removing one would let two hold "it". An engine is
renamed into place whole and never changed afterwards, so a process that has mapped its files can go on when they are removed.
"""

import errno
import fcntl
import logging
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmcli.backends.engine_folder import Engine as Engine
from gmcli.backends.engine_folder import EngineKey as EngineKey
from gmcli.backends.engine_folder import plain_files, read_engine, seal
from gmcli.errors import EngineError, EnvironmentProblem
from gmcli.files import TEMPORARY, fsync_directory, make_directories
from gmcli.private import ELSEWHERE, check_private
from gmcli.resources import cache_dir

log = logging.getLogger("gmcli.store")

LOCKS = "locks"
BUILD = "build"
POLL_S = 0.1

_NAME = re.compile(r"[a-z0-9_]+-[a-z0-9_]+-[0-9a-f]{16}")

Stamp = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Entry:
    """Say what lies in the store under an engine's name: an engine, or what is wrong with it."""

    name: str
    engine: Engine | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Pruned:
    """Say what was (or would be) removed, and why; `in_use` means that it was kept, since a process is reading it."""

    name: str
    reason: str
    bytes: int
    in_use: bool = False


def default_root() -> Path:
    """Return where engines are kept: ${GMCLI_CACHE:-~/.cache/gmcli}/engines."""
    try:
        return cache_dir() / "engines"
    except RuntimeError as error:  # no home
        raise EnvironmentProblem(f"engines cannot be kept ({error})", ELSEWHERE) from None


class Store:
    """Find, build and remove engines under one root, by default the user's; it need not exist yet."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()).absolute()

    def find(self, key: EngineKey) -> Engine | None:
        """Return the engine of a key, every byte compared with what was stored, or None where there is none.

        Raises EngineError, naming the file, where it is damaged, and EnvironmentProblem where others can reach the root.
        """
        folder = self.root / key.name
        if not self._is_private() or not os.path.lexists(folder):
            return None
        with self.using(key):
            if not os.path.lexists(folder):
                return None
            engine = read_engine(folder, hashes=True)
        if engine.key.digest != key.digest:
            raise EngineError(
                f"{folder}: holds the engine of another key", "Remove it with `gmcli engines prune --all`."
            )
        return engine

    def get_or_build(self, key: EngineKey, build: Callable[[Path], Mapping[str, Any]]) -> Engine:
        """Return the engine of a key; where there is none, build it, or wait for the process that does.

        build: writes files into the empty folder it is given and returns the engine's facts; it must not ask a store for
        another engine. A damaged engine is removed, with a warning, and built again. What `build` raises passes through,
        and leaves nothing. Wrap the call and the loading in `using`, lest the engine be pruned in between.
        """
        while True:
            seen = self._stamp(key)
            try:
                engine = self.find(key)
            except EngineError as error:
                log.warning("%s; it is not used but built again", error.message)
                engine = None
            if engine is not None:
                return engine
            with self._build_lock(key, seen) as taken:
                if taken and self._stamp(key) in (seen, None):
                    return self._build(key, build)
            # Another process has published it meanwhile.

    def publish(self, key: EngineKey, folder: Path, facts: Mapping[str, Any]) -> Engine:
        """Copy the files of a folder into the store as an engine, whole or not at all.

        Raises EngineError where the store has one of this key already, or the folder holds anything but plain files.
        """

        def copy(target: Path) -> Mapping[str, Any]:
            for name in plain_files(folder):
                shutil.copyfile(folder / name, target / name, follow_symlinks=False)
            return facts

        with self._build_lock(key, None) as taken:
            if not taken or os.path.lexists(self.root / key.name):
                raise EngineError(
                    f"{self.root / key.name}: is there already", "`gmcli engines prune` removes broken ones."
                )
            return self._build(key, copy)

    @contextmanager
    def using(self, key: EngineKey) -> Iterator[None]:
        """Keep an engine from being pruned, built or not: for finding it and loading it."""
        with self._lock(key.name, optional=True) as descriptor:
            if descriptor is not None:
                self._flock(descriptor, fcntl.LOCK_SH)
            yield

    def entries(self, *, hashes: bool = False) -> list[Entry]:
        """List what lies under engines' names, by name; `hashes`: read every byte again. What is not ours is not listed."""
        return [self._entry(name, hashes=hashes) for name in self._names()]

    def verify(self) -> list[tuple[str, str]]:
        """Read every byte of every engine again; return the names of the damaged ones, each with what is wrong."""
        return [(entry.name, entry.problem) for entry in self.entries(hashes=True) if entry.problem is not None]

    def prune(
        self,
        current: Mapping[str, Sequence[Mapping[str, str]]] | None = None,
        *,
        everything: bool = False,
        dry_run: bool = False,
    ) -> list[Pruned]:
        """Remove damaged engines, those of other versions, and what builders that died have left; say what and why.

        current: by backend, the versions it has on each of this machine's devices. An engine is of other versions if it
        contradicts all of them; of backends that `current` leaves out, none is. Engines that a process is reading stay.
        """
        found = []
        for name in self._names():
            folder = self.root / name
            size = _size(folder)
            stamp = _stamp_of(folder)
            reason = "all were asked for" if everything else self._why_prune(name, current or {})
            if reason is None:
                continue
            with self._lock(name) as descriptor:
                free = descriptor is not None and self._flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if free and _stamp_of(folder) != stamp:
                    continue  # another process has removed it or built it again
                aside = self._move_aside(folder) if free and not dry_run else None
            if aside is not None:
                _remove(aside)
            found.append(Pruned(name, reason, size, in_use=not free))
        return found + self._prune_temporary(dry_run=dry_run)

    def _why_prune(self, name: str, current: Mapping[str, Sequence[Mapping[str, str]]]) -> str | None:
        entry = self._entry(name, hashes=True)
        if entry.engine is None:
            return entry.problem
        return _why_stale(entry.engine.key, current.get(entry.engine.key.backend, ()))

    def _prune_temporary(self, *, dry_run: bool) -> list[Pruned]:
        if not (self._is_private() and (self.root / TEMPORARY).is_dir()):
            return []
        with self._lock(BUILD) as descriptor:
            if descriptor is None or not self._flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                return []  # they belong to a builder at work
            left = sorted((self.root / TEMPORARY).iterdir())
            sizes = [_size(path) for path in left]
            if not dry_run:
                self._sweep()
        return [
            Pruned(f"{TEMPORARY}/{path.name}", "left by a process that died", size)
            for path, size in zip(left, sizes, strict=True)
        ]

    def _build(self, key: EngineKey, build: Callable[[Path], Mapping[str, Any]]) -> Engine:
        """Build and publish an engine; the build lock is held."""
        self._sweep()
        target = self.root / key.name
        if os.path.lexists(target):
            # A process may be about to load it; the files that it has opened stay readable.
            _remove(self._move_aside(target))
        temporary = self._temporary(key.name)
        temporary.mkdir(mode=0o700)
        try:
            facts = build(temporary)
            seal(temporary, key, facts)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        fsync_directory(self.root)
        return read_engine(target, hashes=False)

    def _names(self) -> list[str]:
        if not self._is_private():
            return []
        return sorted(path.name for path in self.root.iterdir() if _NAME.fullmatch(path.name))

    def _entry(self, name: str, *, hashes: bool) -> Entry:
        with self._lock(name, optional=True) as descriptor:
            if descriptor is not None:
                self._flock(descriptor, fcntl.LOCK_SH)
            try:
                return Entry(name, read_engine(self.root / name, hashes=hashes))
            except EngineError as error:
                return Entry(name, problem=error.message)
            except PermissionError as error:
                return Entry(name, problem=f"{error.filename}: {error.strerror}")

    def _stamp(self, key: EngineKey) -> Stamp:
        return _stamp_of(self.root / key.name)

    # Temporary folders

    def _temporary(self, name: str) -> Path:
        """Return an unused path in .tmp; it names the process for whoever looks."""
        folder = self.root / TEMPORARY
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"

    def _move_aside(self, folder: Path) -> Path:
        aside = self._temporary(folder.name)
        folder.rename(aside)
        return aside

    def _sweep(self) -> None:
        """Remove what builders that were killed have left; the build lock is held, so none of it is in work."""
        if (self.root / TEMPORARY).is_dir():
            for path in (self.root / TEMPORARY).iterdir():
                _remove(path)

    # The root and its locks

    def _is_private(self) -> bool:
        """Return whether there is a root yet; raise EnvironmentProblem if anybody else could put engines into it."""
        try:
            check_private(self.root)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unusable(error) from None
        return True

    def _unusable(self, error: OSError) -> EnvironmentProblem:
        return EnvironmentProblem(f"{self.root}: engines cannot be kept here ({error.strerror})", ELSEWHERE)

    def _open_lock(self, name: str) -> int:
        make_directories(self.root.parent.parent)
        self.root.parent.mkdir(mode=0o700, exist_ok=True)
        self.root.mkdir(mode=0o700, exist_ok=True)
        self._is_private()
        (self.root / LOCKS).mkdir(mode=0o700, exist_ok=True)
        path = self.root / LOCKS / f"{name}.lock"
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    @contextmanager
    def _lock(self, name: str, *, optional: bool = False) -> Iterator[int | None]:
        """Open a lock file and let go of the lock in the end. `optional`: None on a disk on which nothing can change."""
        descriptor = None
        try:
            descriptor = self._open_lock(name)
        except OSError as error:
            if not (optional and error.errno == errno.EROFS):
                raise self._unusable(error) from None
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                # Not by closing alone: a process that was forked meanwhile has the same lock open.
                with suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)

    def _flock(self, descriptor: int, operation: int) -> bool:
        """Take a lock; return False where LOCK_NB was asked for and another holds it."""
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            return False
        except OSError as error:  # some network file systems have none
            raise self._unusable(error) from None
        return True

    @contextmanager
    def _build_lock(self, key: EngineKey, seen: Stamp) -> Iterator[bool]:
        """Wait until this process may build (True), or until another has published the engine (False).

        seen: the stamp of what lay under the engine's name when it was found missing or damaged.
        """
        with self._lock(BUILD) as descriptor:
            told = False
            while descriptor is not None and not self._flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                if self._stamp(key) not in (seen, None):
                    yield False
                    return
                if not told:
                    log.info("another process is building %s; waiting", self._being_built())
                    told = True
                time.sleep(POLL_S)
            yield True

    def _being_built(self) -> str:
        """Name what is in work, as far as that can be seen."""
        try:
            names = sorted(path.name.split(".")[0] for path in (self.root / TEMPORARY).iterdir())
        except OSError:
            names = []
        return ", ".join(names) or "an engine"


def _stamp_of(folder: Path) -> Stamp:
    """Tell one folder from another that later has its name."""
    try:
        status = folder.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


def _why_stale(key: EngineKey, current: Sequence[Mapping[str, str]]) -> str | None:
    """Say how the versions of a key contradict those of every device; None where one fits, or none is known."""
    reasons = [
        "; ".join(
            f"{name} was {was}, is {now[name]}" for name, was in key.versions.items() if now.get(name, was) != was
        )
        for now in current
    ]
    return min(reasons, key=len) if reasons and all(reasons) else None


def _size(path: Path) -> int:
    """Return the bytes of a folder's files, or of a file, as far as they can be seen."""
    total = 0
    for each in (path, *path.iterdir()) if path.is_dir() and not path.is_symlink() else (path,):
        try:
            status = each.lstat()
        except OSError:
            continue
        total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
