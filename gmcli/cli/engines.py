"""gmcli engines: see, check and remove the engines that this machine has built."""

import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from gmcli.cli.echo import say, say_json
from gmcli.config import BACKENDS
from gmcli.errors import EXIT_CHECKPOINT, EXIT_OK, GmcliError

if TYPE_CHECKING:
    from gmcli.backends.engine_folder import Engine
    from gmcli.backends.store import Entry

_COLUMNS = ("COMPONENT", "BACKEND", "DTYPE", "SHAPES", "SIZE", "CREATED", "IOU", "NAME")


@click.group()
def engines() -> None:
    """See, check and remove built engines; they lie in ${GMCLI_CACHE:-~/.cache/gmcli}/engines."""


@engines.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def list_engines(as_json: bool) -> None:
    """List the engines: what was built, for which shapes, and how near it came to the model it was built from.

    IOU is the overlap of its masks with those of the uncompiled model, as measured before it was stored.
    """
    from gmcli.backends.store import Store

    entries = Store().entries()
    if as_json:
        say_json([_as_json(entry) for entry in entries])
        return
    rows = [_row(entry.engine) for entry in entries if entry.engine]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    for row in [_COLUMNS, *rows] if rows else []:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    problems = [entry.problem for entry in entries if entry.problem]
    for problem in problems:
        say(problem, err=True)
    if problems:
        say("hint: `gmcli engines prune` removes what is damaged", err=True)
    if not entries:
        say("no engines")


@engines.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(as_json: bool) -> None:
    """Read every file of every engine again and compare it with what was stored.

    Exit code 0 where all is as it was, 5 where something is missing or differs.
    """
    from gmcli.backends.store import Store

    entries = Store().entries(hashes=True)
    problems = [{"name": entry.name, "problem": entry.problem} for entry in entries if entry.problem]
    if as_json:
        say_json({"engines": len(entries), "problems": problems})
    else:
        for problem in problems:
            say(str(problem["problem"]), err=True)
        say(f"{len(entries)} engines read: {len(problems)} damaged")
        if problems:
            say("hint: `gmcli engines prune` removes them; the next run builds them again", err=True)
    sys.exit(EXIT_CHECKPOINT if problems else EXIT_OK)


@engines.command()
@click.option("--all", "everything", is_flag=True, help="Remove all engines, good ones, too.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
def prune(everything: bool, dry_run: bool) -> None:
    """Remove engines that are damaged or were built for other versions of the libraries or other hardware.

    An engine that a process is reading stays, and so does one whose backend is not installed here.
    """
    from gmcli.backends.store import Store
    from gmcli.text import shorten

    store = Store()
    names = {entry.engine.key.backend for entry in store.entries() if entry.engine}
    found = store.prune({} if everything else _versions_here(names), everything=everything, dry_run=dry_run)
    for each in found:
        did = "in use, kept" if each.in_use else "would remove" if dry_run else "removed"
        say(f"{did} {each.name} ({_size(each.bytes)}): {shorten(each.reason, 300)}")
    gone = [each.bytes for each in found if not each.in_use]
    say(f"{len(gone)} {'to remove' if dry_run else 'removed'}, {_size(sum(gone))}")


def _versions_here(names: Iterable[str]) -> dict[str, list[Mapping[str, str]]]:
    """Ask backends for their versions on each device of this machine; leave out what cannot say."""
    found: dict[str, list[Mapping[str, str]]] = {}
    known = sorted(set(names) & set(BACKENDS))
    if not known:
        return found
    import torch

    from gmcli.backends.choose import choose_backend

    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    for name in known:
        for device in devices:
            # A backend whose library is not installed, or that has no use for this device, cannot say.
            with suppress(ImportError, GmcliError):
                found.setdefault(name, []).append(choose_backend(name).versions(device))
    return found


def _as_json(entry: "Entry") -> dict[str, Any]:
    if entry.engine is None:
        return {"name": entry.name, "problem": entry.problem}
    engine = entry.engine
    return {
        "name": entry.name,
        "folder": str(engine.path),
        "key": engine.key.values(),
        "created": engine.created,
        "bytes": engine.size_bytes,
        "facts": dict(engine.facts),
    }


def _row(engine: "Engine") -> tuple[str, ...]:
    from gmcli.text import printable, shorten

    iou = engine.facts.get("mask_iou")
    cells = (
        engine.key.component,
        engine.key.backend,
        str(engine.key.settings.get("dtype", "-")),
        _shapes(engine.key.shapes),
        _size(engine.size_bytes),
        engine.created,
        f"{iou:.6f}" if isinstance(iou, float) else "-",
        engine.path.name,
    )
    return tuple(
        printable(shorten(cell, 40 if column == "SHAPES" else 80)) for column, cell in zip(_COLUMNS, cells, strict=True)
    )


def _shapes(shapes: Any) -> str:
    """Write the inputs' usual shapes as 4x3x96x96; whatever else a key holds, as it is."""
    try:
        return " ".join("x".join(str(length) for length in each["shape"]) for each in shapes)
    except (TypeError, KeyError):
        return json.dumps(shapes, separators=(",", ":"))


def _size(count: int) -> str:
    """Write a number of bytes for people."""
    if count < 1000:
        return f"{count} B"
    power = min((len(str(count)) - 1) // 3, 3)
    return f"{count / 1000**power:.1f} {('B', 'kB', 'MB', 'GB')[power]}"
