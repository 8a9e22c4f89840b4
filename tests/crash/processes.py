"""Disturb real processes: several starts at once, signals at any moment, a driver that is stopped, a clock that is wrong."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gmcli.ledger import ITEMS, read_run
from gmcli.records import LEDGER
from gmcli.verify import verify
from tests.crash import shim
from tests.crash.points import Verdict, compare, ending, forked, prepare
from tests.crash.scenarios import SCENARIOS, infer
from tests.fakes import run_inline, run_tasks, tree, video_task

Point = Callable[[], Verdict]
_DAY_S = 86_400


def concurrent(folder: Path, short: bool) -> Iterator[Point]:
    """Start the same run two and ten times at once: one works at a time, the others say that the directory is held."""
    command = SCENARIOS[0].command
    infer(command, folder / "alone")
    want = tree(folder / "alone")
    for number in range(4 if short else 40):
        yield partial(_race, 2 if number % 2 else 10, folder / f"race{number}", command, want)


def _race(starts: int, out: Path, command: Any, want: dict[str, bytes]) -> Verdict:
    verdict = Verdict(f"{starts} starts at once")
    gate, opener = os.pipe()
    outcomes = []
    for _ in range(starts):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(opener)
            os.read(gate, 1)  # until the opener is closed
            end = forked(lambda: ending(command, out))
            os.write(writer, repr(end).encode())
            os._exit(0)
        os.close(writer)
        outcomes.append(reader)
    os.close(opener)
    ends: list[dict[str, Any]] = []
    for reader in outcomes:
        with os.fdopen(reader, "rb") as pipe:
            ends.append(eval(pipe.read()))  # our own child's
        os.wait()
    os.close(gate)
    answered = [tuple(key) for end in ends for key in end.get("answered", ())]
    verdict.duplicated += len(answered) - len(set(answered))
    for end in ends:
        if end["end"] not in ("finished", "RunLocked"):
            verdict.add("odd", f"ended with {end}")
    if not any(end["end"] == "finished" for end in ends):
        verdict.add("lost", "nobody worked")
    compare(verdict, out, want)
    return verdict


def wrong_clock(folder: Path, short: bool) -> Iterator[Point]:
    """Kill a run, move the clock by a day and all files' times by up to one, and go on."""
    ready = prepare(SCENARIOS[0], folder / "clock")
    for number in range(1, ready.length, 20 if short else 2):
        yield partial(_moved_clock, ready, folder / f"clock{number}", number)


def _moved_clock(ready: Any, folder: Path, number: int) -> Verdict:
    rng = random.Random(number)
    verdict = Verdict(f"clock moved after a kill at {number}")
    (folder / "out").parent.mkdir()
    command, out = ready.scenario.command, folder / "out"

    def killed() -> None:
        shim.move_clock(rng.choice((-1, 1)) * _DAY_S)
        shim.arm(folder, shim.KILL_BEFORE, number, 0, -1)
        infer(command, out)

    def go_on() -> dict[str, Any]:
        shim.move_clock(rng.choice((-1, 1)) * _DAY_S)
        return ending(command, out)

    forked(killed)
    for path in out.rglob("*"):
        moment = time.time() + rng.uniform(-_DAY_S, _DAY_S)
        os.utime(path, (moment, moment))
    before = {line.split(b'"sha256"')[0] for line in _lines(out)}
    end = forked(go_on)
    if end["end"] != "finished":
        verdict.add("lost", f"cannot go on: {end}")
        return verdict
    for video, question in end["answered"]:
        if any(f'"video":"{video}","question":"{question}",'.encode() in line for line in before):
            verdict.add("duplicated", f"{video}/{question} was answered again")
    compare(verdict, out, ready.want)
    shutil.rmtree(folder)
    return verdict


def _lines(out: Path) -> list[bytes]:
    if not (out / LEDGER).exists():
        return []
    return [line for line in (out / LEDGER).read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _tasks(folder: Path, *slow: str) -> list[Any]:
    names = ("a", "b", "c", *slow)
    return [video_task(folder, name, "q0", "none", size=1000 - number) for number, name in enumerate(names)]


def _driver(out: Path, stall_timeout_s: str = "60", *slow: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.crash.processes", str(out), stall_timeout_s, *slow]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait_for(process: "subprocess.Popen[bytes]", path: Path) -> None:
    while process.poll() is None and not path.exists():
        time.sleep(0.005)


def signals(folder: Path, short: bool) -> Iterator[Point]:
    """End a driver with workers by SIGTERM, Ctrl-C or SIGKILL at random moments, some times in a row."""
    rng = random.Random(1)
    run_inline(folder / "signals", _tasks(folder))
    want = tree(folder / "signals")
    for number in range(3 if short else 30):
        number_of_signal = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)[number % 3]
        yield partial(_ended, folder / f"signal{number}", number_of_signal, rng.random(), want)


def _ended(out: Path, sent: int, chance: float, want: dict[str, bytes]) -> Verdict:
    verdict = Verdict(f"{signal.Signals(sent).name} at {chance:.3f} of a run")
    process = _driver(out)
    _wait_for(process, out / "run.json")
    if chance < 0.5:
        time.sleep(chance)
    else:  # amid the answers, which take no time
        _wait_for(process, out / ITEMS / "a")
        time.sleep((chance - 0.5) / 20)
    process.send_signal(sent)
    code = process.wait()
    # One that comes when all is done may end Python in its own way.
    over = read_run(out).get("state") == "finished"
    if code not in ((-sent,) if over or sent == signal.SIGKILL else (130,)) and not (over and code in (0, 130)):
        verdict.add("odd", f"exit code {code}")
    if problems := [text for _, text in verify(out).problems]:
        verdict.add("corrupt", f"after the signal: {problems}")
    if (code := _driver(out).wait()) != 0:
        verdict.add("lost", f"cannot go on: exit code {code}")
    compare(verdict, out, want)
    return verdict


def stopped(folder: Path, short: bool) -> Iterator[Point]:
    """Stop the driver, or it and its workers, for longer than a worker may be silent; then let them go on."""
    run_inline(folder / "stopped", _tasks(folder, "slow"))
    want = tree(folder / "stopped")
    for together in (True, False):
        yield partial(_stop, folder / f"stopped-{together}", together, 7.0 if short else 60.0, want)


def _stop(out: Path, together: bool, seconds: float, want: dict[str, bytes]) -> Verdict:
    verdict = Verdict(f"{'all' if together else 'the driver'} stopped for {seconds:.0f} s")
    process = _driver(out, "2", "slow")
    _wait_for(process, out / ITEMS / "c" / "none.json")
    send = partial(os.killpg if together else os.kill, process.pid)
    send(signal.SIGSTOP)
    time.sleep(seconds)
    send(signal.SIGCONT)
    if (code := process.wait()) != 0:
        verdict.add("odd", f"exit code {code}")
    if "gave no sign" in (out.parent / f"{out.name}.log").read_text():
        verdict.add("duplicated", "a worker was replaced for a silence that was not its own")
    compare(verdict, out, want)
    return verdict


KINDS: dict[str, Callable[[Path, bool], Iterator[Point]]] = {
    "concurrent starts": concurrent,
    "wrong clock": wrong_clock,
    "processes": signals,
    "stopped": stopped,
}


def main() -> None:
    """Be a driver with a worker: run the tasks into a directory, and end as `gmcli infer` would."""
    import logging

    out, stall_timeout_s, slow = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    logging.basicConfig(filename=out.parent / f"{out.name}.log", level=logging.INFO)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_tasks(out, _tasks(out.parent, *slow), stall_timeout_s=stall_timeout_s)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
