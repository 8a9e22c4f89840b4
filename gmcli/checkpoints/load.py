"""Load a checkpoint's weights into the model: strictly, file by file, never as a pickle that can run code."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig
from transformers.utils.import_utils import is_flash_attn_2_available

from gmcli.checkpoints.keys import original_config, original_to_own, tower_to_own
from gmcli.checkpoints.locate import (
    CheckpointFiles,
    VisionTowerFiles,
    check_unchanged,
    locate_checkpoint,
    read_tokenizer,
)
from gmcli.checkpoints.sizes import size_problems
from gmcli.checkpoints.weights import STORED_TYPES, read_headers, read_tensors
from gmcli.config import check_llm_weights
from gmcli.errors import CheckpointError, EnvironmentProblem
from gmcli.model.config import ClipSizes, MoraConfig
from gmcli.model.generate import SpecialIds
from gmcli.model.mora import Mora, build_on_meta, restore_buffers
from gmcli.model.quantize import linear_layers, quantized_linear
from gmcli.model.tokenizer import Tokenizer
from gmcli.text import one_line, shorten

_MOST_PROBLEMS = 1000  # of keys to be named one by one; a 13B model has as many
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Hold a loaded model with what is needed to talk to it."""

    model: Mora
    tokenizer: Tokenizer
    special: SpecialIds
    files: CheckpointFiles


@dataclass(frozen=True, slots=True)
class Source:
    """Locate one tensor: the file, its name there, its shape and type."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def load_checkpoint(
    ref: str | CheckpointFiles,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "fp32",
    attention: str = "auto",
    llm_weights: str | None = None,
) -> Checkpoint:
    """Load a checkpoint of either layout, in evaluation mode.

    dtype: "fp32", "bf16" or "fp16", for all weights but SAM's prompt encoder, whose coordinates need float32.
    attention: "auto", "sdpa", "flash_attention_2" or "eager"; "auto" takes flash-attn where it is installed and fits.
    llm_weights: "int8" or "int4" for the linear layers of LLaMA's blocks. Each is quantised as it is read, so that the
    device never holds more than one of them as floats: a model fits that would not fit before it is quantised.
    Raises CheckpointError that lists every missing, surplus or misshapen key; EnvironmentProblem for flash-attn, torchao or
    a device that has no kernels for llm_weights.
    """
    files = locate_checkpoint(ref) if isinstance(ref, str) else ref
    check_unchanged(files)
    device = torch.device(device)
    check_llm_weights(llm_weights, device.type, dtype)
    config, sources = check_checkpoint(files)
    model = build_on_meta(config, choose_attention(attention, device, dtype))
    small = {f"language_model.{name}.weight" for name in linear_layers(model.language_model)} if llm_weights else set()
    by_file: dict[Path, dict[str, str]] = {}
    for ours, source in sources.items():
        by_file.setdefault(source.file, {})[source.key] = ours
    for file, names in by_file.items():
        state = {}
        for key, tensor in read_tensors(file):
            if key not in names:
                continue
            name = names[key]
            own = tensor.to(device=device, dtype=_dtype_of(name, dtype), copy=True)
            if llm_weights and name in small:
                model.set_submodule(name.removesuffix(".weight"), quantized_linear(own, llm_weights))
            else:
                state[name] = own
        model.load_state_dict(state, strict=False, assign=True)
    restore_buffers(model, device)
    model.eval().requires_grad_(False)
    tokenizer = read_tokenizer(files)
    check_unchanged(files)
    return Checkpoint(model, tokenizer, special_ids(tokenizer, config), files)


def check_checkpoint(files: CheckpointFiles) -> tuple[MoraConfig, Mapping[str, Source]]:
    """Compare every key and shape with the model, built on the meta device; load no weights.

    Returns the configuration and where each of our keys lies. Raises CheckpointError listing all that does not fit.
    """
    where = str(files.path / "config.json")
    if files.layout == "gmcli":
        values = {k: v for k, v in files.config.items() if k != "format"}
        config = MoraConfig.from_json(values, where)
        sources = _collect(files.weights, lambda key: key)
    else:
        tower = files.vision_tower
        assert tower is not None
        sources = _collect(files.weights, original_to_own) | _collect(tower.weights, tower_to_own)
        derived = original_config(
            files.config, clip_sizes(tower, files.config), {k: s.shape for k, s in sources.items()}
        )
        config = MoraConfig.from_json(derived.to_json(), where)  # the types of what it took over are not checked yet
    if problems := size_problems(config, len(sources)):
        raise CheckpointError("\n".join(f"{where}: {p}" for p in problems), "These are the sizes of no such model.")
    problems = key_problems(config, {k: s.shape for k, s in sources.items()})
    if problems:
        more = [f"… and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
        raise CheckpointError(
            f"{files.path}: the weights do not fit the model; {len(problems)} keys:\n  "
            + "\n  ".join(problems[:_MOST_PROBLEMS] + more),
            "Weights and config.json belong to different models, or are damaged.",
        )
    return config, sources


def key_problems(config: MoraConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """List every missing, surplus or misshapen key (our names) of a checkpoint against the model's own."""
    wanted = {k: tuple(v.shape) for k, v in build_on_meta(config).state_dict().items()}
    problems = [f"missing: {k} {list(v)}" for k, v in wanted.items() if k not in shapes]
    problems += [f"unknown: {shorten(one_line(k), 200)} {list(v)}" for k, v in shapes.items() if k not in wanted]
    problems += [
        f"wrong shape: {k} is {list(shapes[k])}, the model needs {list(v)}"
        for k, v in wanted.items()
        if k in shapes and shapes[k] != v
    ]
    return problems


def special_ids(tokenizer: Tokenizer, config: MoraConfig) -> SpecialIds:
    """Look the special ids up by name: published checkpoints have [SEG] at different ids."""
    seg = tokenizer.token_id(config.seg_token)
    if seg is None:
        raise CheckpointError(f"the vocabulary has no {config.seg_token} token")
    return SpecialIds(tokenizer.eos_id, seg, tokenizer.token_id(config.loc_token))


def clip_sizes(tower: VisionTowerFiles, config: Mapping[str, Any]) -> ClipSizes:
    """Read a vision tower's sizes from a CLIPVisionConfig or a full CLIPConfig; their types and ranges are not checked.

    Only sizes are taken out: transformers would act upon other fields, such as a billion labels.
    """
    values = tower.config.get("vision_config", tower.config)
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{tower.path / 'config.json'}: vision_config: expected an object", "Download it again.")
    default = CLIPVisionConfig()
    names = [f.name for f in fields(ClipSizes) if f.name != "select_layer"]
    sizes = {name: values.get(name, getattr(default, name)) for name in names}
    return ClipSizes(**sizes, select_layer=config.get("mm_vision_select_layer", -2))


def choose_attention(wanted: str, device: torch.device, dtype: str) -> str:
    """Choose transformers' attention: flash-attn where it is installed and the device and dtype can, SDPA otherwise."""
    can = device.type == "cuda" and dtype in ("bf16", "fp16")
    if wanted == "auto":
        return "flash_attention_2" if can and is_flash_attn_2_available() else "sdpa"
    if wanted == "flash_attention_2":
        if not can:
            raise EnvironmentProblem(
                f"flash-attn needs a CUDA device and bf16 or fp16, not {device.type} and {dtype}",
                "Use --attention sdpa.",
            )
        if not is_flash_attn_2_available():
            raise EnvironmentProblem("flash-attn is not installed", "pip install 'gmcli[flash]' --no-build-isolation")
    return wanted


def _dtype_of(key: str, dtype: str) -> torch.dtype:
    return torch.float32 if key.startswith("visual_model.prompt_encoder.") else DTYPES[dtype]


def _collect(files: tuple[Path, ...], rename: Any) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for file in files:
        for key, shape, dtype in read_headers(file):
            ours = rename(key)
            if ours is None:
                continue
            if not isinstance(dtype, torch.dtype) or dtype not in STORED_TYPES.values():
                raise CheckpointError(
                    f"{file}: {shorten(one_line(key), 200)} is stored as {dtype}; only floating-point weights are known here",
                    "Use the checkpoint as it was before it was quantised.",
                )
            if ours in found:
                raise CheckpointError(
                    f"{file}: {shorten(one_line(key), 200)} is also in {found[ours].file.name}", "Download both again."
                )
            found[ours] = Source(file, key, shape, dtype)
    return found
