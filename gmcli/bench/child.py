"""Be a process of its own for one measurement: what it costs to start, to hold, or to share the machine.

Started as `python -m gmcli.bench.child`; a line of JSON on stdin says what to do, the last line on stdout says what it
took. A process that is to start together with others says `ready` first and waits for another line.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Do what the first line says."""
    asked: dict[str, Any] = json.loads(sys.stdin.readline())
    do: dict[str, Callable[..., dict[str, float]]] = {"multiply": _multiply, "segment": _segment}
    print(json.dumps(do[asked.pop("do")](**asked)), flush=True)


def peak_rss_mib() -> float:
    """Return this process's peak resident memory.

    Not ru_maxrss, where /proc has better: a process starts with the ru_maxrss of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        kib = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(kib) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 / (1024 if sys.platform == "darwin" else 1)


def _multiply(size: int, seconds: float, dtype: str) -> dict[str, float]:
    """Multiply matrices for so many seconds on one thread, together with other processes that do the same."""
    import torch

    from gmcli.bench.light import measure_peak
    from gmcli.checkpoints.load import DTYPES

    torch.set_num_threads(1)
    device = torch.device("cpu")
    measure_peak(device, DTYPES[dtype], shapes=[(size,) * 3], seconds=0.05)
    print("ready", flush=True)
    sys.stdin.readline()
    a, b = torch.randn(size, size, dtype=DTYPES[dtype]), torch.randn(size, size, dtype=DTYPES[dtype])
    products, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        torch.matmul(a, b)
        products += 1
    return {"gflop_s": products * 2e-9 * size**3 / spent}


def _segment(
    ref: str,
    video: str,
    questions: list[str],
    settings: dict[str, Any],
    device: str,
    dtype: str,
    threads: int,
    started: float,
) -> dict[str, float]:
    """Load a model, answer a video twice. started: when this process was asked for, as time.time()."""
    import torch

    from gmcli.bench.ours import build_segmenter, run_ours, without_localizer
    from gmcli.checkpoints.load import load_checkpoint
    from gmcli.config import load_config
    from gmcli.data import Question, VideoTask

    torch.set_num_threads(threads)
    config = load_config(None, settings)
    checkpoint = load_checkpoint(ref, device=device, dtype=dtype, attention=config.attention)
    segmenter = build_segmenter(without_localizer(checkpoint), config, torch.device(device))
    loaded, loaded_mib = time.time(), peak_rss_mib()
    task = VideoTask("v", video, tuple(Question(f"q{i}", text) for i, text in enumerate(questions)))
    first = run_ours(segmenter, task)
    cold = time.time()
    again = run_ours(segmenter, task)
    return {
        "load_s": loaded - started,
        "cold_s": cold - started,
        "warm_s": again.wall_s,
        "warm_cpu_s": again.cpu_s,
        "masked_frames": first.counts["sam_frames"],
        "loaded_rss_mib": loaded_mib,
        "peak_rss_mib": peak_rss_mib(),
        **({"peak_gpu_mib": torch.cuda.max_memory_allocated() / 2**20} if device == "cuda" else {}),
    }


if __name__ == "__main__":
    main()
