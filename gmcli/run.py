"""Run a manifest: plan, hand out, write, record. The driver alone writes results, so there are no locks inside a run."""

import errno
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from gmcli.data import ItemResult, Question, VideoTask
from gmcli.errors import EXIT_INTERRUPTED, ConfigError, EnvironmentProblem
from gmcli.executors.messages import Answered, Executor, Frames, Job, Ready, Tick
from gmcli.items import remove_item, write_item
from gmcli.kept_manifest import KEPT_MANIFEST, manifest_content
from gmcli.ledger import Ledger, write_if_changed
from gmcli.limits import Limits, Stop
from gmcli.metrics_file import Snapshot
from gmcli.progress import Progress
from gmcli.records import Record, inputs_of
from gmcli.summaries import Outcome, Totals, finish, write_run_file
from gmcli.watch import Watch, reason_of

log = logging.getLogger("gmcli.run")

# What a frame of compressed video takes on disk, roughly; used only to put long videos first.
_BYTES_PER_FRAME = 15_000


def plan(tasks: Sequence[VideoTask], pending: Mapping[str, Sequence[str]]) -> list[Job]:
    """Return the jobs of all videos with pending questions, longest first; equally long ones in the manifest's order."""
    jobs = [Job(task, tuple(pending[task.id])) for task in tasks if task.id in pending]
    return sorted(jobs, key=lambda job: -_length(job.task))


def _length(task: VideoTask) -> float:
    """Estimate a video's frames without opening it: from its size, or from the files of its folder."""
    if task.size_bytes:
        return task.size_bytes / _BYTES_PER_FRAME
    try:
        return sum(1 for _ in Path(task.video).iterdir())
    except OSError:
        return 0


def check_unchanged(ledger: Ledger, tasks: Sequence[VideoTask], *, redo: bool) -> None:
    """Notice questions whose text or video has changed since they were answered.

    Raises ConfigError naming each, unless `redo`: then they are answered again.
    """
    changed = ledger.changed(tasks)
    if changed and not redo:
        raise ConfigError(
            f"{ledger.path}: {len(changed)} answered questions have changed since:\n  " + "\n  ".join(changed),
            "Answer them again with --redo-changed, or use another --output.",
        )
    for line in changed:
        log.warning("changed, will be answered again: %s", line)


def run(
    tasks: Sequence[VideoTask],
    jobs: Sequence[Job],
    ledger: Ledger,
    executor: Executor,
    formats: Sequence[str],
    progress: Progress,
    limits: Limits | None = None,
    watch: Watch | None = None,
) -> Outcome:
    """Keep the manifest, work through the jobs, write each question's files and then its record, and sum up at the end.

    Also when a limit or an interrupt ends it early (KeyboardInterrupt passes through), the summaries say what there is.
    Raises EnvironmentProblem when the disk is full or the directory cannot be written; what was recorded before stays good.
    """
    watch = watch or Watch(ledger.path)
    totals = Totals(tasks, ledger)
    interrupt: KeyboardInterrupt | None = None
    stop: Stop | None = None
    try:
        # Before any result, so that whatever a kill leaves can be scored.
        write_if_changed(ledger.path, KEPT_MANIFEST, manifest_content(tasks))
        if jobs:
            write_run_file(ledger, tasks, totals, watch, "running")
        watch.begin(_snapshot(totals, progress, executor), work=bool(jobs))
        try:
            stop = _work(tasks, jobs, ledger, executor, formats, progress, limits or Limits(), watch, totals)
        except KeyboardInterrupt as error:
            interrupt, stop = error, Stop(reason_of(error), EXIT_INTERRUPTED)
        finally:
            executor.close()
            progress.close()
        # A second interrupt may cut this short: each file is the old one or the new one, and the next run writes them all.
        outcome = finish(ledger, tasks, totals, watch, stop)
    except OSError as error:
        problem = _write_problem(ledger.path, error)
        watch.fail(problem)
        raise problem from None
    except BaseException as error:
        watch.fail(error)
        raise
    if stop := outcome.stop:
        log.warning("%s; %d questions are pending, the same command goes on", stop.reason, outcome.pending)
    state = "interrupted" if stop or interrupt else "finished"
    watch.end(state, stop.reason if stop else None, _snapshot(totals, progress, executor))
    if interrupt:
        raise interrupt
    return outcome


def _work(
    tasks: Sequence[VideoTask],
    jobs: Sequence[Job],
    ledger: Ledger,
    executor: Executor,
    formats: Sequence[str],
    progress: Progress,
    limits: Limits,
    watch: Watch,
    totals: Totals,
) -> Stop | None:
    """Settle what the workers deliver; return what stopped it before everything was."""
    questions = {(t.id, q.id): (t, q) for t in tasks for q in t.questions}
    stop: Stop | None = None
    for event in executor.run(jobs) if jobs else ():
        match event:
            case Ready():
                totals.devices.append(dict(event.facts))
            case Tick():
                progress.tick()
            case Frames():
                progress.add_frames(event.count)
            case Answered():
                totals.add(event)
                for result in event.results:
                    before = ledger.records.get((result.video_id, result.question_id))
                    _settle(ledger, *questions[result.video_id, result.question_id], result, formats)
                    totals.settle(before, result.status)
                    progress.add_question(failed=result.status == "failed")
                    del result  # a long clip's masks: not beside the next ones
                if event.last:
                    progress.add_video()
        del event
        watch.beat(lambda: _snapshot(totals, progress, executor))
        if failures := limits.failures_stop(progress.failures):
            return failures
        if stop is None and (stop := limits.hours_stop()):
            log.info("%s: no more videos are begun; those in progress may be finished", stop.reason)
            executor.drain()
        if stop and limits.grace_is_over():
            return stop
    return stop


def _snapshot(totals: Totals, progress: Progress, executor: Executor) -> Snapshot:
    return Snapshot(
        statuses=totals.statuses(),
        videos=totals.videos,
        videos_pending=progress.videos - progress.videos_done,
        answered=totals.worked,
        failed=progress.failures,
        frames=progress.frames,
        frames_s=progress.frames_s(),
        eta_s=progress.left_s(),
        stage_seconds=dict(totals.seconds),
        restarts=executor.restarts,
        at_work=executor.at_work(),
    )


def _settle(ledger: Ledger, task: VideoTask, question: Question, result: ItemResult, formats: Sequence[str]) -> None:
    """Write a question's files and then, once they are durable, its record."""
    ledger.withdraw((task.id, question.id))
    sha256 = None
    if result.status == "failed":
        remove_item(ledger.path, task.id, question.id)
        about = {"video": task.id, "question": question.id}
        log.error("%s/%s failed: %s", task.id, question.id, result.error, extra=about)
    else:
        sha256 = write_item(ledger.path, result, question, formats)
    ledger.append(
        Record(task.id, question.id, result.status, inputs_of(task, question), sha256=sha256, error=result.error)
    )


_REMEDIES = {
    errno.ENOSPC: "Free space",
    errno.EDQUOT: "Free space, or have the quota raised,",
    errno.EIO: "Look after the disk (the kernel's log says what is wrong)",
    errno.ESTALE: "Mount the directory anew",
    errno.ENOENT: "See whether the directory was moved or removed,",
}


def _write_problem(path: Path, error: OSError) -> EnvironmentProblem:
    what = "no space left" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return EnvironmentProblem(
        f"{error.filename2 or error.filename or path}: {what}; the run has stopped, everything recorded so far is safe",
        f"{_REMEDIES.get(error.errno or 0, 'Make the directory writable')} and run the same command again.",
    )
