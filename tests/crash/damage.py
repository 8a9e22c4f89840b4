"""Damage each file of a finished run; verify must name it, and the next run must redo what was damaged and nothing else."""

import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from gmcli.ledger import CONFIG, FAILURES, HEARTBEAT, ITEMS, LOCK, LOGS, MANIFEST, MASKS, RESULTS, RUN
from gmcli.records import LEDGER, Key
from gmcli.verify import forget_damaged, verify
from tests.crash.points import Verdict, compare, ending
from tests.crash.scenarios import SCENARIOS, infer
from tests.fakes import tree

_COMMAND = SCENARIOS[0].command


def _cut(path: Path, keep: Callable[[int], int]) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: keep(len(content))])


def _flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def _flip_one(path: Path) -> None:
    _flip(path, random.Random(path.name).randrange(8 * path.stat().st_size))


def _folder_instead(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def _link_instead(path: Path) -> None:
    """Put a link to a file of the very same content in a file's place."""
    kept = path.parents[len(path.parts) - 2] / "nowhere"
    kept = path.with_name(f"{path.name}.moved")
    path.rename(kept)
    path.symlink_to(kept.name)


_WAYS: dict[str, Callable[[Path], None]] = {
    "emptied": partial(_cut, keep=lambda size: 0),
    "cut in half": partial(_cut, keep=lambda size: size // 2),
    "one byte short": partial(_cut, keep=lambda size: size - 1),
    "a bit flipped": _flip_one,
    "deleted": lambda path: path.unlink(),
    "a folder instead": _folder_instead,
    "a link instead": _link_instead,
}

_CONTENT = ("emptied", "cut in half", "one byte short", "a bit flipped")


def points(folder: Path, short: bool) -> Iterator[Callable[[], Verdict]]:
    """Yield a point for each answered file in each way, and for the other files and each bit of a ledger line."""
    finished = folder / "finished"
    infer(_COMMAND, finished)
    names = sorted(
        str(p.relative_to(finished))
        for p in finished.rglob("*")
        if p.is_file() and p.name not in (LOCK, HEARTBEAT) and LOGS not in p.parts
    )
    number = 0
    for name in names:
        for way, damage in _WAYS.items():
            known = name.startswith((ITEMS, MASKS))
            if (finished / name).stat().st_size if way in _CONTENT else known or way in ("deleted", "a folder instead"):
                number += 1
                if not short or number % 3 == 0:
                    yield partial(_damaged, f"{name}: {way}", finished, folder / f"damaged{number}", name, damage)
    for name in (LEDGER, CONFIG, RUN, RESULTS, FAILURES, MANIFEST):
        bits = 8 * (finished / name).stat().st_size
        for bit in range(0, bits, (97 if short else 5)):
            number += 1
            flip = partial(_flip, bit=bit)
            yield partial(_damaged, f"{name}: bit {bit} flipped", finished, folder / f"damaged{number}", name, flip)


def _damaged(title: str, finished: Path, out: Path, name: str, damage: Callable[[Path], None]) -> Verdict:
    verdict = Verdict(f"damage: {title}")
    shutil.copytree(finished, out)
    want = tree(finished)
    before = {r: (finished / LEDGER).read_bytes() for r in ()}
    damage(out / name)
    del before
    if name == CONFIG:
        _judge_settings(verdict, out, want)
    else:
        _judge_damage(verdict, out, name, want)
    shutil.rmtree(out)
    return verdict


def _judge_damage(verdict: Verdict, out: Path, name: str, want: dict[str, bytes]) -> None:
    top = name.split("/")[0]
    try:
        found = verify(out)
    except OSError as error:  # said by every command in one line
        if top != LEDGER or not error.strerror or ending(_COMMAND, out)["end"] != "EnvironmentProblem":
            verdict.add("odd", f"verify: {error}")
        return
    hurt: set[Key] = (
        {(name.split("/")[1], name.split("/")[2].removesuffix(".json"))} if top in (ITEMS, MASKS) else set()
    )
    if {key for key, _ in found.problems if key} != hurt:
        verdict.add("odd", f"verify says {found.problems}")
    told = any(name in problem for _, problem in found.problems)
    left = (out / LEDGER).read_bytes() if (out / LEDGER).is_file() else b""
    # What run.json tells of versions and times is nobody's truth; a ledger that ends early has fewer records.
    if not told and top in (ITEMS, MASKS, RESULTS, FAILURES, MANIFEST):
        verdict.add("lost", "verify does not name it")
    if top == LEDGER and left != want[LEDGER] and not found.unrecorded and not found.problems:
        verdict.add("lost", "verify does not notice")
    gone = _records(want[LEDGER]) - _records(left)
    if found.problems and (out / LEDGER).is_file():
        forget_damaged(out, found)
    for moved in out.rglob("*.moved"):
        moved.unlink()
    end = ending(_COMMAND, out)
    if end["end"] != "finished":
        if top in (LEDGER, RESULTS, FAILURES, RUN, MANIFEST) and end["end"] in ("EnvironmentProblem", "ConfigError"):
            return  # a folder in a file's place is said, and nothing is done
        verdict.add("lost", f"cannot go on: {end['end']}: {end.get('message')}")
        return
    redone = {tuple(key) for key in end["answered"]}
    if top in (ITEMS, MASKS) and redone != hurt:
        verdict.add("duplicated", f"answered again: {sorted(redone)}")
    if top == LEDGER and len(redone) > len(gone):
        verdict.add("duplicated", f"answered again: {sorted(redone)}")
    compare(verdict, out, want)


def _records(content: bytes) -> set[bytes]:
    return {line for line in content.splitlines(keepends=True) if line.endswith(b"\n")}


def _judge_settings(verdict: Verdict, out: Path, want: dict[str, bytes]) -> None:
    """Settings that are damaged are refused in clear words, or put right; results are left alone either way."""
    end = ending(_COMMAND, out)
    if end["end"] == "finished":
        if end["answered"]:
            verdict.add("duplicated", f"answered again: {end['answered']}")
        compare(verdict, out, want)
    elif end["end"] not in ("ConfigError", "EnvironmentProblem") or not end["message"]:
        verdict.add("odd", f"ended with {end['end']}: {end.get('message')}")
    else:
        now = tree(out)
        for name in want.keys() - {CONFIG}:
            if now.get(name) != want[name]:
                verdict.add("corrupt", f"{name} was changed")
