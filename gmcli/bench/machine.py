"""Describe the machine that a measurement was made on."""

import platform
from pathlib import Path
from typing import Any

import torch

from gmcli.bench.light import Peak
from gmcli.devices import cpu_count


def describe(device: torch.device, peak: Peak) -> dict[str, Any]:
    """Return names, counts, versions and the peak as JSON values."""
    return {
        "cpu": _cpu_name(),
        "cores": cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": platform.platform(),
        "matmul_peak": peak.to_json(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
