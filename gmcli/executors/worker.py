"""Be a worker process: load the model once, then answer videos until the driver hangs up.

Started as `python -m gmcli.executors.worker SOCKET PULSE PARENT`: the descriptors of this process's end of a socket pair and
of the bytes of its pulse, and the driver's pid.
"""

import faulthandler
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from gmcli.data import ItemResult
from gmcli.errors import GmcliError, ItemError
from gmcli.executors.channel import WorkerEnd
from gmcli.executors.messages import Answered, Failed, Frames, Job, Ready, WorkerSetup
from gmcli.executors.pulse import Pulse
from gmcli.logs import set_up_logging
from gmcli.text import shorten
from gmcli.video.confine import die_with_parent
from gmcli.video.limits import limits_from
from gmcli.video.sandbox import DecoderSandbox
from gmcli.work import Work

if TYPE_CHECKING:
    from gmcli.segmenter import Segmenter

log = logging.getLogger("gmcli.worker")

# Errors quote what strangers wrote, at any length; the ledger and every summary repeat them.
_LONGEST_REASON = 300


def main() -> None:
    """Serve the driver at the other end of the socket."""
    die_with_parent(int(sys.argv[3]))
    driver, pulse = WorkerEnd(int(sys.argv[1])), Pulse(int(sys.argv[2]))
    # The terminal sends Ctrl-C to every process; the driver decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    try:
        number, setup = driver.receive()
        set_up_logging(setup.log_format, run_id=setup.run_id, worker=number)
        # Now, so that it is ready by the time that the model is.
        with DecoderSandbox(limits_from(setup.config.to_json())) as sandbox:
            _serve(driver, pulse, number, setup, sandbox)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The driver is gone or wants no more.
        return


def _serve(driver: WorkerEnd, pulse: Pulse, number: int, setup: WorkerSetup, sandbox: DecoderSandbox) -> None:
    try:
        segmenter = _build(setup, sandbox)
        facts = _facts(setup.device) | {"components": dict(segmenter.engines.used), "sandbox": sandbox.measures()}
    except GmcliError as error:
        driver.send(Failed(error))
        return
    driver.send(Ready(number, facts))
    while True:
        pulse.beat("")
        job: Job = driver.receive()
        about = {"video": job.task.id}
        log.info("video %s: %d questions", job.task.id, len(job.pending), extra=about)

        def progress(count: int, video: str = job.task.id) -> None:
            driver.send(Frames(video, count))

        work = Work(entered=pulse.beat)
        try:
            answer = segmenter.segment(job.task, job.pending, progress, work)
        except Exception as error:
            reason = _reason(error, job.task.id)
            results = tuple(ItemResult(job.task.id, q, "failed", error=reason) for q in job.pending)
            if "CUDA error" in str(error):
                # The device's context is broken for good: the driver starts a fresh process, and quotes the last line.
                sys.exit(reason)
            driver.send(Answered(job.task.id, results, dict(work.seconds), work.counts()))
        else:
            for result in answer.results:
                driver.send(Answered(job.task.id, (result,), last=False))
            driver.send(Answered(job.task.id, (), dict(work.seconds), work.counts()))
            log.info("video %s: answered in %.2f s", job.task.id, sum(work.seconds.values()), extra=about)


def _build(setup: WorkerSetup, sandbox: DecoderSandbox) -> "Segmenter":
    import torch  # here, so that a worker that cannot have it can still say so

    from gmcli.checkpoints.load import load_checkpoint
    from gmcli.engines import prepare_engines
    from gmcli.errors import EnvironmentProblem
    from gmcli.private import keep_torch_private
    from gmcli.segmenter import Segmenter

    if setup.device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem(
            f"torch {torch.__version__} sees no GPU (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')})",
            "Run `gmcli doctor`, or use --gpus cpu.",
        )
    if setup.device == "cuda" and setup.dtype == "bf16" and not torch.cuda.is_bf16_supported():
        raise EnvironmentProblem(f"{torch.cuda.get_device_name()} has no bf16", "Use --dtype fp16 or fp32.")
    torch.set_num_threads(setup.threads)
    checkpoint = load_checkpoint(
        setup.files,
        device=setup.device,
        dtype=setup.dtype,
        attention=setup.config.attention,
        llm_weights=setup.config.llm_weights,
    )
    keep_torch_private()
    engines = prepare_engines(checkpoint, setup.config.backend, questions=setup.config.questions_per_batch)
    return Segmenter(checkpoint, setup.config, setup.device, engines, sandbox.open)


def _facts(device: str) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {"device": name, "torch": str(torch.__version__)}  # its own class would be torch's in the driver


def _reason(error: Exception, video: str) -> str:
    """Turn an exception into one line for the ledger; anything unforeseen also goes to the log with its trace."""
    if isinstance(error, ItemError):
        log.warning("%s", error.message, extra={"video": video})
        return shorten(error.message, _LONGEST_REASON)
    log.exception("unforeseen error", extra={"video": video})
    lines = str(error).strip().splitlines()
    return shorten(f"{type(error).__name__}: {lines[0]}", _LONGEST_REASON) if lines else type(error).__name__


if __name__ == "__main__":
    main()
