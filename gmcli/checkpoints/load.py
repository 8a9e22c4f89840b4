"""Load a checkpoint's weights into the model: strictly, file by file, never as a pickle that can run code."""

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import CLIPVisionConfig
from transformers.utils.import_utils import is_flash_attn_2_available

from gmcli.checkpoints.keys import original_config, original_to_own, tower_to_own
from gmcli.checkpoints.locate import CheckpointFiles, VisionTowerFiles, locate_checkpoint, read_tokenizer
from gmcli.config import check_llm_weights
from gmcli.errors import CheckpointError, EnvironmentProblem
from gmcli.model.config import ClipSizes, MoraConfig
from gmcli.model.generate import SpecialIds
from gmcli.model.mora import Mora, build_on_meta, restore_buffers
from gmcli.model.quantize import linear_layers, quantized_linear
from gmcli.model.tokenizer import Tokenizer

# Names of types in safetensors files.
STORED_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
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
    return Checkpoint(model, tokenizer, special_ids(tokenizer, config), files)


def check_checkpoint(files: CheckpointFiles) -> tuple[MoraConfig, Mapping[str, Source]]:
    """Compare every key and shape with the model, built on the meta device; load no weights.

    Returns the configuration and where each of our keys lies. Raises CheckpointError listing all that does not fit.
    """
    if files.layout == "gmcli":
        values = {k: v for k, v in files.config.items() if k != "format"}
        config = MoraConfig.from_json(values, str(files.path / "config.json"))
        sources = _collect(files.weights, lambda key: key)
    else:
        tower = files.vision_tower
        assert tower is not None
        sources = _collect(files.weights, original_to_own) | _collect(tower.weights, tower_to_own)
        clip = clip_sizes(tower, files.config)
        config = original_config(files.config, clip, {k: s.shape for k, s in sources.items()})
    problems = key_problems(config, {k: s.shape for k, s in sources.items()})
    if problems:
        raise CheckpointError(
            f"{files.path}: the weights do not fit the model; {len(problems)} keys:\n  " + "\n  ".join(problems)
        )
    return config, sources


def key_problems(config: MoraConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """List every missing, surplus or misshapen key (our names) of a checkpoint against the model's own."""
    wanted = {k: tuple(v.shape) for k, v in build_on_meta(config).state_dict().items()}
    problems = [f"missing: {k} {list(v)}" for k, v in wanted.items() if k not in shapes]
    problems += [f"unknown: {k} {list(v)}" for k, v in shapes.items() if k not in wanted]
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
    """Read a vision tower's sizes from a CLIPVisionConfig or a full CLIPConfig."""
    values = tower.config.get("vision_config", tower.config)
    full = CLIPVisionConfig.from_dict(dict(values))
    select = config.get("mm_vision_select_layer", -2)
    if type(select) is not int or not -full.num_hidden_layers - 1 <= select < 0:
        raise CheckpointError(f"mm_vision_select_layer {select!r} names no layer of the vision tower")
    return ClipSizes(
        hidden_size=full.hidden_size,
        intermediate_size=full.intermediate_size,
        num_hidden_layers=full.num_hidden_layers,
        num_attention_heads=full.num_attention_heads,
        image_size=int(full.image_size),  # type: ignore[arg-type]
        patch_size=int(full.patch_size),  # type: ignore[arg-type]
        hidden_act=str(full.hidden_act),
        layer_norm_eps=float(full.layer_norm_eps),
        select_layer=select,
    )


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
                    f"{file}: {key} is stored as {dtype}; only floating-point weights are known here",
                    "Use the checkpoint as it was before it was quantised.",
                )
            if ours in found:
                raise CheckpointError(f"{file}: {key} is also in {found[ours].file.name}")
            found[ours] = Source(file, key, shape, dtype)
    return found


def read_headers(file: Path) -> Iterator[tuple[str, tuple[int, ...], torch.dtype | str]]:
    """Yield name, shape and type of every tensor without reading its values."""
    if file.suffix == ".safetensors":
        with _open_safetensors(file) as opened:
            for key in opened.keys():  # noqa: SIM118 (not a mapping)
                header = opened.get_slice(key)
                yield key, tuple(header.get_shape()), STORED_TYPES.get(header.get_dtype(), header.get_dtype())
    else:
        for key, tensor in _load_bin(file).items():
            yield key, tuple(tensor.shape), tensor.dtype


def read_tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a weight file's names (its own) and tensors, on the CPU."""
    if file.suffix == ".safetensors":
        with _open_safetensors(file) as opened:
            for key in opened.keys():  # noqa: SIM118
                yield key, opened.get_tensor(key)
    else:
        yield from _load_bin(file).items()


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})", "The file is damaged; download it again.") from None


def _load_bin(file: Path) -> dict[str, torch.Tensor]:
    """Read a .bin file with the unpickler that can only make tensors. Memory-mapped: values are read when used."""
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 10):
        raise CheckpointError(
            f"{file}: torch {torch.__version__} does not read .bin files safely (CVE-2026-24747)",
            "pip install -U 'torch>=2.10', or convert the checkpoint to safetensors elsewhere.",
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{file}: not a file of plain tensors ({reason})",
            "It is damaged, or it holds code, which gmcli never runs.",
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise CheckpointError(f"{file}: expected a dictionary of tensors")
    return state
