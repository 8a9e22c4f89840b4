"""Be a worker without a model: speak the driver's protocol, answer by the video's id, misbehave where the id says so.

dies…: kills itself on every try. dies-once…: on the first try only (it leaves a file beside the video). hangs…: says
nothing any more, in the stage of its name: hangs-llm. stops…: stops in the middle of a message. exits…: exits with some
last words. half…: dies once, when the first of its results is delivered. slow…: takes a second and a half. works…: takes 20
to 50 ms. says…: prints its id. bad…: the video is at fault. Anything else is answered at once.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from gmcli.data import ItemResult, TemporalSpan
from gmcli.errors import CheckpointError
from gmcli.executors.channel import WorkerEnd, _frame
from gmcli.executors.messages import Answered, Failed, Frames, Job, Ready
from gmcli.executors.pulse import Pulse
from gmcli.masks.rle import encode_rle
from gmcli.video.confine import die_with_parent

FRAMES = 4


def result(job: Job, question: str) -> ItemResult:
    masks = []
    for frame in range(FRAMES):
        mask = np.zeros((6, 8), bool)
        mask[: 1 + (len(job.task.id) + frame) % 6, : 1 + len(question) % 8] = True
        masks.append(encode_rle(mask))
    return ItemResult(
        job.task.id,
        question,
        "no_target" if question.startswith("none") else "done",
        answer="It is [SEG].",
        frames=tuple(range(FRAMES)),
        names=tuple(f"{i:05}" for i in range(FRAMES)),
        masks=tuple(masks),
        span=TemporalSpan(0, FRAMES),
        score=0.5,
    )


def misbehave(job: Job, pulse: Pulse) -> None:
    name = job.task.id
    if name.startswith("dies-once"):
        mark = Path(job.task.video).with_suffix(".tried")
        if mark.exists():
            return
        mark.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("hangs"):
        pulse.beat(name.removeprefix("hangs").strip("-"))
        time.sleep(3600)
    if name.startswith("exits"):
        sys.exit("RuntimeError: CUDA error: an illegal address")
    if name.startswith("works"):
        time.sleep(random.uniform(0.02, 0.05))
    if name.startswith("slow"):
        time.sleep(1.5)
    if name.startswith("says"):
        print(name, flush=True)


def stop_half_way(connection: WorkerEnd, job: Job) -> None:
    said = _frame(Answered(job.task.id, (result(job, job.pending[0]),), last=False))
    connection._socket.sendall(said[: len(said) // 2])
    os.kill(os.getpid(), signal.SIGSTOP)


def half_way(job: Job) -> None:
    mark = Path(job.task.video).with_suffix(".tried")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def die_at_first_starts(folder: str, count: str) -> None:
    """Leave a file for each death by SIGKILL; live once there are enough of them."""
    marks = len(list(Path(folder).glob("start*")))
    if marks < int(count):
        (Path(folder) / f"start{marks}").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    die_with_parent(int(sys.argv[3]))
    connection, pulse = WorkerEnd(int(sys.argv[1])), Pulse(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        number, setup = connection.receive()
        if setup.dtype == "no-checkpoint":
            connection.send(Failed(CheckpointError("weights do not fit", "convert again")))
            return
        if setup.dtype == "no-start":
            sys.exit("this worker cannot start")
        if setup.dtype == "one-start" and number:
            sys.exit("this worker cannot start")
        if setup.dtype.startswith("killed-start"):
            die_at_first_starts(*setup.dtype.split("|")[1:])
        if setup.dtype == "slow-start":
            time.sleep(3600)
        connection.send(Ready(number, {"device": "none", "pid": os.getpid()}))
        while True:
            job = connection.receive()
            misbehave(job, pulse)
            if job.task.id.startswith("stops"):
                stop_half_way(connection, job)
            if job.task.id.startswith("bad"):
                results = tuple(ItemResult(job.task.id, q, "failed", error="no video") for q in job.pending)
            else:
                connection.send(Frames(job.task.id, FRAMES))
                results = tuple(result(job, q) for q in job.pending)
            for number, one in enumerate(results):
                connection.send(Answered(job.task.id, (one,), last=False))
                if job.task.id.startswith("half") and number == 0:
                    half_way(job)
            connection.send(Answered(job.task.id, (), {"llm": 0.5}, {"sam_frames": FRAMES}))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    main()
