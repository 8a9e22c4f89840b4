"""Hold the settings of a run: typed, checked, written down with the results."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gmcli.errors import ConfigError, EnvironmentProblem, UsageError
from gmcli.resources import share_dir
from gmcli.text import shorten

VISUAL_TOKENS = ("frame", "pooled", "pooled_padded", "temporal", "changes")
FORMATS = ("png", "png1", "rle")
DTYPES = ("auto", "fp32", "bf16", "fp16")
READERS = ("pyav", "decord")
ATTENTIONS = ("auto", "sdpa", "flash_attention_2", "eager")
LLM_WEIGHTS = ("int8", "int4")
PATHS = ("anywhere", "inside-root")
BACKENDS = ("eager", "inductor", "aot_inductor", "openvino", "tensorrt", "tensorrt_rtx")
# What a worker says it is in; see work.py.
STAGES = ("decode", "clip", "llm", "sam_encoder", "sam_decoder", "rle")

# These may differ between runs into one directory: they change how masks are computed, not which.
FREE = frozenset(
    {
        "paths",
        "gpus",
        "workers",
        "attention",
        "attempts",
        "kill_attempts",
        "start_timeout_s",
        "stall_timeout_s",
        "stage_timeouts_s",
        "max_pixels",
        "max_frames",
        "max_duration_s",
        "decode_memory_mb",
        "decode_cpu_s",
        "decode_timeout_s",
    }
)
# A folder may move; what counts is what is in it, and the checkpoint's fingerprint says that.
_BY_FINGERPRINT = frozenset({"checkpoint", "revision", "vision_tower", "require_sha256"})


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Hold every setting of `gmcli infer`; configs/default.yaml explains each."""

    checkpoint: str = "mora-tiny"
    revision: str | None = None
    vision_tower: str | None = None
    require_sha256: str | None = None
    visual_tokens: str | None = None
    frames: int = 20
    mask_frames: str | float = "all"
    formats: tuple[str, ...] = ("png", "rle")
    dtype: str = "auto"
    reader: str = "pyav"
    max_new_tokens: int = 64
    gpus: str = "auto"
    workers: int | None = None
    attention: str = "auto"
    backend: str = "eager"
    llm_weights: str | None = None
    questions_per_batch: int = 16
    attempts: int = 2
    kill_attempts: int = 5
    start_timeout_s: int = 7200
    stall_timeout_s: int = 1800
    stage_timeouts_s: Mapping[str, int] = field(default_factory=dict)
    paths: str = "anywhere"
    max_pixels: int = 1 << 26
    max_frames: int = 500_000
    max_duration_s: int = 6 * 3600
    decode_memory_mb: int = 4096
    decode_cpu_s: int = 6 * 3600
    decode_timeout_s: int = 300

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self) | {"formats": list(self.formats)}

    def decisive(self) -> dict[str, Any]:
        """Return the settings that decide the masks and that the checkpoint's fingerprint does not cover."""
        return {k: v for k, v in self.to_json().items() if k not in FREE | _BY_FINGERPRINT}


def load_config(source: str | None, overrides: Mapping[str, Any]) -> RunConfig:
    """Read a configuration file, or one that ships with gmcli by its name, and lay overrides over it.

    source: path, name such as "default", or None for the defaults. overrides: settings by name; None leaves one alone.
    Raises ConfigError naming every wrong field with its line, or the option.
    """
    config = RunConfig()
    if source is not None:
        config = replace(config, **_read(_find(source)))
    problems = []
    given: dict[str, Any] = {}
    for name, value in overrides.items():
        if value is None:
            continue
        try:
            given[name] = _CHECKS[name](value)
        except ValueError as error:
            option = "format" if name == "formats" else name.replace("_", "-")
            problems.append(f"--{option} {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    config = replace(config, **given)
    if config.visual_tokens == "pooled_padded" and config.frames > 100:
        raise ConfigError(f"visual_tokens pooled_padded holds at most 100 frames, not {config.frames}")
    if config.llm_weights and config.backend not in ("eager", "inductor"):
        raise ConfigError(
            f"llm_weights {config.llm_weights} needs the eager or the inductor backend: "
            f"what {config.backend} compiles ahead holds float weights"
        )
    return config


def check_llm_weights(weights: str | None, device: str, dtype: str) -> None:
    """Refuse weights in few bits that cannot be had here, before anything is loaded; imports neither torch nor torchao.

    device: "cpu" or "cuda". dtype: "fp32", "bf16" or "fp16". Raises EnvironmentProblem where torchao is not installed or
    4 bits meet a CPU, UsageError where they meet another dtype than bf16.
    """
    if weights is None:
        return
    if find_spec("torchao") is None:
        raise EnvironmentProblem(f"{weights} weights need torchao", "pip install 'gmcli[quant]'")
    if weights == "int4" and device != "cuda":
        raise EnvironmentProblem("int4 weights need an NVIDIA GPU: their kernels are for CUDA", "Use int8 on a CPU.")
    if weights == "int4" and dtype != "bf16":
        raise UsageError(f"int4 weights are multiplied in bf16, not in {dtype}", "Use --dtype bf16, or int8.")


def _find(source: str) -> Path:
    path = Path(source)
    shipped = share_dir("configs") / f"{source}.yaml"
    if path.is_file():
        return path
    if re.fullmatch(r"[\w.-]+", source) and shipped.is_file():
        return shipped
    names = ", ".join(
        sorted(p.stem for p in share_dir("configs").glob("*.yaml") if "stages:" not in p.read_text("utf-8"))
    )
    raise ConfigError(f"{source}: no such configuration", f"Give a file, or one that ships with gmcli: {names}.")


def _read(path: Path) -> dict[str, Any]:
    from gmcli.yaml_fields import plain, read_fields  # reads YAML: `gmcli --help` need not

    def reader(name: str) -> Any:
        return lambda node: _CHECKS[name](plain(node))

    return read_fields(path, {f.name: reader(f.name) for f in fields(RunConfig)}, ConfigError)


def _shown(value: object) -> str:
    return shorten(repr(value), 120)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"must be text, not {_shown(value)}")
    return value


def _optional(check: Any) -> Any:
    return lambda value: None if value is None else check(value)


def sha256_option(value: str | None) -> str | None:
    """Check --require-sha256 of a command that has no other settings. Raises ConfigError."""
    try:
        return None if value is None else _sha256(value)
    except ValueError as error:
        raise ConfigError(f"--require-sha256 {error}") from None


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError(f"must be a sha256 in hex, 64 digits, not {_shown(value)}")
    return value.lower()


def _choice(*choices: str) -> Any:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {_shown(value)}")
        return str(value)

    return check


def _count(highest: int) -> Any:
    def check(value: Any) -> int:
        if type(value) is not int or not 1 <= value <= highest:
            raise ValueError(f"must be a whole number from 1 to {highest}, not {_shown(value)}")
        return value

    return check


def _stage_timeouts(value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping) or any(name not in STAGES for name in value):
        raise ValueError(f"must give seconds by stage ({', '.join(STAGES)}), not {_shown(value)}")
    check = _count(86400)
    return {name: check(seconds) for name, seconds in value.items()}


def _mask_frames(value: Any) -> str | float:
    if value in ("all", "sampled"):
        return str(value)
    try:
        fps = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        fps = float("nan")
    if not 0 < fps <= 1000:
        raise ValueError(f"must be all, sampled or a number of frames per second, not {_shown(value)}")
    return fps


def _formats(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or any(n not in FORMATS for n in names):
        raise ValueError(f"must name formats out of {', '.join(FORMATS)}, not {_shown(value)}")
    if "png" in names and "png1" in names:
        raise ValueError("must name png (8 bits a pixel) or png1 (1 bit), not both: they would be the same files")
    return tuple(f for f in FORMATS if f in names)


def _gpus(value: Any) -> str:
    if type(value) is int and value >= 0:
        return str(value)
    if value in ("auto", "cpu"):
        return str(value)
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,3}(,\d{1,3})*", value):
        raise ValueError(f'must be auto, cpu or numbers such as "0,1", not {_shown(value)}')
    ids = value.split(",")
    if len(set(ids)) < len(ids):
        raise ValueError(f"names a GPU twice: {_shown(value)}")
    return value


_CHECKS: Mapping[str, Any] = {
    "checkpoint": _text,
    "revision": _optional(_text),
    "vision_tower": _optional(_text),
    "require_sha256": _optional(_sha256),
    "visual_tokens": _optional(_choice(*VISUAL_TOKENS)),
    "frames": _count(1000),
    "mask_frames": _mask_frames,
    "formats": _formats,
    "dtype": _choice(*DTYPES),
    "reader": _choice(*READERS),
    "max_new_tokens": _count(4096),
    "gpus": _gpus,
    "workers": _optional(_count(64)),
    "attention": _choice(*ATTENTIONS),
    "backend": _choice(*BACKENDS),
    "llm_weights": _optional(_choice(*LLM_WEIGHTS)),
    "questions_per_batch": _count(1024),
    "attempts": _count(100),
    "kill_attempts": _count(100),
    "start_timeout_s": _count(7 * 86400),
    "stall_timeout_s": _count(86400),
    "stage_timeouts_s": _stage_timeouts,
    "paths": _choice(*PATHS),
    "max_pixels": _count(1 << 26),  # no mask has more
    "max_frames": _count(10**8),
    "max_duration_s": _count(10**8),
    "decode_memory_mb": _count(10**7),
    "decode_cpu_s": _count(10**8),
    "decode_timeout_s": _count(86400),
}
