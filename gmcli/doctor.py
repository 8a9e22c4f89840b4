"""Find out what this machine has and lacks, and say how to repair it.

Whatever imports a third-party package runs in a process of its own, so that a broken installation (a crash in C, an
import that hangs) becomes one line of the report and not the end of it.
"""

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gmcli.errors import GmcliError
from gmcli.private import keep_openvino_silent
from gmcli.resources import cache_dir

Status = Literal["ok", "missing", "broken"]

PROBE_TIMEOUT_S = 60.0
PROBES_AT_ONCE = 2  # each imports torch or the like: a core and some hundred MB
MIN_PYTHON = (3, 11)
MIN_FREE_BYTES = 1 << 30  # with less, a long run is likely to end on a full disk
DECODERS = {  # in software: FFmpeg's own "av1" needs a graphics card
    "h264": ("h264",),
    "hevc": ("hevc",),
    "vp9": ("vp9", "libvpx-vp9"),
    "av1": ("libdav1d", "libaom-av1", "libgav1"),
}


@dataclass(frozen=True, slots=True)
class Check:
    """Tell how one thing is. `detail` is one line; `remedy` is one line with a command, None where `status` is ok."""

    name: str
    status: Status
    required: bool
    detail: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Tell what a probe saw, on its way out of the probe's process. `remedy` None means the probe's usual one."""

    status: Status
    detail: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """Describe a check that runs in its own process.

    `code` is Python whose last line of output is a Finding as JSON; `remedy` is for when it gives none.
    """

    name: str
    required: bool
    remedy: str
    code: str
    timeout_s: float = PROBE_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Package:
    """Describe a package that gmcli uses.

    `distributions` install the same module, so at most one may be there; the first is the one that gmcli names.
    `install` gets it or a newer one, `repair` replaces what is broken or in its way.
    """

    name: str
    module: str
    distributions: tuple[str, ...]
    minimum: str
    required: bool
    install: str
    repair: str


_AGAIN = "pip install --force-reinstall"
_PAIR = "'torch>=2.9' 'torchvision>=0.24'"
_GET_DRIVER = "sudo ubuntu-drivers install # in a container instead: docker run --gpus all"
_FLASH = "pip install 'gmcli[flash]' --no-build-isolation"


def _plain(name: str, module: str, distribution: str, minimum: str) -> Package:
    wanted = f"'{distribution}>={minimum}'"
    return Package(name, module, (distribution,), minimum, True, f"pip install {wanted}", f"{_AGAIN} {wanted}")


# The minimum versions repeat pyproject.toml (a test compares them): a broken installation may have lost its metadata.
PACKAGES = (
    Package("torch", "torch", ("torch",), "2.9", True, f"pip install {_PAIR}", f"{_AGAIN} {_PAIR}"),
    Package("torchvision", "torchvision", ("torchvision",), "0.24", True, f"pip install {_PAIR}", f"{_AGAIN} {_PAIR}"),
    _plain("transformers", "transformers", "transformers", "5.24"),
    _plain("segment-anything", "segment_anything", "segment-anything", "1.0"),
    _plain("pycocotools", "pycocotools.mask", "pycocotools", "2.0.8"),
    # The wheels carry an FFmpeg with every codec above; a PyAV built against the system's may lack some.
    Package("PyAV", "av", ("av",), "17.0", True, "pip install 'av>=17.0'", f"{_AGAIN} --only-binary av 'av>=17.0'"),
    Package(
        name="decord",
        module="decord",
        distributions=("decord2", "decord"),
        minimum="3.0",
        required=False,
        install="pip install 'decord2>=3.0'",
        repair="pip uninstall -y decord decord2; pip install 'decord2>=3.0'",
    ),
    Package(
        name="torch-tensorrt",
        module="torch_tensorrt",
        distributions=("torch-tensorrt", "torch-tensorrt-rtx"),
        minimum="2.9",
        required=False,
        install="pip install 'gmcli[trt]'",
        repair="pip uninstall -y torch-tensorrt torch-tensorrt-rtx; pip install 'gmcli[trt]'",
    ),
    Package(
        "OpenVINO", "openvino", ("openvino",), "2026.4", False, "pip install 'gmcli[openvino]'", f"{_AGAIN} openvino"
    ),
    Package("torchao", "torchao", ("torchao",), "0.18", False, "pip install 'gmcli[quant]'", f"{_AGAIN} torchao"),
    # Repaired without pip's cache: what lies there was built for the torch of its day.
    Package(
        name="flash-attn",
        module="flash_attn",
        distributions=("flash-attn",),
        minimum="2.6",
        required=False,
        install=_FLASH,
        repair=f"pip uninstall -y flash-attn; {_FLASH} --no-cache-dir",
    ),
    Package("ray", "ray", ("ray",), "2.52", False, "pip install 'gmcli[ray]'", f"{_AGAIN} 'ray>=2.52'"),
)


def run_checks(checkpoint: str, output: Path) -> list[Check]:
    """Check everything that gmcli needs or can use, and return one Check for each, in a fixed order.

    checkpoint: a folder, hub name or "mora-tiny"; nothing is downloaded.
    output: the directory of a run, which need not exist yet.
    Raises nothing for what is wrong with the machine: the checks say it.
    """
    with ThreadPoolExecutor(PROBES_AT_ONCE) as pool:
        probed = list(pool.map(run_probe, planned_probes(checkpoint)))
    return [
        check_python(),
        *probed,
        check_disk("output disk", lambda: output, True, "gmcli doctor --output /a/directory/on/another/disk"),
        check_disk("cache disk", cache_dir, False, "export GMCLI_CACHE=/a/directory/on/another/disk"),
    ]


def all_required_ok(checks: Iterable[Check]) -> bool:
    """Say whether gmcli can work here; what is optional does not count."""
    return all(check.status == "ok" for check in checks if check.required)


def planned_probes(checkpoint: str) -> list[Probe]:
    """List the checks that run in processes of their own."""
    return [
        *(Probe(p.name, p.required, p.repair, _code(probe_package, p.name)) for p in PACKAGES),
        Probe("CUDA", False, f"{_AGAIN} {_PAIR}", _code(probe_cuda)),
        Probe("GPU", False, "nvidia-smi", _code(probe_gpus)),
        checkpoint_probe(checkpoint),
    ]


def checkpoint_probe(ref: str) -> Probe:
    """Describe the check of a checkpoint."""
    return Probe("checkpoint", True, f"{_AGAIN} --no-deps gmcli", _code(probe_checkpoint, ref))


# In the parent process.


def run_probe(probe: Probe) -> Check:
    """Run one probe in a process of its own; a crash, a time-out or an unreadable answer is "broken"."""
    finding = _run(probe.code, probe.timeout_s)
    remedy = None if finding.status == "ok" else _one_line(finding.remedy or probe.remedy)
    return Check(probe.name, finding.status, probe.required, _one_line(finding.detail), remedy)


def check_python() -> Check:
    """Check the interpreter that runs this."""
    detail = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] >= MIN_PYTHON:
        return Check("python", "ok", True, detail)
    wanted = ".".join(map(str, MIN_PYTHON))
    remedy = f"python{wanted} -m venv gmcli-env && gmcli-env/bin/pip install gmcli"
    return Check("python", "broken", True, f"{detail} is older than {wanted}", remedy)


def check_disk(name: str, find: Callable[[], Path], required: bool, remedy: str) -> Check:
    """Check that the directory that `find` returns, or its nearest parent that exists, can be written and has space."""
    try:
        directory = find().absolute()
        existing = next(p for p in (directory, *directory.parents) if p.exists())
        if not existing.is_dir():
            return Check(name, "broken", required, f"{existing} is not a directory", remedy)
        # Only writing tells: permission bits know nothing of quotas, read-only mounts and network disks.
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"gmcli")
        usage = shutil.disk_usage(existing)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        return Check(name, "broken", required, _one_line(str(error)), remedy)
    detail = _one_line(f"{directory}: {_size(usage.free)} of {_size(usage.total)} free")
    if usage.free < MIN_FREE_BYTES:
        return Check(name, "broken", required, f"{detail}; a run needs {_size(MIN_FREE_BYTES)}", remedy)
    return Check(name, "ok", required, detail)


def _run(code: str, timeout_s: float) -> Finding:
    # -P: a file in the working directory must not pass for a package.
    command = [sys.executable, "-P", "-c", code]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Finding("broken", f"no answer within {timeout_s:g} s")
    except OSError as error:  # no memory or no processes left
        return Finding("broken", f"the probe cannot be started: {error}")
    last_words = _last_line(done.stderr)
    if done.returncode < 0:
        killed = f"killed by {_signal_name(-done.returncode)}"
        return Finding("broken", f"{killed}: {last_words}" if last_words else killed)
    if done.returncode > 0:
        return Finding("broken", last_words or f"the probe ended with exit code {done.returncode}")
    return _read_finding(_last_line(done.stdout))


def _read_finding(line: str) -> Finding:
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        answer = json.loads(line)
        status, detail, remedy = answer["status"], answer["detail"], answer["remedy"]
        if status in ("ok", "missing", "broken") and isinstance(detail, str) and isinstance(remedy, str | None):
            return Finding(status, detail, remedy)
    return Finding("broken", f"the probe gave no answer but {line[:60]!r}")


def _code(function: Callable[..., Finding], *arguments: str) -> str:
    """Return the code that calls a function of this file in another process, where it may crash."""
    # Appended: in front, an installed gmcli would put all of site-packages before the standard library.
    root = str(Path(__file__).resolve().parents[1])
    call = f"doctor.{function.__name__}({', '.join(map(repr, arguments))})"
    return f"import sys; sys.path.append({root!r})\nfrom gmcli import doctor\ndoctor.report({call})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_line(output: bytes) -> str:
    lines = [line for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _one_line(text: str) -> str:
    """Fit the words of others into a line of a terminal: no line breaks, no control characters, no essays."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:300]


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


# In the probes' processes: what follows may crash, hang or raise whatever it likes.


def report(finding: Finding) -> None:
    """Send a finding to the parent process."""
    print(json.dumps(asdict(finding)))


def probe_package(name: str) -> Finding:
    """Import a package of PACKAGES and use it once."""
    package = next(p for p in PACKAGES if p.name == name)
    spec = importlib.util.find_spec(package.module.partition(".")[0])
    if spec is None or spec.origin is None:  # without origin: the empty folder of a package that was uninstalled
        return Finding("missing", "not installed", package.install)
    installed = _installed(package.distributions)
    if len(installed) > 1:
        both = " and ".join(f"{k} {v}" for k, v in installed.items())
        return Finding("broken", f"{both} overwrite each other", package.repair)
    for distribution, version in installed.items():
        if _release(version) < _release(package.minimum):
            remedy = package.install if distribution == package.distributions[0] else package.repair
            return Finding("broken", f"{distribution} {version} is older than {package.minimum}", remedy)
    keep_openvino_silent()
    module = importlib.import_module(package.module)
    versions = [f"{k} {v}" if k != name else v for k, v in installed.items()]
    return Finding("ok", ", ".join([*(versions or ["of unknown version"]), *_use(module)]))


def probe_cuda() -> Finding:
    """Compare the NVIDIA driver with what torch was built for; no GPU is touched."""
    driver = _driver_cuda()
    if driver is None:  # asked before torch, whose import takes seconds
        return Finding("missing", "no NVIDIA driver (libcuda.so.1 cannot be used)", _GET_DRIVER)
    built: str | None = importlib.import_module("torch").version.cuda
    detail = f"the driver knows CUDA {driver[0]}.{driver[1]}, torch is built for {built or 'the CPU only'}"
    if built is None:
        return Finding("broken", detail, f"{_AGAIN} --index-url https://pypi.org/simple {_PAIR}")
    # Within a major version, older drivers serve newer builds.
    if driver[0] < int(built.partition(".")[0]):
        remedy = "sudo ubuntu-drivers install # or an older torch: https://pytorch.org/get-started/previous-versions"
        return Finding("broken", detail, remedy)
    return Finding("ok", detail)


def probe_gpus() -> Finding:
    """Compute a little on every GPU that torch sees; say its name, capability and memory."""
    if _driver_cuda() is None:
        return Finding("missing", "none without a driver: everything runs on the CPU, slowly", _GET_DRIVER)
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            return Finding(
                "missing", f"torch sees none in CUDA_VISIBLE_DEVICES={visible!r}", "unset CUDA_VISIBLE_DEVICES"
            )
        return Finding("missing", "torch sees none: everything runs on the CPU, slowly", "nvidia-smi")
    seen = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        gpu = f"{index}: {torch.cuda.get_device_name(index)} (sm_{major}{minor})"
        try:
            torch.ones(8, device=f"cuda:{index}").sum().item()
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError as error:
            # The first line names the cause, the others are about debugging CUDA.
            return Finding("broken", f"{gpu}: {str(error).partition(chr(10))[0]}", "nvidia-smi")
        seen.append(f"{gpu}, {_size(free)} of {_size(total)} free")
    return Finding("ok", "; ".join(seen))


def probe_checkpoint(ref: str) -> Finding:
    """Find a checkpoint and check its files, without loading weights and without downloading any."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # a name may stand for 15 GB; huggingface_hub reads this at import
    locate = importlib.import_module("gmcli.checkpoints.locate")
    try:
        files = locate.locate_checkpoint(ref)
    except GmcliError as error:
        here = Path(ref).exists()
        if not here and re.fullmatch(r"[\w.-]+/[\w.-]+", ref):
            return Finding("missing", f"{ref} is neither a folder nor whole in the hub's cache", f"hf download {ref}")
        remedy = error.hint or "gmcli doctor --checkpoint mora-tiny # if that is ok, the files of this one are at fault"
        return Finding("broken" if here else "missing", error.message, remedy)
    path = Path(files.path)
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
    return Finding("ok", f"{path} ({files.layout} layout, {_size(size)})")


def _installed(distributions: Iterable[str]) -> dict[str, str]:
    installed = {}
    for distribution in distributions:
        try:
            installed[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def _driver_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA version that the NVIDIA driver knows, None without a driver."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed or not version.value else (version.value // 1000, version.value % 1000 // 10)


def _use(module: Any) -> list[str]:
    """Use a package once, as importing it proves little; return what else is worth knowing."""
    match module.__name__:
        case "torch":
            module.ones(2, 2).matmul(module.ones(2, 2))
            return [f"built for CUDA {module.version.cuda}" if module.version.cuda else "built for the CPU only"]
        case "torchvision":
            # The operator that is lost first where torchvision does not fit torch.
            torch = importlib.import_module("torch")
            module.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
            return [f"fits torch {torch.__version__}"]
        case "transformers":
            # It imports lazily: only this runs the code that needs a fitting torch.
            importlib.import_module("transformers.models.llama.modeling_llama")
            importlib.import_module("transformers.models.clip.modeling_clip")
        case "pycocotools.mask":
            if module.area({"size": [2, 2], "counts": "112"}) != 1:
                raise RuntimeError("pycocotools counts pixels wrongly")
        case "av":
            lacking = [codec for codec, names in DECODERS.items() if not any(_decodes(module, n) for n in names)]
            if lacking:
                raise RuntimeError(f"the FFmpeg of PyAV cannot decode {', '.join(lacking)}")
            return [f"FFmpeg {module.ffmpeg_version_info}", f"decodes {', '.join(DECODERS)}"]
    return []


def _decodes(av: Any, name: str) -> bool:
    try:
        av.Codec(name, "r")
    except ValueError:  # av.codec.codec.UnknownCodecError is one
        return False
    return True
