"""Bugs to plant: each undoes one rule of how results are written. The sweep must find every one."""

import os
from collections.abc import Callable

from gmcli import files, items, ledger, run
from gmcli.files import TEMPORARY, fsync_directory, make_directories
from gmcli.ledger import Ledger
from gmcli.records import LEDGER, Record, inputs_of
from gmcli.run import write_item


def rename_before_fsync() -> None:
    def write_file(root, name, content):
        target = root / name
        make_directories(target.parent, root=root)
        temporary = files._temporary(root)
        with temporary.open("xb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            temporary.replace(target)
            fsync_directory(target.parent)
            os.fsync(file.fileno())

    _replace("write_file", write_file)


def no_fsync_of_masks() -> None:
    files._write_durably = lambda path, content: path.write_bytes(content)


def no_fsync_of_directories() -> None:
    _replace("fsync_directory", lambda path: None)


def write_in_place() -> None:
    def write_file(root, name, content):
        make_directories((root / name).parent, root=root)
        (root / TEMPORARY).mkdir(exist_ok=True)
        with (root / name).open("wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())

    _replace("write_file", write_file)


def ledger_before_file() -> None:
    def settle(book, task, question, result, formats):
        book.withdraw((task.id, question.id))
        sha256 = None
        if result.status != "failed":
            # What the item will hold is known only once it is written: elsewhere, first.
            sha256 = write_item(book.path.parent / "elsewhere", result, question, formats)
        book.append(Record(task.id, question.id, result.status, inputs_of(task, question), sha256, result.error))
        if result.status != "failed":
            write_item(book.path, result, question, formats)

    def settle_elsewhere(book, *others):
        (book.path.parent / "elsewhere").mkdir(exist_ok=True)
        settle(book, *others)

    run._settle = settle_elsewhere


def no_withdrawal() -> None:
    Ledger.withdraw = lambda self, key: None


def short_write_unnoticed() -> None:
    def write(self, record):
        if self._file is None:
            self._file = (self.path / LEDGER).open("ab", buffering=0)
        self._file.write(record.line())
        os.fsync(self._file.fileno())

    Ledger._write = write


def _replace(name: str, function: Callable) -> None:
    from gmcli import summaries, verify

    for module in (files, ledger, items, run, summaries, verify):
        if hasattr(module, name):
            setattr(module, name, function)


# Each with the kind of the sweep that finds it, and the scenario.
PLANTS = {
    "rename before fsync": (rename_before_fsync, "power", "fresh"),
    "masks without fsync": (no_fsync_of_masks, "power", "fresh"),
    "directories without fsync": (no_fsync_of_directories, "power", "fresh"),
    "write in place": (write_in_place, "torn", "fewer"),
    "ledger before file": (ledger_before_file, "before", "fresh"),
    "ledger before file (power)": (ledger_before_file, "power", "fresh"),
    "no withdrawal": (no_withdrawal, "before", "changed"),
    "short write unnoticed": (short_write_unnoticed, "full disk", "fresh"),
}
