"""Disturb runs in every way there is, at every point, and print what became of them: `make crash-sweep`.

Each kind is a generator of points; a point is a function that makes its own folder, disturbs a run in it, goes on, and
returns a verdict. They run in forked processes of this one, which has everything loaded: a point takes a tenth of a second.
"""

import argparse
import errno
import itertools
import json
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.crash import shim

if __name__ == "__main__":
    try:
        shim.restart_with_shim(["-m", "tests.crash.sweep", *sys.argv[1:]])
    except shim.NoCompiler as missing:
        sys.exit(f"cannot sweep: {missing}")

from gmcli.records import read_records
from tests.crash import damage, processes
from tests.crash.plants import PLANTS
from tests.crash.points import Ready, Verdict, disturb, in_parallel, judge, prepare, scratch, trace_of
from tests.crash.power import Disk, materialise
from tests.crash.scenarios import SCENARIOS

Point = Callable[[], Verdict]
_ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EACCES", "ESTALE")


@dataclass
class Sweep:
    """Hold what all kinds need. every: take each n-th point only, from a place that the seed decides."""

    folder: Path
    every: int = 1
    seed: int = 0
    short: bool = False
    scenarios: tuple[str, ...] = tuple(s.name for s in SCENARIOS)
    plant: Callable[[], None] | None = None
    _ready: dict[str, Ready] = field(default_factory=dict)
    _number: int = 0

    def ready(self) -> list[Ready]:
        """Return the scenarios, prepared once."""
        for scenario in SCENARIOS:
            if scenario.name in self.scenarios and scenario.name not in self._ready:
                self._ready[scenario.name] = prepare(scenario, self.folder / scenario.name)
        return list(self._ready.values())

    def place(self) -> Path:
        """Return the name of a folder that no other point has."""
        self._number += 1
        return self.folder / f"point{self._number}"

    def some(self, points: Iterator[Point]) -> Iterator[Point]:
        """Take the points that are asked for."""
        start = random.Random(self.seed).randrange(self.every)
        return (point for number, point in enumerate(points) if number % self.every == start)


def _disturbed(mode: int, name: str, code: int, sweep: Sweep) -> Iterator[Point]:
    def points() -> Iterator[Point]:
        for ready in sweep.ready():
            for number in range(1, ready.length + 1):
                yield partial(disturb, ready, sweep.place(), name, mode, number, code, sweep.plant)

    return sweep.some(points())


def _power(sweep: Sweep) -> Iterator[Point]:
    def points() -> Iterator[Point]:
        for ready in sweep.ready():
            yield from _cuts(ready, sweep)

    return sweep.some(points())


def _cuts(ready: Ready, sweep: Sweep) -> Iterator[Point]:
    """Yield the different states that a power cut may leave, at each operation of the trace."""
    folder = sweep.place()
    events, _ = trace_of(ready, folder, sweep.plant)
    before, _ = read_records(ready.template / "out")
    disk, rng = Disk(ready.template), random.Random(sweep.seed)
    told: list[str] = []
    seen: set[int] = set()
    for number, event in enumerate([*events, None]):
        for kind, state in enumerate(disk.states(rng, 4)):
            # Most moments leave what the one before left.
            mark = hash((tuple(state.items()), len(told)))
            if mark not in seen:
                seen.add(mark)
                where = f"{event.kind} {event.target or event.path[:40]}" if event else "the end"
                name = f"{ready.scenario.name}: power cut, state {kind} before {number} ({where})"
                yield partial(_cut, name, ready, sweep.place(), state, before, list(told))
        if event is None:
            return
        if event.kind == "mark":
            told.append(event.path)
        else:
            disk.apply(event)


def _cut(name: str, ready: Ready, folder: Path, state, before, told: list[str]) -> Verdict:
    verdict = Verdict(name)
    materialise(state, folder)
    judge(verdict, ready, folder, before, told)
    return verdict


def _simple(points: Callable[[Path, bool], Iterator[Point]], sweep: Sweep) -> Iterator[Point]:
    return points(sweep.folder, sweep.short)


def kinds() -> dict[str, Callable[[Sweep], Iterator[Point]]]:
    """Return the kinds of disturbance by name."""
    found: dict[str, Callable[[Sweep], Iterator[Point]]] = {
        "before": partial(_disturbed, shim.KILL_BEFORE, "killed", 0),
        "after": partial(_disturbed, shim.KILL_AFTER, "killed after it", 0),
        "torn": partial(_disturbed, shim.TORN, "killed with half of it written", 0),
        "power": _power,
        "SIGTERM": partial(_disturbed, shim.SIGNAL, "SIGTERM", signal.SIGTERM),
        "SIGINT": partial(_disturbed, shim.SIGNAL, "SIGINT", signal.SIGINT),
        "moved": partial(_disturbed, shim.SIGNAL, "directory moved", signal.SIGUSR1),
        "replaced": partial(_disturbed, shim.SIGNAL, "directory replaced", signal.SIGUSR2),
    }
    found["short write"] = partial(_disturbed, shim.SHORT, "half of it written", 0)
    found["full disk"] = partial(_disturbed, shim.FULL, "disk full", errno.ENOSPC)
    for name in _ERRORS:
        code = getattr(errno, name)
        found[f"{name} once"] = partial(_disturbed, shim.FAIL, name, code)
        found[f"{name} from there"] = partial(_disturbed, shim.FAIL_ON, f"{name} from there on", code)
    found["lost reply"] = partial(_disturbed, shim.LOST_REPLY, "reply lost", 0)
    found["lost reply (EIO)"] = partial(_disturbed, shim.LOST_REPLY, "reply lost, EIO", errno.EIO)
    found["damage"] = partial(_simple, damage.points)
    for name, points in processes.KINDS.items():
        found[name] = partial(_simple, points)
    return found


@dataclass
class Tally:
    """Add up the verdicts of one kind."""

    tried: int = 0
    survived: int = 0
    lost: int = 0
    duplicated: int = 0
    corrupt: int = 0
    odd: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    hits: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        """Count one point; one that came after the run's end is none."""
        if verdict.over:
            return
        self.tried += 1
        self.survived += verdict.survived
        self.lost += bool(verdict.lost)
        self.duplicated += bool(verdict.duplicated)
        self.corrupt += bool(verdict.corrupt)
        self.odd += bool(verdict.odd)
        if not verdict.survived:
            self.notes.append(f"{verdict.name}: " + "; ".join(verdict.notes[:4]))
        if verdict.hit:
            kind, path = json.loads(verdict.hit)
            self.hits[kind, path] += 1


def tally(kind: str, sweep: Sweep, jobs: int, *, stop: bool = False) -> Tally:
    """Try all points of one kind. stop: no more, once one has not survived."""
    start = time.monotonic()
    found = Tally()
    points = kinds()[kind](sweep)
    for verdict in in_parallel(itertools.takewhile(lambda _: not (stop and found.notes), points), jobs):
        found.add(verdict)
    found.seconds = time.monotonic() - start
    return found


def not_hit(found: Tally, sweep: Sweep) -> list[tuple[str, str]]:
    """Return the kinds of operations, with the patterns of their paths, that runs do and that were not disturbed."""
    done: Counter[tuple[str, str]] = Counter()
    for ready in sweep.ready():
        done += ready.operations
    return sorted(done.keys() - found.hits.keys())


def main() -> int:
    """Sweep, print the tally, and return 1 where anything was lost."""
    names = list(kinds())
    parser = argparse.ArgumentParser(prog="python -m tests.crash.sweep", description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", help=f"comma-separated, of: {', '.join(names)}")
    parser.add_argument("--scenarios", help=f"comma-separated, of: {', '.join(s.name for s in SCENARIOS)}")
    parser.add_argument("--every", type=int, default=1, help="take each n-th point only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="points at a time")
    parser.add_argument("--short", action="store_true", help="fewer and shorter ones of real processes")
    parser.add_argument("--plant", choices=PLANTS, help="plant this bug, where it can be found")
    parser.add_argument("--stop", action="store_true", help="stop a kind at the first point that does not survive")
    parser.add_argument("--json", type=Path, help="write the tally here, too")
    options = parser.parse_args()
    shim.forget_shim()
    logging.disable(logging.CRITICAL)
    folder = scratch()
    try:
        return _sweep(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(options: argparse.Namespace, folder: Path) -> int:
    sweep = Sweep(folder, options.every, options.seed, options.short)
    asked = options.kinds.split(",") if options.kinds else list(kinds())
    if options.scenarios:
        sweep.scenarios = tuple(options.scenarios.split(","))
    if options.plant:
        sweep.plant, kind, scenario = PLANTS[options.plant]
        asked, sweep.scenarios = [kind], (scenario,)
    print(
        f"{'':20} {'tried':>7} {'survived':>8} {'lost':>6} {'duplicated':>10} {'corrupt':>7} {'odd':>5} {'s':>6}",
        flush=True,
    )
    every = Tally()
    found: dict[str, Tally] = {}
    for kind in asked:
        found[kind] = one = tally(kind, sweep, options.jobs, stop=options.stop)
        _print(kind, one)
        for name in ("tried", "survived", "lost", "duplicated", "corrupt", "odd", "seconds"):
            setattr(every, name, getattr(every, name) + getattr(one, name))
        for note in one.notes[:5]:
            print(f"    {note}")
        everything = options.every == 1 and not options.stop and kind not in ("short write", "full disk")
        if one.hits and everything and (left := not_hit(one, sweep)):
            print(f"    not disturbed: {left}")
    _print("all", every)
    hits = sum((one.hits for one in found.values()), Counter())
    if hits:
        print(f"{len(hits)} kinds of operations were disturbed, the rarest {min(hits.values())} times")
    if options.json:
        value = {kind: {**vars(one), "hits": len(one.hits)} for kind, one in found.items()}
        options.json.write_text(json.dumps(value, indent=1))
    return int(every.tried != every.survived)


def _print(kind: str, one: Tally) -> None:
    print(
        f"{kind:20} {one.tried:7} {one.survived:8} {one.lost:6} {one.duplicated:10} {one.corrupt:7} {one.odd:5} "
        f"{one.seconds:6.0f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
