"""Replay what a run did on a file system that forgets what was not fsynced, and make what a power cut may leave.

The model is a strict one. A file's content is durable as of its last fsync. A name in a directory, made, moved or removed,
is durable once that directory was fsynced; a rename is one step for both of its directories. Everything else may have
reached the disk or not, in any order: a name without its content, content cut in half, content of garbage.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.shim import Event

CONTENTS = ("none", "half", "all", "garbage")


@dataclass(eq=False)
class File:
    """Hold what is on the disk for sure, and what a program sees."""

    durable: bytes = b""
    seen: bytes = b""

    def after(self, choice: str) -> bytes:
        """Return the content that a cut leaves. choice: one of CONTENTS."""
        if self.durable == self.seen or choice == "all":
            return self.seen
        if choice == "none":
            return self.durable
        if choice == "half":
            return self.seen[: (len(self.durable) + len(self.seen)) // 2]
        kept = min(len(self.durable), len(self.seen))
        return self.seen[:kept] + b"\0\xa5" * ((len(self.seen) - kept) // 2 + 1)


@dataclass(eq=False)
class Folder:
    """Hold the names on the disk for sure, and those that a program sees."""

    durable: dict[str, "Node"] = field(default_factory=dict)
    seen: dict[str, "Node"] = field(default_factory=dict)


Node = File | Folder
Change = tuple[Folder, str, Node | None]


class Disk:
    """Follow a trace from a folder whose content is all durable."""

    def __init__(self, folder: Path) -> None:
        self.root = self._load(folder)
        self.pending: list[tuple[Change, ...]] = []

    def _load(self, path: Path) -> Node:
        if not path.is_dir():
            content = path.read_bytes()
            return File(content, content)
        names = {child.name: self._load(child) for child in path.iterdir()}
        return Folder(dict(names), dict(names))

    def _find(self, path: str) -> Node:
        node: Node = self.root
        for part in filter(None, path.split("/")):
            assert isinstance(node, Folder), path
            node = node.seen[part]
        return node

    def _place(self, path: str) -> tuple[Folder, str]:
        parent, _, name = path.rpartition("/")
        folder = self._find(parent)
        assert isinstance(folder, Folder), path
        return folder, name

    def apply(self, event: Event) -> None:
        """Do what the event says."""
        match event.kind:
            case "create":
                self._change((*self._place(event.path), File()))
            case "mkdir":
                self._change((*self._place(event.path), Folder()))
            case "unlink" | "rmdir":
                self._change((*self._place(event.path), None))
            case "rename":
                node = self._find(event.path)
                self._change((*self._place(event.path), None), (*self._place(event.target), node))
            case "write" | "trunc" | "cut":
                file = self._find(event.path)
                assert isinstance(file, File), event
                head = file.seen[: event.offset].ljust(event.offset, b"\0")
                tail = file.seen[event.offset + len(event.data) :] if event.kind == "write" else b""
                file.seen = head + event.data + tail
            case "fsync":
                self._sync(self._find(event.path))

    def _change(self, *changes: Change) -> None:
        for folder, name, node in changes:
            _set(folder.seen, name, node)
        self.pending.append(changes)

    def _sync(self, node: Node) -> None:
        if isinstance(node, File):
            node.durable = node.seen
            return
        rest = []
        for changes in self.pending:
            if any(folder is node for folder, _, _ in changes):
                for folder, name, what in changes:
                    _set(folder.durable, name, what)
            else:
                rest.append(changes)
        self.pending = rest

    def states(self, rng: random.Random, count: int) -> Iterator[dict[str, bytes | None]]:
        """Yield what a cut at this moment may leave: the extremes, and `count` mixtures. Each by path; None is a folder."""
        every = list(range(len(self.pending)))
        for chosen, content in (([], "none"), (every, "none"), (every, "half"), (every, "garbage"), ([], "all")):
            yield self._after(set(chosen), lambda file, content=content: content)
        for _ in range(count):
            mixture = {n for n in every if rng.random() < 0.5}
            kept: dict[int, str] = {}
            yield self._after(mixture, lambda file, kept=kept: kept.setdefault(id(file), rng.choice(CONTENTS)))

    def _after(self, chosen: set[int], content) -> dict[str, bytes | None]:
        names: dict[int, dict[str, Node]] = {}

        def of(folder: Folder) -> dict[str, Node]:
            return names.setdefault(id(folder), dict(folder.durable))

        for number, changes in enumerate(self.pending):
            if number in chosen:
                for folder, name, node in changes:
                    _set(of(folder), name, node)
        found: dict[str, bytes | None] = {}

        def walk(node: Node, path: str) -> None:
            if isinstance(node, File):
                found[path] = node.after(content(node))
                return
            if path:
                found[path] = None
            for name, child in sorted(of(node).items()):
                walk(child, f"{path}/{name}" if path else name)

        walk(self.root, "")
        return found


def _set(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def materialise(state: dict[str, bytes | None], folder: Path) -> None:
    """Write a state into a new folder."""
    folder.mkdir()
    for name, content in state.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
