"""Disturb a run at one point, look at what is left, go on, and compare with the undisturbed run."""

import json
import os
import shutil
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gmcli.errors import EnvironmentProblem, GmcliError
from gmcli.ledger import CONFIG
from gmcli.lock import is_running
from gmcli.records import LEDGER, Key, Record, read_records
from gmcli.verify import verify
from tests.crash import shim
from tests.crash.scenarios import Command, Scenario, as_text, infer, litter
from tests.fakes import tree


@dataclass
class Verdict:
    """Say what became of one point. `notes` explain whatever is not well; `hit` names the operation that was disturbed."""

    name: str
    lost: int = 0
    duplicated: int = 0
    corrupt: int = 0
    odd: int = 0
    notes: list[str] = field(default_factory=list)
    hit: str = ""
    over: bool = False

    @property
    def survived(self) -> bool:
        return not (self.lost or self.duplicated or self.corrupt or self.odd)

    def add(self, what: str, note: str) -> None:
        setattr(self, what, getattr(self, what) + 1)
        self.notes.append(note)


@dataclass
class Ready:
    """Hold a scenario with the directory it starts from, and the trees of undisturbed runs."""

    scenario: Scenario
    template: Path
    want: dict[str, bytes]
    want_of_others: list[dict[str, bytes]]
    operations: Counter[tuple[str, str]]
    length: int


def scratch() -> Path:
    """Return a new folder, in memory where that can be had."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="gmcli-crash-", dir=memory if os.access(memory, os.W_OK) else None))


def forked(work: Callable[[], Any]) -> Any:
    """Do something in a child process; return what it returns as JSON has it, or None where it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.write(writer, json.dumps(work()).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    return json.loads(content) if content else None


def ending(command: Command, out: Path, told: Callable[[Record], None] = lambda record: None) -> dict[str, Any]:
    """Run a command and say how it ended, as `gmcli infer` would."""
    try:
        return {"end": "finished", "answered": infer(command, out, told)}
    except GmcliError as error:
        return {"end": type(error).__name__, "message": error.message, "hint": error.hint}
    except KeyboardInterrupt:
        return {"end": "interrupted"}
    except Exception:
        return {"end": "bug", "message": traceback.format_exc()}


def prepare(scenario: Scenario, folder: Path) -> Ready:
    """Make a scenario's starting point and its undisturbed ends."""
    template = folder / "template"
    template.mkdir(parents=True)
    clean = folder / "clean"
    clean.mkdir()
    for command in scenario.before:
        infer(command, clean / "out")
    shutil.copytree(clean, template, dirs_exist_ok=True)
    if scenario.litter:
        litter(template / "out")
    others = []
    for other in scenario.others:
        copied = folder / "other"
        shutil.copytree(clean, copied)
        infer(scenario.command, copied / "out")
        infer(other, copied / "out")
        others.append(tree(copied / "out"))
        shutil.rmtree(copied)
    infer(scenario.command, clean / "out")
    want = tree(clean / "out")
    ready = Ready(scenario, template, want, others, Counter(), 0)
    events, ready.length = trace_of(ready, folder / "traced")
    ready.operations.update((e.kind, shim.pattern(e.target or e.path)) for e in events if e.kind != "mark")
    return ready


def trace_of(ready: Ready, folder: Path, plant: Callable[[], None] | None = None) -> tuple[list[shim.Event], int]:
    """Run the scenario's command undisturbed; return what it changed, and how many operations it tried.

    Among the events is a mark for each record that was said to be durable.
    """
    shutil.copytree(ready.template, folder)
    end = _victim(ready.scenario.command, folder, shim.COUNT, 0, 0, plant)
    events = shim.read_trace(folder.with_suffix(".trace"), folder)
    shutil.rmtree(folder)
    assert end is not None, "the undisturbed run died"
    return events, end["operations"]


def _victim(
    command: Command, folder: Path, mode: int, number: int, code: int, plant: Callable[[], None] | None
) -> dict[str, Any] | None:
    """Run a command in a child, disturbed; return how it ended, or None where it was killed."""

    def work() -> dict[str, Any]:
        if plant is not None:
            plant()
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGUSR1, lambda *_: (folder / "out").rename(folder / "moved"))
        signal.signal(signal.SIGUSR2, lambda *_: _replace(folder))
        file = os.open(folder.with_suffix(".trace"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        shim.arm(folder, mode, number, code, file)
        end = ending(command, folder / "out", lambda record: shim.mark(as_text(record)))
        return end | {"operations": shim.disarm()}

    return forked(work)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _replace(folder: Path) -> None:
    """Move a run's directory away and put another run's in its place, as that is at its very start."""
    if not is_running(folder / "out"):
        return  # it has not taken it yet
    (folder / "out").rename(folder / "moved")
    (folder / "out").mkdir()
    (folder / "out" / ".lock").touch()


def disturb(
    ready: Ready,
    folder: Path,
    name: str,
    mode: int,
    number: int,
    code: int = 0,
    plant: Callable[[], None] | None = None,
) -> Verdict:
    """Disturb the scenario's run at its `number`-th operation and judge what follows."""
    verdict = Verdict(f"{ready.scenario.name}: {name} at {number}")
    shutil.copytree(ready.template, folder)
    before, _ = read_records(folder / "out")
    end = _victim(ready.scenario.command, folder, mode, number, code, plant)
    trace = shim.read_trace(folder.with_suffix(".trace"), folder)
    hits = [e for e in trace if e.kind == "hit"]
    verdict.over = not hits
    if hits:
        verdict.hit = json.dumps([hits[0].path, shim.pattern(hits[0].target)])
        verdict.name += f" ({hits[0].path} {hits[0].target})"
    if end is not None:
        _judge_ending(verdict, end, code if mode == shim.SIGNAL else 0)
    if (folder / "moved").exists():
        _judge_move(verdict, folder, end)
    judge(verdict, ready, folder, before, [e.path for e in trace if e.kind == "mark"])
    return verdict


def _judge_ending(verdict: Verdict, end: dict[str, Any], sent: int) -> None:
    """See that a run ended as it should. sent: the signal it got, if any."""
    interrupted = sent in (signal.SIGINT, signal.SIGTERM)
    wanted = {"interrupted" if interrupted else EnvironmentProblem.__name__, "finished"}
    if end["end"] not in wanted:
        verdict.add("odd", f"ended with {end['end']}: {end.get('message')}")
    elif end["end"] == EnvironmentProblem.__name__ and ("\n" in end["message"] or not end["hint"]):
        verdict.add("odd", f"not one clear line with a remedy: {end}")


def _judge_move(verdict: Verdict, folder: Path, end: dict[str, Any] | None) -> None:
    """See that nothing was done under the old name, and give the moved directory its name back."""
    out = folder / "out"
    if out.exists():
        if not (out / ".lock").exists():
            verdict.add("corrupt", f"the old directory was made again: {sorted(tree(out))}")
        if (out / LEDGER).exists():
            verdict.add("corrupt", "recorded in the directory that took its place")
        shutil.rmtree(out)
    (folder / "moved").rename(out)


def judge(verdict: Verdict, ready: Ready, folder: Path, before: dict[Key, Record], told: Sequence[str]) -> None:
    """Look at what a disturbed run left in folder/out; go on in every way there is, and compare."""
    command = ready.scenario.command
    out = folder / "out"
    _judge_remains(verdict, out, {k: r.line() for k, r in before.items() if command.settles(r)}, told)
    resumes = [(command, ready.want), *zip(ready.scenario.others, ready.want_of_others, strict=True)]
    for number, (resume, want) in enumerate(resumes):
        copy = folder.with_name(f"{folder.name}-{number}")
        shutil.copytree(folder, copy, symlinks=True)
        _go_on(verdict, resume, copy / "out", want)
        shutil.rmtree(copy)
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".trace").unlink(missing_ok=True)


def _judge_remains(verdict: Verdict, out: Path, expected: dict[Key, bytes], told: Sequence[str]) -> None:
    """Check that what was recorded durably is recorded still, and that all that is recorded is there."""
    for text in told:
        video, question, line = json.loads(text)
        expected[video, question] = line.encode()
    if not (out / CONFIG).exists():
        verdict.lost += len(expected)
        verdict.notes += [f"{key} was recorded" for key in expected]
        return
    found, _ = read_records(out)
    for key, line in expected.items():
        if key not in found or found[key].line() != line:
            verdict.add("lost", f"{key}: the record is gone")
    for key, problem in verify(out).problems:
        if key is not None:
            verdict.add("corrupt", f"after the crash: {problem}")


def _go_on(verdict: Verdict, command: Command, out: Path, want: dict[str, bytes]) -> None:
    """Run a command after the crash and compare its tree."""
    settled = {key for key, record in read_records(out)[0].items() if command.settles(record)}
    end = forked(lambda: ending(command, out)) or {"end": "died"}
    if end["end"] != "finished":
        verdict.add("lost", f"cannot go on: {end['end']}: {end.get('message')}")
        return
    for key in map(tuple, end["answered"]):
        if key in settled:
            verdict.add("duplicated", f"{key} was answered again")
    compare(verdict, out, want)


def compare(verdict: Verdict, out: Path, want: dict[str, bytes]) -> None:
    """Compare a tree with the undisturbed one; see that nothing else is left, and that verify agrees."""
    got = tree(out)
    for name in sorted(want.keys() - got.keys()):
        verdict.add("lost", f"{name} is missing")
    for name in sorted(got.keys() - want.keys()):
        verdict.add("corrupt", f"{name} is left over")
    for name in sorted(want.keys() & got.keys()):
        if got[name] != want[name]:
            verdict.add("corrupt", f"{name} differs")
    if (out / ".tmp").exists():
        verdict.add("corrupt", ".tmp is left over")
    found = verify(out)
    for problem in [*(text for _, text in found.problems), *found.unrecorded]:
        verdict.add("corrupt", f"in the end: {problem}")


def in_parallel(work: Iterator[Callable[[], Verdict]], jobs: int) -> Iterator[Verdict]:
    """Do things in child processes, some at a time; yield their verdicts as they come."""
    active: dict[int, int] = {}

    def next_one() -> Verdict:
        child, _ = os.wait()
        with os.fdopen(active.pop(child), "rb") as pipe:
            content = pipe.read()
        return Verdict(**json.loads(content)) if content else Verdict("?", odd=1, notes=["the test itself failed"])

    for each in work:
        while len(active) >= jobs:
            yield next_one()
        # A file, not a pipe: the notes may be long.
        descriptor = os.memfd_create("verdict")
        child = os.fork()
        if child == 0:
            try:
                os.write(descriptor, json.dumps(vars(each())).encode())
                os.lseek(descriptor, 0, os.SEEK_SET)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        active[child] = descriptor
    while active:
        yield next_one()
