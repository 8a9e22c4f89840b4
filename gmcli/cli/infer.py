"""gmcli infer: answer a manifest's questions with masks."""

import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gmcli.cli.echo import say
from gmcli.config import (
    ATTENTIONS,
    BACKENDS,
    DTYPES,
    LLM_WEIGHTS,
    PATHS,
    READERS,
    VISUAL_TOKENS,
    RunConfig,
    load_config,
)
from gmcli.errors import EXIT_BUG, EXIT_ITEMS_FAILED, EXIT_OK, EnvironmentProblem, UsageError, exit_code_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gmcli.checkpoints.locate import CheckpointFiles
    from gmcli.data import VideoTask
    from gmcli.executors.local import LocalExecutor
    from gmcli.executors.messages import Job
    from gmcli.ledger import Ledger
    from gmcli.limits import Limits
    from gmcli.summaries import Outcome
    from gmcli.watch import Watch


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Run directory.  [default: runs/<manifest's name>]"
)
@click.option(
    "--config", "config_file", metavar="FILE|NAME", help="Settings: a YAML file, or the name of a shipped one."
)
@click.option("--checkpoint", metavar="REF", help="Folder, hub name, or what ships.  [default: mora-tiny]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub name.")
@click.option("--vision-tower", metavar="REF", help="Folder or hub name of CLIP, for an original checkpoint.")
@click.option(
    "--require-sha256", metavar="HEX", help="Refuse a checkpoint of another content; --dry-run prints the hash."
)
@click.option("--visual-tokens", type=click.Choice(VISUAL_TOKENS), help="Override the checkpoint's own layout.")
@click.option("--frames", type=int, metavar="N", help="Frames that the language model sees.  [default: 20]")
@click.option("--mask-frames", metavar="all|sampled|FPS", help="Frames that get masks.  [default: all]")
@click.option("--format", "formats", metavar="LIST", help="Mask formats: png or png1 (1 bit), rle.  [default: png,rle]")
@click.option("--dtype", type=click.Choice(DTYPES), help="[default: auto: fp32 on a CPU, bf16 on a GPU]")
@click.option("--reader", type=click.Choice(READERS), help="Video reader.  [default: pyav]")
@click.option("--max-new-tokens", type=int, metavar="N", help="Longest answer.  [default: 64]")
@click.option("--gpus", metavar="LIST", help='One worker a GPU: "0,1"; or cpu.  [default: all GPUs, else cpu]')
@click.option("--workers", type=int, metavar="N", help="That many worker processes on the CPU.  [default: 1]")
@click.option("--attention", type=click.Choice(ATTENTIONS), help="[default: auto: flash-attn if it can, else sdpa]")
@click.option("--backend", type=click.Choice(BACKENDS), help="What compiles the networks.  [default: eager: nothing]")
@click.option("--llm-weights", type=click.Choice(LLM_WEIGHTS), help="Bits of LLaMA's layers.  [default: as in dtype]")
@click.option("--attempts", type=int, metavar="N", help="Give a video up that ended its worker N times.  [default: 2]")
@click.option("--kill-attempts", type=int, metavar="N", help="The same where it was killed.  [default: 5]")
@click.option("--start-timeout-s", type=int, metavar="S", help="Replace a worker not ready by then.  [default: 7200]")
@click.option("--stall-timeout-s", type=int, metavar="S", help="Replace a worker silent for so long.  [default: 1800]")
@click.option("--paths", type=click.Choice(PATHS), help="Where videos may lie, links followed.  [default: anywhere]")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N videos.")
@click.option("--retry-failed", is_flag=True, help="Also answer questions that failed before.")
@click.option("--redo-changed", is_flag=True, help="Answer changed questions again instead of refusing.")
@click.option("--restart", is_flag=True, help="Throw the run directory's results away and start over.")
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan; load no model, write nothing.")
@click.option("--max-failures", type=click.IntRange(min=1), metavar="N", help="Stop when N questions have failed now.")
@click.option(
    "--max-hours",
    type=click.FloatRange(min=0, min_open=True),
    metavar="H",
    help="Begin no video after H hours, abandon what is not done a tenth of them (at most 10 minutes) later.",
)
@click.option(
    "--metrics-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write metrics for Prometheus' node exporter, every 15 s and at the end.",
)
@click.option(
    "--notify-cmd",
    metavar="COMMAND",
    help="Program and arguments (no shell) to run at the end, with a JSON summary on its standard input.",
)
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Of all logs."
)
def infer(
    manifest: Path,
    output: Path | None,
    config_file: str | None,
    limit: int | None,
    retry_failed: bool,
    redo_changed: bool,
    restart: bool,
    dry_run: bool,
    max_failures: int | None,
    max_hours: float | None,
    metrics_file: Path | None,
    notify_cmd: str | None,
    log_format: str,
    **settings: Any,
) -> None:
    """Answer the questions of MANIFEST (YAML or JSONL) with masks.

    Run the same command again after a crash: only what is missing is done.
    """
    from gmcli.backends.choose import check_backend
    from gmcli.checkpoints.locate import fingerprint, locate_checkpoint
    from gmcli.config import check_llm_weights
    from gmcli.ledger import Identity, Ledger
    from gmcli.limits import Limits
    from gmcli.logs import set_up_logging
    from gmcli.manifest import read_manifest
    from gmcli.metrics_file import check_metrics_file
    from gmcli.notify import notify, split_command
    from gmcli.watch import Watch, new_run_id

    run_id = new_run_id()
    set_up_logging(log_format, run_id=run_id)
    limits = Limits(max_failures=max_failures, max_hours=max_hours)
    command = split_command(notify_cmd) if notify_cmd is not None else None
    output = output or Path("runs") / manifest.stem
    if metrics_file:
        check_metrics_file(metrics_file, output)
    config = load_config(config_file, settings)
    tasks = read_manifest(manifest, inside_root=config.paths == "inside-root")[:limit]
    files = locate_checkpoint(
        config.checkpoint,
        revision=config.revision,
        vision_tower=config.vision_tower,
        require_sha256=config.require_sha256,
    )
    gpus = _devices(config)
    dtype = config.dtype if config.dtype != "auto" else ("fp32" if gpus is None else "bf16")
    check_backend(config.backend, "cpu" if gpus is None else "cuda", dtype)
    check_llm_weights(config.llm_weights, "cpu" if gpus is None else "cuda", dtype)
    identity = Identity(
        settings=config.to_json() | {"dtype": dtype} | files.commits,
        decisive=config.decisive() | {"dtype": dtype},
        checkpoint_sha256=config.require_sha256 or fingerprint(files),
    )
    if dry_run:
        say(f"content        {identity.checkpoint_sha256} (for --require-sha256)")
        _dry_run(tasks, Ledger.look(output, identity) if not restart else None, files, gpus, config, retry_failed)
        return
    _heed_signals()
    watch, code = None, EXIT_BUG
    try:
        with Ledger.open(output, identity, restart=restart) as ledger:
            watch = Watch(ledger.path, run_id, metrics_file=metrics_file)
            asked = _Asked(files, config, gpus, dtype, retry_failed, redo_changed, log_format, limits)
            try:
                code = _infer(ledger, tasks, asked, watch)
            except BaseException as error:
                code = exit_code_of(error)
                watch.fail(error)
                raise
            finally:
                watch.close(code)
    finally:
        # After the directory is given back, so that the command may look at it, or start the next run.
        if watch is not None and command is not None:
            notify(command, watch.summary(code))
    sys.exit(code)


def _heed_signals() -> None:
    """Treat the signals by which cron, schedulers and closed terminals end a job like Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup has a closed terminal ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Hold what was asked for, checked and resolved."""

    files: "CheckpointFiles"
    config: RunConfig
    gpus: list[str] | None
    dtype: str
    retry_failed: bool
    redo_changed: bool
    log_format: str
    limits: "Limits"


def _infer(ledger: "Ledger", tasks: "Sequence[VideoTask]", asked: _Asked, watch: "Watch") -> int:
    """Run, say what there is, and return the exit code."""
    import logging

    from gmcli.checkpoints.locate import unpinned
    from gmcli.ledger import LOGS
    from gmcli.logs import set_up_logging
    from gmcli.progress import Progress
    from gmcli.run import check_unchanged, plan, run

    set_up_logging(asked.log_format, ledger.path / LOGS / "driver.log", run_id=watch.run_id)
    log = logging.getLogger("gmcli")
    for line in (*unpinned(asked.files, asked.config.revision), *ledger.damaged):
        log.warning("%s", line)
    check_unchanged(ledger, tasks, redo=asked.redo_changed)
    pending = ledger.pending(tasks, retry_failed=asked.retry_failed)
    jobs = plan(tasks, pending)
    to_answer = sum(len(job.pending) for job in jobs)
    total = sum(len(t.questions) for t in tasks)
    log.info("%d of %d questions to answer, in %d videos", to_answer, total, len(jobs))
    progress = Progress(videos=len(jobs), questions=to_answer, done=total - to_answer)
    executor = _executor(ledger.path / LOGS, asked, watch.run_id)
    outcome = run(tasks, jobs, ledger, executor, asked.config.formats, progress, asked.limits, watch)
    log.info("%s", progress.line())
    # Whoever read this may be gone; the run is done nevertheless.
    with suppress(BrokenPipeError):
        _say_outcome(ledger.path, outcome, asked.config.formats)
    if outcome.stop:
        return outcome.stop.exit_code
    return EXIT_ITEMS_FAILED if outcome.failed else EXIT_OK


def _executor(logs: Path, asked: _Asked, run_id: str) -> "LocalExecutor":
    from gmcli.devices import cpu_count
    from gmcli.executors.local import LocalExecutor
    from gmcli.executors.messages import WorkerSetup

    workers = asked.config.workers or 1
    return LocalExecutor(
        WorkerSetup(
            files=asked.files,
            config=asked.config,
            device="cpu" if asked.gpus is None else "cuda",
            dtype=asked.dtype,
            threads=max(1, cpu_count() // (workers if asked.gpus is None else len(asked.gpus))),
            log_format=asked.log_format,
            run_id=run_id,
        ),
        gpus=asked.gpus,
        workers=workers,
        logs=logs,
    )


def _say_outcome(path: Path, outcome: "Outcome", formats: "Sequence[str]") -> None:
    say(
        f"{outcome.done} done, {outcome.no_target} without a target, {outcome.failed} failed, "
        f"{outcome.pending} pending; {outcome.worked} answered now"
    )
    say(f"answers  {path / 'results.json'}")
    if {"png", "png1"} & set(formats):
        say(f"masks    {path / 'masks'}")
    if outcome.failed:
        say(f"failures {path / 'failures.jsonl'}")


def _devices(config: RunConfig) -> list[str] | None:
    """Return the GPUs to use, or None for the CPU. A number of workers asks for the CPU, where nothing else is asked."""
    from gmcli.devices import gpu_count

    if config.gpus == "cpu" or (config.gpus == "auto" and config.workers is not None):
        return None
    if config.workers is not None:
        raise UsageError("workers is for the CPU: a GPU has one worker", "Leave it out, or use --gpus cpu.")
    found = gpu_count()
    if config.gpus == "auto":
        return [str(i) for i in range(found)] or None
    wanted = config.gpus.split(",")
    missing = [g for g in wanted if int(g) >= found]
    if missing:
        raise EnvironmentProblem(
            f"no GPU {', '.join(missing)}: the CUDA driver shows {found}", "Run `gmcli doctor`, or use --gpus cpu."
        )
    return wanted


def _dry_run(
    tasks: "Sequence[VideoTask]",
    ledger: "Ledger | None",
    files: "CheckpointFiles",
    gpus: list[str] | None,
    config: RunConfig,
    retry_failed: bool,
) -> None:
    """Check the checkpoint's keys on the meta device and print what would be done."""
    from gmcli.checkpoints.load import check_checkpoint
    from gmcli.run import check_unchanged, plan

    model, sources = check_checkpoint(files)
    if ledger is None:
        pending = {t.id: [q.id for q in t.questions] for t in tasks}
    else:
        check_unchanged(ledger, tasks, redo=True)
        pending = ledger.pending(tasks, retry_failed=retry_failed)
    jobs = plan(tasks, pending)
    where = f"{config.workers or 1} workers on the CPU" if gpus is None else f"GPUs {', '.join(gpus)}"
    say(f"checkpoint     {files.path} ({len(sources)} tensors, all fit)")
    say(f"visual tokens  {config.visual_tokens or model.visual_tokens}, {config.frames} frames")
    say(f"workers        {where}, backend {config.backend}")
    total = sum(len(t.questions) for t in tasks)
    say(f"to answer      {sum(len(j.pending) for j in jobs)} of {total} questions, in {len(jobs)} videos:")
    _print_jobs(jobs)


def _print_jobs(jobs: "Sequence[Job]", most: int = 20) -> None:
    for job in jobs[:most]:
        say(f"  {job.task.id}: {', '.join(job.pending)}  ({job.task.video})")
    if len(jobs) > most:
        say(f"  … and {len(jobs) - most} more")
