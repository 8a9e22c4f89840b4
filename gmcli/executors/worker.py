"""Be a worker process: load the model once, then answer videos until the driver hangs up.

Started as `python -m gmcli.executors.worker FD PARENT`; FD is this process's end of a pipe, PARENT the driver's pid.
"""

import ctypes
import faulthandler
import logging
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from gmcli.data import ItemResult
from gmcli.errors import GmcliError, ItemError
from gmcli.executors.messages import Answered, Failed, Frames, Job, Ready, WorkerSetup
from gmcli.logs import set_up_logging

if TYPE_CHECKING:
    from gmcli.segmenter import Segmenter

log = logging.getLogger("gmcli.worker")

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve the driver at the other end of the pipe."""
    connection = Connection(int(sys.argv[1]))
    _die_with(int(sys.argv[2]))
    # The terminal sends Ctrl-C to every process; the driver decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    try:
        number, setup = connection.recv()
        set_up_logging(setup.log_format)
        _serve(connection, number, setup)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The driver is gone or wants no more.
        return


def _die_with(parent: int) -> None:
    """Ask the kernel to end this process when the driver ends, however it ends: no orphans."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def _serve(connection: Connection, number: int, setup: WorkerSetup) -> None:
    try:
        segmenter = _build(setup)
    except GmcliError as error:
        connection.send(Failed(error))
        return
    connection.send(Ready(number, _facts(setup.device) | {"components": dict(segmenter.engines.used)}))
    while True:
        job: Job = connection.recv()
        log.info("video %s: %d questions", job.task.id, len(job.pending))

        def progress(count: int, video: str = job.task.id) -> None:
            connection.send(Frames(video, count))

        try:
            answer = segmenter.segment(job.task, job.pending, progress)
        except Exception as error:
            if "CUDA error" in str(error):
                # The device's context is broken for good: end, so that the driver starts a fresh process.
                raise
            reason = _reason(error)
            results = tuple(ItemResult(job.task.id, q, "failed", error=reason) for q in job.pending)
            connection.send(Answered(job, results))
        else:
            work = answer.work
            for result in answer.results:
                connection.send(Answered(job, (result,), last=False))
            connection.send(Answered(job, (), dict(work.seconds), work.counts()))
            log.info("video %s: answered in %.2f s", job.task.id, sum(work.seconds.values()))


def _build(setup: WorkerSetup) -> "Segmenter":
    import torch  # here, so that a worker that cannot have it can still say so

    from gmcli.checkpoints.load import load_checkpoint
    from gmcli.engines import prepare_engines
    from gmcli.errors import EnvironmentProblem
    from gmcli.resources import private_dir
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
    # torch's own place for what it compiles is a name in /tmp that anybody can guess.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(private_dir("inductor")))
    engines = prepare_engines(checkpoint, setup.config.backend, questions=setup.config.questions_per_batch)
    return Segmenter(checkpoint, setup.config, setup.device, engines)


def _facts(device: str) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {"device": name, "torch": str(torch.__version__)}  # its own class would be torch's in the driver


def _reason(error: Exception) -> str:
    """Turn an exception into one line for the ledger; anything unforeseen also goes to the log with its trace."""
    if isinstance(error, ItemError):
        log.warning("%s", error.message)
        return error.message
    log.exception("unforeseen error")
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


if __name__ == "__main__":
    main()
