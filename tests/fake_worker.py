"""Be a worker without a model: speak the driver's protocol, answer by the video's id, misbehave where the id says so.

dies…: kills itself on every try. dies-once…: on the first try only (it leaves a file beside the video). hangs…: says
nothing any more. half…: dies once, when the first of its results is delivered. slow…: takes a second and a half. bad…: the
video is at fault. Anything else is answered at once.
"""

import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from gmcli.data import ItemResult, TemporalSpan
from gmcli.errors import CheckpointError
from gmcli.executors.messages import Answered, Failed, Frames, Job, Ready
from gmcli.masks.rle import encode_rle

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


def misbehave(job: Job) -> None:
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
        time.sleep(3600)
    if name.startswith("slow"):
        time.sleep(1.5)


def half_way(job: Job) -> None:
    mark = Path(job.task.video).with_suffix(".tried")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        number, setup = connection.recv()
        if setup.dtype == "no-checkpoint":
            connection.send(Failed(CheckpointError("weights do not fit", "convert again")))
            return
        if setup.dtype == "no-start":
            sys.exit("this worker cannot start")
        connection.send(Ready(number, {"device": "none", "pid": os.getpid()}))
        while True:
            job = connection.recv()
            misbehave(job)
            if job.task.id.startswith("bad"):
                results = tuple(ItemResult(job.task.id, q, "failed", error="no video") for q in job.pending)
            else:
                connection.send(Frames(job.task.id, FRAMES))
                results = tuple(result(job, q) for q in job.pending)
            for number, one in enumerate(results):
                connection.send(Answered(job, (one,), last=False))
                if job.task.id.startswith("half") and number == 0:
                    half_way(job)
            connection.send(Answered(job, (), {"llm": 0.5}, {"sam_frames": FRAMES}))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    main()
