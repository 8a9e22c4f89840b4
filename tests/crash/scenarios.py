"""The runs that are disturbed: each starts from what earlier runs left, and has its undisturbed end to compare with."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gmcli.data import ItemResult, Question, TemporalSpan, VideoTask
from gmcli.executors.messages import Answered, Frames, Ready
from gmcli.ledger import Ledger
from gmcli.masks.rle import encode_rle
from gmcli.progress import Progress
from gmcli.records import Key, Record, inputs_of
from gmcli.run import check_unchanged, plan, run
from tests.fakes import IDENTITY, InlineExecutor


@dataclass(frozen=True)
class Command:
    """One start of `gmcli infer`; the videos in `broken` cannot be read."""

    tasks: tuple[VideoTask, ...]
    restart: bool = False
    redo: bool = False
    retry: bool = False
    broken: frozenset[str] = frozenset()
    formats: tuple[str, ...] = ("png", "rle")

    def settles(self, record: Record) -> bool:
        """Say whether the question of this record must not be answered again."""
        asked = {(t.id, q.id): inputs_of(t, q) for t in self.tasks for q in t.questions}
        wanted = record.status != "failed" or not self.retry
        return not self.restart and wanted and asked.get(record.key, dict(record.inputs)) == dict(record.inputs)


@dataclass(frozen=True)
class Scenario:
    """Runs that come before, the run that is disturbed, and other runs that may follow instead of the same again."""

    name: str
    before: tuple[Command, ...]
    command: Command
    others: tuple[Command, ...] = ()
    litter: bool = False


def _task(video: str, *questions: str, new: tuple[str, ...] = ()) -> VideoTask:
    asked = tuple(Question(q, f"Whom does {q} follow{', now' if q in new else ''}?") for q in questions)
    return VideoTask(video, f"/videos/{video}.mp4", asked, size_bytes=1000)


_FULL = (_task("a", "q0", "q1"), _task("b", "none"), _task("z", "q0"))
_CHANGED = (_task("a", "q0", "q1", new=("q0",)), _task("b", "none", new=("none",)), _task("z", "q0"))
_BAD = frozenset({"z"})

SCENARIOS = (
    Scenario("fresh", (), Command(_FULL, broken=_BAD)),
    Scenario("resume", (Command(_FULL[:1], broken=_BAD),), Command(_FULL, broken=_BAD), litter=True),
    Scenario(
        "changed",
        (Command(_FULL, broken=_BAD),),
        Command(_CHANGED, redo=True, broken=_BAD),
        (Command(_FULL, redo=True, broken=_BAD),),
    ),
    Scenario(
        "changed and failed",
        (Command(_FULL, broken=_BAD),),
        Command(_CHANGED, redo=True, broken=frozenset({"a", "z"})),
        (Command(_FULL, redo=True, retry=True),),
    ),
    Scenario(
        "retried",
        (Command(_FULL, broken=frozenset({"a", "z"}), formats=("rle",)),),
        Command(_FULL, retry=True, formats=("rle",)),
    ),
    Scenario(
        "restart", (Command((*_CHANGED, _task("old", "q0"))),), Command(_FULL[1:], restart=True, formats=("png1",))
    ),
    Scenario("nothing to do", (Command(_FULL, broken=_BAD),), Command(_FULL, broken=_BAD)),
    Scenario("fewer", (Command(_FULL, broken=_BAD),), Command(_FULL[1:2], broken=_BAD), (Command(_FULL),)),
)


class _Answers(InlineExecutor):
    """Answer from the question's text: another text has other masks, in another number of frames."""

    def __init__(self, broken: frozenset[str], answered: list[Key]) -> None:
        super().__init__()
        self._broken, self._answered = broken, answered

    def run(self, jobs):
        yield Ready(0, {"device": "none"})
        for job in jobs:
            texts = {q.id: q.text for q in job.task.questions}
            for question in job.pending:
                self._answered.append((job.task.id, question))
                failed = ItemResult(job.task.id, question, "failed", error="no video")
                result = failed if job.task.id in self._broken else _answer(job.task.id, question, texts[question])
                yield Frames(job.task.id, len(result.masks))
                yield Answered(job.task.id, (result,), last=False)
            yield Answered(job.task.id, (), {"llm": 0.5}, {"sam_frames": 1})


def _answer(video: str, question: str, text: str) -> ItemResult:
    digest = hashlib.sha256(f"{video}/{text}".encode()).digest()
    count = 2 + text.endswith("now?")
    masks = [np.unpackbits(np.frombuffer(digest[i : i + 6], np.uint8)).reshape(6, 8).astype(bool) for i in range(count)]
    return ItemResult(
        video,
        question,
        "no_target" if question == "none" else "done",
        answer=f"It is {digest.hex()} [SEG].",
        frames=tuple(range(count)),
        names=tuple(f"{i:05}" for i in range(count)),
        masks=tuple(map(encode_rle, masks)),
        span=TemporalSpan(0, count),
        score=0.5,
    )


class _Telling(Ledger):
    """Tell of each record that the ledger says is durable."""

    told: Callable[[Record], None]

    def append(self, record: Record) -> None:
        super().append(record)
        self.told(record)


def infer(command: Command, out: Path, told: Callable[[Record], None] = lambda record: None) -> list[Key]:
    """Do what `gmcli infer` does once everything is loaded; return the questions that were answered.

    told: called with each record once it is said to be durable.
    """
    answered: list[Key] = []
    with _Telling.open(out, IDENTITY, restart=command.restart) as ledger:
        ledger.told = told
        check_unchanged(ledger, command.tasks, redo=command.redo)
        jobs = plan(command.tasks, ledger.pending(command.tasks, retry_failed=command.retry))
        progress = Progress(videos=len(jobs), questions=sum(len(j.pending) for j in jobs), bar=False)
        executor = _Answers(command.broken, answered)
        run(command.tasks, jobs, ledger, executor, command.formats, progress)
    return answered


def litter(out: Path) -> None:
    """Leave what killed runs leave: temporary files, items that no record knows, half a line."""
    (out / ".tmp" / "0" / "x").mkdir(parents=True)
    (out / ".tmp" / "1").write_text("half")
    for name in ("items/b/none.json", "items/z/q0.json", "masks/b/none/00007.png", "masks/z/q0/00000.png"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("never recorded")
    with (out / "ledger.jsonl").open("ab") as file:
        file.write(b'{"video":"b","question":"no')


def as_text(record: Record) -> str:
    """Return a record's key and content, for a note in a trace."""
    return json.dumps([*record.key, record.line().decode()])
