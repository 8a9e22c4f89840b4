"""gmcli infer: answer a manifest's questions with masks."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gmcli.config import ATTENTIONS, BACKENDS, DTYPES, LLM_WEIGHTS, READERS, VISUAL_TOKENS, RunConfig, load_config
from gmcli.errors import EXIT_ITEMS_FAILED, EXIT_OK, EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gmcli.checkpoints.locate import CheckpointFiles
    from gmcli.data import VideoTask
    from gmcli.executors.messages import Job
    from gmcli.ledger import Ledger


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
@click.option("--stall-timeout-s", type=int, metavar="S", help="Replace a worker silent for so long.  [default: 1800]")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N videos.")
@click.option("--retry-failed", is_flag=True, help="Also answer questions that failed before.")
@click.option("--redo-changed", is_flag=True, help="Answer changed questions again instead of refusing.")
@click.option("--restart", is_flag=True, help="Throw the run directory's results away and start over.")
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan; load no model, write nothing.")
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
    from gmcli.logs import set_up_logging
    from gmcli.manifest import read_manifest

    set_up_logging(log_format)
    config = load_config(config_file, settings)
    tasks = read_manifest(manifest)[:limit]
    files = locate_checkpoint(config.checkpoint, revision=config.revision, vision_tower=config.vision_tower)
    gpus = _devices(config)
    dtype = config.dtype if config.dtype != "auto" else ("fp32" if gpus is None else "bf16")
    check_backend(config.backend, "cpu" if gpus is None else "cuda", dtype)
    check_llm_weights(config.llm_weights, "cpu" if gpus is None else "cuda", dtype)
    identity = Identity(
        settings=config.to_json() | {"dtype": dtype},
        decisive=config.decisive() | {"dtype": dtype},
        checkpoint_sha256=fingerprint(files),
    )
    output = output or Path("runs") / manifest.stem
    if dry_run:
        _dry_run(tasks, Ledger.look(output, identity) if not restart else None, files, gpus, config, retry_failed)
        return
    # cron and schedulers end a job with SIGTERM: treat it like Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    with Ledger.open(output, identity, restart=restart) as ledger:
        _infer(ledger, tasks, files, config, gpus, dtype, retry_failed, redo_changed, log_format)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _infer(
    ledger: "Ledger",
    tasks: "Sequence[VideoTask]",
    files: "CheckpointFiles",
    config: RunConfig,
    gpus: list[str] | None,
    dtype: str,
    retry_failed: bool,
    redo_changed: bool,
    log_format: str,
) -> None:
    import logging

    from gmcli.devices import cpu_count
    from gmcli.executors.local import LocalExecutor
    from gmcli.executors.messages import WorkerSetup
    from gmcli.ledger import LOGS
    from gmcli.logs import set_up_logging
    from gmcli.progress import Progress
    from gmcli.run import check_unchanged, plan, run

    set_up_logging(log_format, ledger.path / LOGS / "driver.log")
    log = logging.getLogger("gmcli")
    for line in ledger.damaged:
        log.warning("%s", line)
    check_unchanged(ledger, tasks, redo=redo_changed)
    pending = ledger.pending(tasks, retry_failed=retry_failed)
    jobs = plan(tasks, pending)
    workers = config.workers or 1
    asked = sum(len(job.pending) for job in jobs)
    total = sum(len(t.questions) for t in tasks)
    log.info("%d of %d questions to answer, in %d videos", asked, total, len(jobs))
    executor = LocalExecutor(
        WorkerSetup(
            files=files,
            config=config,
            device="cpu" if gpus is None else "cuda",
            dtype=dtype,
            threads=max(1, cpu_count() // (workers if gpus is None else len(gpus))),
            log_format=log_format,
        ),
        gpus=gpus,
        workers=workers,
        logs=ledger.path / LOGS,
        stall_timeout_s=config.stall_timeout_s,
    )
    progress = Progress(videos=len(jobs), questions=asked, done=total - asked)
    outcome = run(tasks, jobs, ledger, executor, config.formats, progress)
    log.info("%s", progress.line())
    click.echo(
        f"{outcome.done} done, {outcome.no_target} without a target, {outcome.failed} failed, "
        f"{outcome.pending} pending; {outcome.worked} answered now\n"
        f"answers  {ledger.path / 'results.json'}"
        + (f"\nmasks    {ledger.path / 'masks'}" if {"png", "png1"} & set(config.formats) else "")
        + (f"\nfailures {ledger.path / 'failures.jsonl'}" if outcome.failed else "")
    )
    sys.exit(EXIT_ITEMS_FAILED if outcome.failed else EXIT_OK)


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
    click.echo(f"checkpoint     {files.path} ({len(sources)} tensors, all fit)")
    click.echo(f"visual tokens  {config.visual_tokens or model.visual_tokens}, {config.frames} frames")
    click.echo(f"workers        {where}, backend {config.backend}")
    total = sum(len(t.questions) for t in tasks)
    click.echo(f"to answer      {sum(len(j.pending) for j in jobs)} of {total} questions, in {len(jobs)} videos:")
    _print_jobs(jobs)


def _print_jobs(jobs: "Sequence[Job]", most: int = 20) -> None:
    for job in jobs[:most]:
        click.echo(f"  {job.task.id}: {', '.join(job.pending)}  ({job.task.video})")
    if len(jobs) > most:
        click.echo(f"  … and {len(jobs) - most} more")
